"""CLIP as the rest of the trainer sees it: encode, tokenize, freeze."""

from __future__ import annotations

import contextlib
import copy
import logging
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import open_clip
import torch
import torch.compiler.config
import torch.nn.functional as F
from torch import Tensor

from gift_shared.console import some_of
from gift_shared.errors import ConfigError
from gift_train.clip import towers
from gift_train.clip.bound_tokenizer import BoundTokenizer
from gift_train.clip.flat_tensors import FlatTensors, are_held, hold_flat
from gift_train.clip.model_config import ModelConfig
from gift_train.clip.normalise import Normalise
from gift_train.clip.prefix_tree import PrefixTree, SplitTree, texts_in_rows
from gift_train.clip.prepared_weights import PreparedWeights
from gift_train.clip.preprocessing import ResizeSettings, resize_settings
from gift_train.clip.recompute import Call, in_micro_batches, plainly, recompute_blocks, recomputed
from gift_train.clip.tokenizers import num_tokens
from gift_train.clip.tree_maker import TreeMaker

Precision = Literal["fp32", "tf32", "bf16"]
FROZEN = ("logit_scale", "logit_bias")  # never trained (METHODS 1.5)
TEXT_BLOCK = 256
_SAMPLE_TEXT = "a photo of the Quick brown fox's den, 7 of 10."
TREES_KEPT = 4  # sets of texts whose tree is remembered
COMPILED_KINDS = 64  # of calls to a block, by tower, shapes and gradients; beyond them blocks run uncompiled. A few steps use up torch's 8

_log = logging.getLogger(__name__)


