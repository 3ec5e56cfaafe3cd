"""CLIP as the rest of the trainer sees it: load, encode, tokenize, freeze. With `towers`, the only importer of open_clip.

Weights come from safetensors or through `torch.load(weights_only=True)`; no code from a checkpoint ever runs.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import textwrap
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, text_global_pool
from safetensors import SafetensorError
from torch import Tensor

from gift_shared.errors import ConfigError, unknown_name
from gift_train import towers
from gift_train.clip_folder import CONFIG_FILE, check_sizes, read_config
from gift_train.packed_texts import PackedTexts, pack_texts
from gift_train.transforms import Normalise

Precision = Literal["fp32", "tf32", "bf16"]
MINI = "mini"
LOCAL_PREFIX = "local-dir:"
FROZEN = ("logit_scale", "logit_bias")  # never trained (METHODS 1.5)
PACKED_KEPT = 4  # sets of texts whose tree is remembered
COMPILED_KINDS = 64  # of calls to a block, by tower, shapes and gradients; beyond them blocks run uncompiled. A few steps use up torch's 8
_UNREADABLE = (OSError, EOFError, zlib.error, SafetensorError, pickle.UnpicklingError)
_MISFIT = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError)


class Backbone:
    """One CLIP: two towers and the temperature between them. Features are float32 and L2-normalised.

    `precision` rules the towers only: fp32; tf32, whose matrix products on tensor cores keep 10 bits of a mantissa's 23; or bf16,
    autocast over fp32 weights, whose products and activations keep 7. Weights, gradients, losses and the optimizer are fp32 in each.
    """

    def __init__(self, network: torch.nn.Module, tokenizer: Callable[..., Tensor] | None, precision: Precision = "fp32") -> None:
        self.network: Any = network  # open_clip's classes are not typed
        self.tokenizer = tokenizer
        self.precision: Precision = precision
        self._run_block: towers.RunBlock = towers.block_output
        self._normalise: Normalise | None = None
        self._packed_lately: OrderedDict[Any, PackedTexts] = OrderedDict()
        for name, parameter in network.named_parameters():
            if name in FROZEN:
                parameter.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return torch.device(self.network.logit_scale.device)

    @property
    def scale(self) -> Tensor:
        """Exponential of the log parameter `logit_scale`; a scalar without gradient."""
        return torch.exp(self.network.logit_scale.detach())

    @property
    def vocabulary_size(self) -> int:
        return int(self.network.vocab_size)

    @property
    def context_length(self) -> int:
        return int(self.network.context_length)

    @property
    def image_settings(self) -> tuple[int, Sequence[float], Sequence[float]]:
        """Side in pixels, and the mean and standard deviation per channel that images are normalised with."""
        visual = self.network.visual
        settings = getattr(visual, "preprocess_cfg", {})
        mean = settings.get("mean", open_clip.OPENAI_DATASET_MEAN)
        side = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]  # a ResNet has one number
        return side, mean, settings.get("std", open_clip.OPENAI_DATASET_STD)

    def residual_blocks(self) -> dict[str, torch.nn.Module]:
        """The transformer blocks of both towers by tower and number: `visual.transformer.0` ..., `transformer.0` ...

        Raises: ConfigError if a tower is not made of open_clip's residual attention blocks.
        """
        modules = self.network.named_modules()
        blocks = {name.replace(".resblocks", ""): module for name, module in modules if isinstance(module, ResidualAttentionBlock)}
        if len({name.startswith("visual.") for name in blocks}) != 2:
            raise ConfigError("Adapters need a vision and a text transformer of open_clip's residual attention blocks (ViT-B-16, ...).")
        return blocks

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every parameter but the temperature, by its name in the state dict."""
        return {name: parameter for name, parameter in self.network.named_parameters() if name not in FROZEN}

    def weights(self) -> dict[str, Tensor]:
        """The same tensors, detached but not copied: they move with training."""
        return {name: parameter.detach() for name, parameter in self.parameters().items()}

    def weights_copy(self) -> dict[str, Tensor]:
        """A copy of the weights as they are now."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite the weights in place. Raises ConfigError if names or shapes are of another model.

        Buffers (a ResNet's batch statistics) may be left out: the network stays in eval mode, so that they never move.
        """
        own = self.network.state_dict(keep_vars=True)
        _check_same_model(own, weights, may_lack=(*FROZEN, *(name for name, _ in self.network.named_buffers())))
        for name, weight in weights.items():
            own[name].copy_(weight)

    def frozen_copy(self) -> Backbone:
        """A copy that never trains: for teachers."""
        network = copy.deepcopy(self.network).requires_grad_(False).eval()
        network.zero_grad(set_to_none=True)
        frozen = Backbone(network, self.tokenizer, self.precision)
        frozen._run_block = self._run_block
        return frozen

    def compile_blocks(self) -> None:
        """Run the transformer blocks through torch.compile from now on: fused kernels, and other last bits than without.

        The first step of each shape compiles, for a minute or so. Blocks with adapters stay as they are.
        """
        limits = torch._dynamo.config  # cache_size_limit is recompile_limit, by the name that every torch from 2.6 on knows
        limits.cache_size_limit = max(COMPILED_KINDS, limits.cache_size_limit)
        self._run_block = torch.compile(towers.block_output)

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

    def encode_images(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] normalised pixels -> [B, D]."""
        with self._autocast():
            if towers.can_read_images(self.network):
                features = towers.image_features(self.network.visual, images, self._run_block)
            else:
                features = self.network.encode_image(images)
        return F.normalize(features.float(), dim=-1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """[K, L] token ids, L up to the context length -> [K, D].

        Tokens stay on the CPU: what they have in common decides the shapes of the work, and asking a device would make it wait.
        """
        with self._autocast():
            if towers.can_read_texts(self.network):
                features = towers.text_features(self.network, self._packed(tokens), self._run_block)
            elif self._is_causal:
                features = self._causal_text_tower(tokens.to(self.device, non_blocking=True))
            else:
                features = self.network.encode_text(tokens.to(self.device, non_blocking=True))
        return F.normalize(features.float(), dim=-1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """[K, L] on the CPU, padded to the context length; longer texts are cut (see `too_long`)."""
        if self.tokenizer is None:
            raise ConfigError("This model has no tokenizer.")
        return self.tokenizer(list(texts), context_length=self.context_length)

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that do not fit the context with their start and end tokens."""
        encode = getattr(self.tokenizer, "encode", None)
        if encode is None:
            return []
        return [text for text in dict.fromkeys(texts) if len(encode(text)) + 2 > self.context_length]

    def trim(self, tokens: Tensor) -> Tensor:
        """Cut [K, L] on the CPU to the longest text. Exact: under the causal mask nothing after the token that is read matters."""
        if not self._is_causal or not tokens.numel():
            return tokens
        return tokens[:, : int(self._last(tokens).max()) + 1]

    def _packed(self, tokens: Tensor) -> PackedTexts:
        """The tree of these texts, placed; those packed lately are remembered, as class prompts come back at every step."""
        tokens = tokens.cpu()
        key = (tokens.shape, tokens.numpy().tobytes())
        if key not in self._packed_lately:
            self._packed_lately[key] = pack_texts(tokens, self._last(tokens)).to(self.device)
        self._packed_lately.move_to_end(key)
        if len(self._packed_lately) > PACKED_KEPT:
            self._packed_lately.popitem(last=False)
        return self._packed_lately[key]

    def _last(self, tokens: Tensor) -> Tensor:
        """Where open_clip reads each text's feature [K]: its first end token, or the first of its largest ids."""
        if self.network.text_pool_type == "eos":
            return torch.as_tensor((tokens == self.network.text_eos_id).int().argmax(dim=1))
        return tokens.argmax(dim=1)

    @property
    def _is_causal(self) -> bool:
        network = self.network
        return isinstance(network, open_clip.CLIP) and network.attn_mask is not None and network.text_pool_type in ("argmax", "eos")

    def _causal_text_tower(self, tokens: Tensor) -> Tensor:
        # open_clip's encode_text insists on the full context length; the same layers on a shorter one.
        network = self.network
        length = tokens.shape[1]
        hidden = network.token_embedding(tokens) + network.positional_embedding[:length]
        hidden = network.ln_final(network.transformer(hidden, attn_mask=network.attn_mask[:length, :length]))
        pooled = text_global_pool(hidden, tokens, network.text_pool_type, eos_token_id=network.text_eos_id)
        projection = network.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
        return torch.as_tensor(pooled)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def load_backbone(model: str, pretrained: str | None, device: str = "cpu", precision: str = "fp32") -> Backbone:
    """Load a CLIP.

    Args:
        model: `mini`, a folder with open_clip_config.json and weights, or an open_clip name such as ViT-B-16.
        pretrained: with an open_clip name: a tag such as `openai`, a weights file, or `random`. With a folder: None.
        device: anything torch.device takes; `auto` is the accelerator if there is one.
        precision: fp32, tf32 or bf16, see Backbone.
    Raises: ConfigError if there is no such model or precision, or the model's files are incomplete.
    """
    if precision not in get_args(Precision):
        raise ConfigError(unknown_name("precision", precision, get_args(Precision)))
    set_matmul_precision(precision)
    name = _resolve(model)
    if name.startswith(LOCAL_PREFIX):
        if pretrained is not None:
            raise ConfigError(f"--pretrained {pretrained} goes with an open_clip name; {model!r} is a folder and brings its own weights.")
        network, tokenizer = _load_folder(Path(name.removeprefix(LOCAL_PREFIX)))
    else:
        network, tokenizer = _load_named(name, pretrained)
    if getattr(network, "logit_bias", None) is not None:
        raise ConfigError(f"{model!r} has a logit bias (SigLIP); the methods here are defined for CLIP's softmax losses.")
    return Backbone(network.to(pick_device(device)).eval(), tokenizer, cast("Precision", precision))


