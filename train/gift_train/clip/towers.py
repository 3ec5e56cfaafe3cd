"""open_clip's two transformers, run for what is read of them and nothing else. Same weights, same equations, less work.

What is left out or moved, each equal to the plain pass up to the order of floating-point sums, in value and gradient:
- The image feature is the class token's, so the last block computes its query, its output projection and its MLP for that
  token alone. Likewise the last block's MLP of the text tower runs only where a text ends.
- Texts pass as the tree of their prefixes (`prefix_tree`).
- QuickGELU(x) = x sigmoid(a x) = silu(a x) / a. Both factors move into the weights around it (`prepared_weights`): one pass over the
  widest activations, and one back, instead of three and five.
- The patch embedding is a matrix product over the patches. Queries, keys and values go to attention as views of one product.
- Large products on a CPU take the faster way there is (`linear`).

Networks of another build, and those with hooks on their blocks (adapters), are not run here; see `can_read_images` and
`can_read_texts`.

The only module that relies on how open_clip builds its networks, which it does not promise to keep; `test_private_interfaces.py` holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import CLIP, CoCa
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from gift_train.clip.linear import linear
from gift_train.clip.prefix_tree import PrefixTree
from gift_train.clip.prepared_weights import prepared
from gift_train.clip.recompute import Call, plainly
from gift_train.clip.tree_maker import TextEnds

QUICK_GELU_SLOPE = 1.702
RunBlock = Callable[..., Tensor]


def reads_a_class_token(network: nn.Module) -> bool:
    """Whether the image tower is open_clip's own vision transformer, and its feature that of the class token."""
    visual = getattr(network, "visual", None)
    return isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok" and visual.proj is not None


def can_read_images(network: nn.Module) -> bool:
    """Whether `image_features` computes what this network's own image tower would."""
    visual = getattr(network, "visual", None)
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
        return False
    if any(side % visual.patch_size[0] for side in visual.image_size) or len(set(visual.patch_size)) > 1:
        return False
    return isinstance(visual.patch_dropout, nn.Identity) and not visual.output_tokens and _is_plain(visual.transformer)


def can_read_texts(network: Any) -> bool:
    """Whether `text_features` computes what this network's own text tower would."""
    return is_causal(network) and _is_plain(text_tower(network).transformer)


def is_causal(network: Any) -> bool:
    """Whether texts are read at their end, and nothing after it matters: open_clip's text transformer under a causal mask.

    Not a CoCa's, which puts a class token of its own behind the padding.
    """
    tower = text_tower(network)
    if not isinstance(tower, CLIP | TextTransformer) or tower.attn_mask is None or _pooling(tower)[0] not in ("argmax", "eos"):
        return False
    return isinstance(tower, CLIP) or (tower.cls_emb is None and not tower.output_tokens)


def text_tower(network: Any) -> Any:
    """What texts pass: a CLIP holds its text transformer in itself, all others in `text`."""
    return network if isinstance(network, CLIP) else network.text


def is_read(network: nn.Module, name: str) -> bool:
    """Whether image or text features depend on the parameter of that name. A CoCa's decoder, which writes captions, is not read."""
    return not (isinstance(network, CoCa) and name.startswith("text_decoder."))


def num_columns_read(network: Any, tokens: Tensor) -> int:
    """How many of the columns of tokens [K, L] the features depend on; K and L at least 1.

    A causal tower reads up to where the last text ends. A tower of transformers masks its padding, so columns of nothing else at the
    right are not there for it. Any other is told nothing of padding (SigLIP), and reads all.
    """
    if is_causal(network):
        return int(text_ends(network, tokens).max()) + 1
    tower = text_tower(network)
    if isinstance(tower, HFTextEncoder) and tower.config.pad_token_id is not None:
        is_text = (tokens != tower.config.pad_token_id).any(dim=0)
        return int(is_text.nonzero().max()) + 1 if is_text.any() else 1
    return tokens.shape[1]


def text_ends(network: Any, tokens: Tensor) -> Tensor:
    """Where open_clip reads each text's feature: [K, L] -> [K], the first end token, or the first of the largest ids."""
    return reading_ends(network)(tokens)


def reading_ends(network: Any) -> TextEnds:
    """The rule by which `text_ends` finds them."""
    return TextEnds(*_pooling(text_tower(network)))


def _pooling(tower: Any) -> tuple[str, int]:
    """Where a text transformer is read, and the id of the token there if it is told by its id."""
    return (tower.text_pool_type, tower.text_eos_id) if isinstance(tower, CLIP) else (tower.pool_type, tower.eos_id)


def both(network: Any) -> dict[str, nn.Module]:
    """The towers by name: what holds their blocks."""
    return {"image tower": network.visual, "text tower": network.text if hasattr(network, "text") else network.transformer}


def residual_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks that features pass, by tower and number: `visual.transformer.0` ..., `transformer.0` ..."""
    modules = ((name, module) for name, module in network.named_modules() if is_read(network, f"{name}."))
    return {name.replace(".resblocks", ""): module for name, module in modules if isinstance(module, ResidualAttentionBlock)}


def image_features(visual: Any, images: Tensor, run_block: RunBlock, call: Call = plainly) -> Tensor:
    """[B, 3, H, W] -> [B, D], not normalised. `run_block` is `block_output`, compiled or not; `call` calls it, and the last block's."""
    patch = visual.patch_size[0]
    batch, channels, height, width = images.shape
    patches = images.reshape(batch, channels, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)
    hidden = linear(patches.reshape(batch, -1, channels * patch * patch), prepared(visual.conv1.weight).flatten(1))
    class_token = visual.class_embedding.to(hidden.dtype).expand(batch, 1, -1)
    hidden = visual.ln_pre(torch.cat([class_token, hidden], dim=1) + visual.positional_embedding.to(hidden.dtype))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        hidden = call(run_block, block, hidden)
    pooled = visual.ln_post(call(_class_token_output, last, hidden))
    return torch.as_tensor(pooled if visual.proj is None else pooled @ prepared(visual.proj))