class Backbone:
    """One CLIP: two towers and the temperature between them, SigLIP's bias too. Features are float32 and L2-normalised.

    `precision` is fp32; bf16, autocast of the towers over fp32 weights, whose products and activations keep 7 bits of a mantissa's 23; or
    tf32, whose matrix products on tensor cores keep 10: a switch of the process, so those of the similarities too. Weights, gradients,
    sums, softmax and the optimizer are fp32 in each.

    `config` is the model as open_clip_config.json tells it (`model_config`); empty for a network that was made by hand. `name` is how
    `--model` finds it and its tokenizer again, None if it cannot.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        tokenizer: Callable[..., Tensor] | None,
        precision: Precision = "fp32",
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.network: Any = network  # open_clip's classes are not typed
        self.tokenizer = tokenizer
        self.precision: Precision = precision
        self.config: ModelConfig = dict(config or {})
        self.name = name
        self.micro_batch_size: int | None = None  # images, or rows of texts, that pass at once where gradients are wanted; None = all
        self._run_block: towers.RunBlock = towers.block_output
        self._call_block: Call = plainly
        self._normalise: Normalise | None = None
        self._untrained = frozenset(name for name, _ in network.named_parameters() if name in FROZEN or not towers.is_read(network, name))
        self._flat: FlatTensors | None = None
        self._prepared: PreparedWeights | None = None  # in a block of `weights_prepared_once`
        self._trees: OrderedDict[Any, SplitTree] = OrderedDict()
        for name, parameter in network.named_parameters():
            if name in self._untrained:
                parameter.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return torch.device(self.network.logit_scale.device)

    @property
    def scale(self) -> Tensor:
        """Exponential of the log parameter `logit_scale`; a scalar without gradient."""
        return torch.exp(self.network.logit_scale.detach())

    @property
    def bias(self) -> Tensor | None:
        """`logit_bias`, which models trained by sigmoid (SigLIP) add to every similarity; a scalar without gradient. None for CLIP."""
        bias = getattr(self.network, "logit_bias", None)
        return None if bias is None else bias.detach()

    @property
    def vocabulary_size(self) -> int:
        return int(towers.text_tower(self.network).vocab_size)

    @property
    def context_length(self) -> int:
        """Tokens of a text, with all that its tokenizer puts around it: what it is cut and padded to.

        The tokenizer's word, as in open_clip's own training: a tower of transformers has room for 512 tokens and more.
        """
        lengths = (self.network.context_length, getattr(self.tokenizer, "context_length", None))
        return min(int(length) for length in lengths if length)  # a tower of relative positions (T5) has none

    @property
    def image_settings(self) -> tuple[int, Sequence[float], Sequence[float]]:
        """Side in pixels, and the mean and standard deviation per channel that images are normalised with."""
        visual = self.network.visual
        settings = getattr(visual, "preprocess_cfg", {})
        mean = settings.get("mean", open_clip.OPENAI_DATASET_MEAN)
        sides = {visual.image_size} if isinstance(visual.image_size, int) else set(visual.image_size)  # a ResNet has one number
        if len(sides) > 1:
            raise ConfigError(f"This model reads images of {' x '.join(map(str, visual.image_size))} pixels; square ones are expected.")
        return sides.pop(), mean, settings.get("std", open_clip.OPENAI_DATASET_STD)

    @property
    def resize_settings(self) -> ResizeSettings:
        """How pictures are made square for it."""
        return resize_settings(getattr(self.network.visual, "preprocess_cfg", {}))

    @property
    def reads_a_class_token(self) -> bool:
        """Whether its image tower is open_clip's own vision transformer, and an image's feature that of the class token."""
        return towers.reads_a_class_token(self.network)

    def residual_blocks(self) -> dict[str, torch.nn.Module]:
        """The transformer blocks of both towers by tower and number: `visual.transformer.0` ..., `transformer.0` ...

        Raises: ConfigError if a tower is not made of open_clip's residual attention blocks.
        """
        blocks = towers.residual_blocks(self.network)
        for kind, has_blocks in (("image", True), ("text", False)):
            if not any(name.startswith("visual.") is has_blocks for name in blocks):
                tower = self.network.visual if has_blocks else towers.text_tower(self.network)
                raise ConfigError(
                    f"Adapters hang on open_clip's residual attention blocks (ViT-B-16, ...), and this model's {kind} tower,"
                    f" {type(tower).__name__}, has none. Take a model whose towers are both open_clip's transformers."
                )
        return blocks

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every parameter that image and text features are made of, by its name in the state dict.

        Not the temperature and the bias, nor what writes captions (CoCa's decoder): no loss here reaches it, so it is kept as it is.
        """
        return {name: parameter for name, parameter in self.network.named_parameters() if name not in self._untrained}

    def weights(self) -> dict[str, Tensor]:
        """The same tensors, detached but not copied: they move with training."""
        return {name: parameter.detach() for name, parameter in self.parameters().items()}

    def weights_copy(self) -> dict[str, Tensor]:
        """A copy of the weights as they are now."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    def flat_weights(self) -> FlatTensors:
        """The weights themselves, not a copy, in one buffer; they are moved there when it is first asked for."""
        parameters = self.parameters()
        if self._flat is None or not are_held(parameters, self._flat):
            self._flat = hold_flat(parameters)
        return self._flat

    @contextlib.contextmanager
    def weights_prepared_once(self) -> Iterator[None]:
        """Inside, no weight may change: what passes make of the weights, such as a cast, is made once for all of them.

        Where blocks are recomputed it is made anew each time, for less memory.
        """
        before, self._prepared = self._prepared, self._prepared or self._new_prepared()
        try:
            yield
        finally:
            self._prepared = before

    def keep_prepared(self, *, keeps: bool = True) -> None:
        """From now on what is made of the weights is made once for all passes: of a frozen model. Or no more, and its memory is free."""
        self._prepared = self._new_prepared() if keeps else None

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite the weights in place. Raises ConfigError if names or shapes are of another model.

        Buffers (a ResNet's batch statistics) may be left out: the network stays in eval mode, so that they never move.
        """
        own = self.network.state_dict(keep_vars=True)
        check_same_model(own, weights, may_lack=(*FROZEN, *self._untrained, *(name for name, _ in self.network.named_buffers())))
        for name, weight in weights.items():
            own[name].copy_(weight)

    def frozen_copy(self) -> Backbone:
        """A copy that never trains: for teachers."""
        network = copy.deepcopy(self.network).requires_grad_(False).eval()
        network.zero_grad(set_to_none=True)
        frozen = Backbone(network, self.tokenizer, self.precision, self.config, self.name)
        frozen._run_block = self._run_block
        return frozen

    def compile_blocks(self) -> None:
        """Run the transformer blocks through torch.compile from now on: fused kernels, and other last bits than without.

        The first step of each shape compiles, for a minute or so: images by their number, texts in few shapes (`tree_buckets`). Blocks
        with adapters stay as they are.
        """
        limits = torch.compiler.config
        limits.recompile_limit = max(COMPILED_KINDS, limits.recompile_limit)
        self._run_block = torch.compile(towers.block_output, dynamic=False)

    def place_images(self, images: Tensor) -> Tensor:
        """Images of any dataset here, uint8 [B, 3, H, W], to this device and normalised there: float32 of the same shape.

        Floats are taken to be normalised already and are only moved.
        """
        images = images.to(self.device, non_blocking=True)
        if images.dtype != torch.uint8:
            return images
        if self._normalise is None or self._normalise.mean.device != images.device:
            _, mean, std = self.image_settings
            self._normalise = Normalise(mean, std, images.device)  # kept: making it sends numbers to the device and waits
        return self._normalise(images)

    def recompute_blocks(self) -> None:
        """Keep what enters each block and nothing else for the backward pass, which computes the inside again (gradient checkpointing).

        Raises: ConfigError if a tower is not made of blocks.
        """
        without = [name for name, tower in towers.both(self.network).items() if recompute_blocks(tower) == 0]
        if without:
            raise ConfigError(f"--gradient-checkpointing: this model's {without[0]} has no blocks; --micro-batch-size fits every model.")
        self._call_block = recomputed

    def encode_images(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] normalised pixels -> [B, D]."""
        return in_micro_batches(self._encode_images, images, self.micro_batch_size)

    def encode_texts(self, tokens: Tensor, tree: SplitTree | None = None) -> Tensor:
        """[K, L] token ids, L up to the context length -> [K, D].

        Tokens stay on the CPU: what they have in common decides the shapes of the work, and asking a device would make it wait.
        `tree`: theirs, as `tree_maker` makes it, on this device; made here if None. Not looked at where texts do not pass as a tree.
        """
        num_rows = self.micro_batch_size if torch.is_grad_enabled() else None
        if not self._reads_trees():
            num_texts = None if num_rows is None else texts_in_rows(num_rows, tokens.shape[1])
            return in_micro_batches(self._encode_texts, tokens, num_texts)
        texts = self._prefix_tree(tokens, num_rows) if tree is None else tree
        if texts.places is None:
            return self._encode_tree(*texts.parts)
        return torch.cat([recomputed(self._encode_tree, part) for part in texts.parts])[texts.places]

    def text_tree(self, tokens: Tensor) -> SplitTree | None:
        """The tree as which these texts [K, L] pass, on this device; None where they do not pass as one. Remembered for a while."""
        num_rows = self.micro_batch_size if torch.is_grad_enabled() else None
        return self._prefix_tree(tokens, num_rows) if self._reads_trees() else None

    def why_not_whole(self) -> str | None:
        """Why its passes cannot be compiled whole, with the losses around them; None where they can."""
        if self.micro_batch_size is not None or self._call_block is not plainly:
            return "--micro-batch-size and --gradient-checkpointing compute parts of a step again"
        if not (towers.can_read_images(self.network) and towers.can_read_texts(self.network)):
            return "this model's towers are not both open_clip's own transformers, or something listens in on their blocks, as adapters do"
        return None

    def _reads_trees(self) -> bool:
        """Who compiles whole passes has seen to it, see `why_not_whole`."""
        return torch.compiler.is_compiling() or towers.can_read_texts(self.network)

    def _passing(self) -> tuple[towers.RunBlock, Call]:
        """How a block is run, and called. Compiled with all around it, it is not compiled apart."""
        return (towers.block_output, plainly) if torch.compiler.is_compiling() else (self._run_block, self._call_block)

    def _encode_images(self, images: Tensor) -> Tensor:
        with self._autocast():
            if torch.compiler.is_compiling() or towers.can_read_images(self.network):
                features = towers.image_features(self.network.visual, images, *self._passing())
            else:
                features = self.network.encode_image(images)
        return _normalised(features)

    def _encode_texts(self, tokens: Tensor) -> Tensor:
        with self._autocast():
            placed = tokens.to(self.device, non_blocking=True)
            is_causal = towers.is_causal(self.network)
            features = towers.plain_text_features(self.network, placed) if is_causal else self.network.encode_text(placed)
        return _normalised(features)

    def _encode_tree(self, texts: PrefixTree) -> Tensor:
        with self._autocast():
            features = towers.text_features(self.network, texts, *self._passing())
        return _normalised(features)

    @property
    def tokenize(self) -> BoundTokenizer:
        """texts -> [K, L] token ids on the CPU: a function that knows nothing of the model. Raises ConfigError if there is none."""
        if self.tokenizer is None:
            raise ConfigError("This model has no tokenizer.")
        return BoundTokenizer(self.tokenizer, self.context_length)

    @property
    def tree_maker(self) -> TreeMaker | None:
        """Tokens -> the tree as which they pass while training; None where texts do not pass as a tree. Knows nothing of the model."""
        if not towers.can_read_texts(self.network):
            return None
        return self._tree_maker(self.micro_batch_size)

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that do not fit the context with what their tokenizer puts around them."""
        if self.tokenizer is None:
            return []
        distinct = list(dict.fromkeys(texts))
        lengths = num_tokens(self.tokenizer, distinct)
        return [text for text, length in zip(distinct, lengths, strict=True) if length > self.context_length]

    def warn_of_long(self, texts: Sequence[str]) -> None:
        """Tell in one line which texts are cut, if any."""
        long = self.too_long(texts)
        if long:
            _log.warning("%d texts are longer than the model's %d tokens and are cut: %s", len(long), self.context_length, some_of(long))

    def trim(self, tokens: Tensor) -> Tensor:
        """Cut [K, L] on the CPU to the columns that the features depend on; values are the same up to the order of sums."""
        return tokens[:, : towers.num_columns_read(self.network, tokens)] if tokens.numel() else tokens

    @property
    def _is_compiled(self) -> bool:
        return self._run_block is not towers.block_output

    def _tree_maker(self, max_rows: int | None) -> TreeMaker:
        return TreeMaker(towers.reading_ends(self.network), max_rows, self._is_compiled)

    def _prefix_tree(self, tokens: Tensor, max_rows: int | None = None) -> SplitTree:
        """The tree of these texts, placed, in parts of so many rows; those packed lately are remembered, as class prompts come back."""
        tokens = tokens.cpu()
        key = (max_rows, self._is_compiled, tokens.shape, tokens.numpy().tobytes())
        if key not in self._trees:
            self._trees[key] = self._tree_maker(max_rows)(tokens).to(self.device)
        self._trees.move_to_end(key)
        if len(self._trees) > TREES_KEPT:
            self._trees.popitem(last=False)
        return self._trees[key]

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        """What a tower passes in: autocast, if that is its precision, and its weights made ready for it."""
        is_low = self.precision == "bf16"
        low = torch.autocast(self.device.type, dtype=torch.bfloat16) if is_low else contextlib.nullcontext()
        made_once = contextlib.nullcontext() if torch.compiler.is_compiling() else (self._prepared or self._new_prepared()).used()
        with low, made_once:
            yield

    def _new_prepared(self) -> PreparedWeights:
        """Who recomputes blocks to save memory holds no second copy of their weights either."""
        return PreparedWeights(torch.bfloat16 if self.precision == "bf16" else None, keeps=self._call_block is plainly)