def pick_device(device: str) -> torch.device:
    """`auto` or any torch device string; the one place that chooses. Raises ConfigError if it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"Device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen


def set_matmul_precision(precision: str) -> None:
    """TF32 on or off, explicitly: PyTorch's own default differs between matrix products and convolutions."""
    allow = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = allow
    torch.backends.cudnn.allow_tf32 = allow


def backbone_from_tensors(weights: Mapping[str, Tensor]) -> Backbone:
    """An OpenAI-style CLIP (QuickGELU) whose sizes are read off its tensors. It has no tokenizer.

    Raises: ConfigError if the names or shapes are not such a model's.
    """
    try:
        vision_width, _, patch, _ = weights["visual.conv1.weight"].shape
        positions = weights["visual.positional_embedding"].shape[0]
        context_length, text_width = weights["positional_embedding"].shape
        sizes = {
            "embed_dim": weights["text_projection"].shape[1],
            "vision_cfg": open_clip.CLIPVisionCfg(
                image_size=patch * round((positions - 1) ** 0.5),
                patch_size=patch,
                width=vision_width,
                layers=_num_blocks(weights, "visual.transformer.resblocks."),
                head_width=64,
            ),
            "text_cfg": open_clip.CLIPTextCfg(
                context_length=context_length,
                vocab_size=weights["token_embedding.weight"].shape[0],
                width=text_width,
                heads=text_width // 64,
                layers=_num_blocks(weights, "transformer.resblocks."),
            ),
        }
        with torch.device("meta"):  # takes no memory, whatever the sizes
            outline = open_clip.CLIP(**sizes, quick_gelu=True).state_dict()
    except _MISFIT as error:
        raise ConfigError(f"These tensors are not a CLIP of the OpenAI form: {error!r}.") from error
    _check_same_model(outline, weights)
    backbone = Backbone(open_clip.CLIP(**sizes, quick_gelu=True).eval(), None)
    backbone.load_weights(weights)
    return backbone