def text_features(network: Any, texts: PrefixTree, run_block: RunBlock, call: Call = plainly) -> Tensor:
    """K texts -> [K, D], not normalised. `run_block` and `call` as for images."""
    network = text_tower(network)
    hidden = network.token_embedding(texts.tokens) + network.positional_embedding[texts.positions]
    bias = texts.attention_bias(_dtype_of_products(hidden))  # once for all blocks: each would convert a mask of bools again
    *blocks, last = network.transformer.resblocks
    for block in blocks:
        hidden = call(run_block, block, hidden, bias)
    return _projected(network, network.ln_final(call(_ends_output, last, hidden, bias, texts.ends)))


def _dtype_of_products(hidden: Tensor) -> torch.dtype:
    """What queries and keys made of it will be."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def plain_text_features(network: Any, tokens: Tensor) -> Tensor:
    """[K, L] -> [K, D], not normalised, through the network's own blocks.

    open_clip's encode_text insists on the full context length; these are the same layers on a shorter one, causal masks allowing.
    """
    tower, length = text_tower(network), tokens.shape[1]
    hidden = tower.token_embedding(tokens) + tower.positional_embedding[:length]
    hidden = tower.ln_final(tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length]))
    return _projected(tower, hidden[torch.arange(len(hidden), device=hidden.device), text_ends(network, tokens)])


def _projected(tower: Any, pooled: Tensor) -> Tensor:
    """[K, W] -> [K, D]."""
    projection = tower.text_projection
    if projection is not None:
        pooled = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ prepared(projection)
    return torch.as_tensor(pooled)


def block_output(block: Any, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
    """One residual attention block, [B, L, W] -> [B, L, W]; `bias` [B, 1, L, L] is added to attention's scores, nothing if None."""
    return _after_attention(block, hidden, _attention(block, hidden, bias))


def _class_token_output(block: Any, hidden: Tensor) -> Tensor:
    """A block's output at the class token: [B, L, W] -> [B, W]."""
    return _after_attention(block, hidden[:, 0], _attention(block, hidden, num_queries=1)[:, 0])


def _ends_output(block: Any, hidden: Tensor, bias: Tensor, ends: Tensor) -> Tensor:
    """A block's output at these places among all R * N: [R, N, W], [K] -> [K, W]."""
    mixed = _attention(block, hidden, bias)
    return _after_attention(block, hidden.flatten(0, 1)[ends], mixed.flatten(0, 1)[ends])


def _attention(block: Any, hidden: Tensor, bias: Tensor | None = None, num_queries: int | None = None) -> Tensor:
    """What the first `num_queries` positions gather from all, before the output projection: [B, L, W] -> [B, Q, W]."""
    attention, normed = block.attn, block.ln_1(hidden)
    weight, shift = prepared(attention.in_proj_weight), prepared(attention.in_proj_bias)
    heads, width = attention.num_heads, attention.embed_dim
    if num_queries is None:
        query, key, value = _by_head(linear(normed, weight, shift), 3, heads)
    else:
        (query,) = _by_head(linear(normed[:, :num_queries], weight[:width], shift[:width]), 1, heads)
        key, value = _by_head(linear(normed, weight[width:], shift[width:]), 2, heads)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)


def _by_head(product: Tensor, num_parts: int, heads: int) -> Tensor:
    """[B, L, parts W] -> [parts, B, heads, L, W / heads], a view."""
    return product.view(*product.shape[:2], num_parts, heads, -1).permute(2, 0, 3, 1, 4)


def _after_attention(block: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a block, for the positions given: [..., W] -> [..., W]."""
    hidden = hidden + block.ls_1(_layer(block.attn.out_proj, mixed))
    return torch.as_tensor(hidden + block.ls_2(_mlp(block.mlp, block.ln_2(hidden))))


def _mlp(mlp: Any, hidden: Tensor) -> Tensor:
    if not isinstance(mlp.gelu, QuickGELU):
        return _layer(mlp.c_proj, mlp.gelu(_layer(mlp.c_fc, hidden)))
    widen, narrow = mlp.c_fc, mlp.c_proj
    inner = F.silu(linear(hidden, prepared(widen.weight, QUICK_GELU_SLOPE), prepared(widen.bias, QUICK_GELU_SLOPE)))
    return linear(inner, prepared(narrow.weight, QUICK_GELU_SLOPE, divides=True), prepared(narrow.bias))


def _layer(layer: Any, hidden: Tensor) -> Tensor:
    return linear(hidden, prepared(layer.weight), prepared(layer.bias))


def _is_plain(transformer: nn.Module) -> bool:
    """Every block as CLIP defines it, and nobody listening in on one (adapters do, by hooks)."""
    blocks: list[nn.Module] = list(getattr(transformer, "resblocks", ()))
    is_known = all(_is_residual_block(block) and not hasattr(block, "ln_1_kv") for block in blocks)
    is_hooked = any(_has_hooks(module) for block in blocks for module in block.modules())
    return bool(blocks) and is_known and not is_hooked and not transformer.grad_checkpointing


def _is_residual_block(block: nn.Module) -> bool:
    """open_clip's, also where calling it is recomputed; no class that computes something else."""
    return isinstance(block, ResidualAttentionBlock) and type(block).forward is ResidualAttentionBlock.forward


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody reads or changes what passes through a module. torch has no public way to ask."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