def fingerprint(student: Backbone) -> str | None:
    """What a model's tokenizer makes of a text, padding aside, as eight hex digits: two that differ cannot read each other's prompts."""
    if student.tokenizer is None:
        return None
    ids = student.tokenize([_SAMPLE_TEXT])[0].tolist()
    while len(ids) > 1 and ids[-1] == ids[-2]:
        ids.pop()
    return f"{zlib.crc32(str(ids).encode()):08x}"


def _normalised(features: Tensor) -> Tensor:
    """To length 1, in float32 or better."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def in_blocks(encode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """encode(tokens) [K, D], TEXT_BLOCK of the K texts at a time: for passes without gradient, whose memory this bounds."""
    return torch.cat([encode(block) for block in torch.split(tokens, TEXT_BLOCK)])


def check_same_model(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], may_lack: Sequence[str] = FROZEN) -> None:
    """Raises ConfigError unless names and shapes agree; `may_lack` names what either side may be without."""
    odd = sorted((set(own) ^ set(weights)) - set(may_lack))
    if odd:
        raise ConfigError(f"These weights are of another model: {odd[0]!r} is on one side only ({len(odd)} names differ).")
    for name, weight in weights.items():
        if name not in own or own[name].shape != weight.shape:
            expected = list(own[name].shape) if name in own else "there"
            raise ConfigError(f"These weights are of another model: {name!r} is {list(weight.shape)}, not {expected}.")