def _check_same_model(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], may_lack: Sequence[str] = FROZEN) -> None:
    odd = sorted((set(own) ^ set(weights)) - set(may_lack))
    if odd:
        raise ConfigError(f"These weights are of another model: {odd[0]!r} is on one side only ({len(odd)} names differ).")
    for name, weight in weights.items():
        if name not in own or own[name].shape != weight.shape:
            expected = list(own[name].shape) if name in own else "there"
            raise ConfigError(f"These weights are of another model: {name!r} is {list(weight.shape)}, not {expected}.")


def _num_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def _resolve(model: str) -> str:
    """An open_clip name, or `local-dir:` and a folder."""
    if model == MINI:
        from gift_mini.locations import clip_folder

        return f"{LOCAL_PREFIX}{clip_folder()}"
    if model.startswith(LOCAL_PREFIX):
        return model
    if Path(model).is_dir():
        return f"{LOCAL_PREFIX}{model}"
    if model not in open_clip.list_models():
        raise ConfigError(f"{unknown_name('model', model, [MINI, *open_clip.list_models()])} A folder of your own is given by its path.")
    return model


def _load_folder(folder: Path) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    config = read_config(folder)["model_cfg"]
    name, text = f"{LOCAL_PREFIX}{folder}", config["text_cfg"]
    with _telling(str(folder)):
        towers_settings = vars(open_clip.CLIPVisionCfg(**config["vision_cfg"])), vars(open_clip.CLIPTextCfg(**text))
    check_sizes(folder, config["embed_dim"], *towers_settings)
    network = _create(name, require_pretrained=True)
    overrides = {}
    merges = (text.get("tokenizer_kwargs") or {}).get("bpe_path")
    if merges is not None:
        # A path in a folder that moves must be relative to the folder; open_clip would look in the working directory.
        overrides["bpe_path"] = str(folder / merges)
        if not (folder / merges).is_file():
            raise ConfigError(f"{folder / CONFIG_FILE} names the tokenizer merges {merges!r}, which are not in {folder}.")
    with _telling(f"{folder}, tokenizer {merges or ''}".strip()):
        return network, open_clip.get_tokenizer(name, **overrides)


def _load_named(name: str, pretrained: str | None) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ConfigError(f"--model {name} needs --pretrained: a weights file, 'random', or one of {', '.join(tags) or '(no tags)'}.")
    if pretrained == "random":
        return _create(name), open_clip.get_tokenizer(name)
    settings = open_clip.get_pretrained_cfg(name, pretrained)
    if not settings and not Path(pretrained).is_file():
        raise ConfigError(f"{unknown_name('pretrained tag', pretrained, [*tags, 'random'])} There is no file of that name either.")
    # open_clip only warns where a tag was trained with QuickGELU and the plain model name says GELU (ViT-B-16 with openai).
    use_quick_gelu = bool(settings.get("quick_gelu", False))
    return _create(name, pretrained=pretrained, force_quick_gelu=use_quick_gelu), open_clip.get_tokenizer(name)


def _create(name: str, **options: object) -> Any:
    with _telling(name.removeprefix(LOCAL_PREFIX)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="QuickGELU mismatch")
        return open_clip.create_model(name, precision="fp32", device="cpu", weights_only=True, **options)


@contextlib.contextmanager
def _telling(model: str) -> Iterator[None]:
    """open_clip asserts, divides and looks up where a configuration or a file is not right; all of it is told as one error."""
    try:
        yield
    except (*_UNREADABLE, *_MISFIT) as error:
        reason = textwrap.shorten(str(error) or repr(error), 1000)
        raise ConfigError(f"Model {model} could not be loaded: {reason}") from error
