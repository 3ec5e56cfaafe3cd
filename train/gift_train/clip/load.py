"""A CLIP from its files: by open_clip's name, from a folder, or from bare tensors.

Weights come from safetensors, through `torch.load(weights_only=True)` or from OpenAI's archives by a reader of our own; no code from a
checkpoint ever runs.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import open_clip
import torch
from safetensors import SafetensorError
from torch import Tensor

from gift_shared.errors import ConfigError, unknown_name
from gift_train.clip.model import Backbone, Precision, check_same_model
from gift_train.clip.model_config import build, described
from gift_train.clip.model_folder import CONFIG_FILE, check_sizes, read_config
from gift_train.clip.openai_files import openai_weights
from gift_train.clip.tokenizers import load_tokenizer

MINI = "mini"
LOCAL_PREFIX = "local-dir:"
_UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, SafetensorError, pickle.UnpicklingError)
_MISFIT = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, ImportError)


def load_backbone(model: str, pretrained: str | None, device: str = "cpu", precision: str = "fp32") -> Backbone:
    """Load a CLIP.

    Args:
        model: `mini`, a folder with open_clip_config.json and weights, or an open_clip name such as ViT-B-16.
        pretrained: with an open_clip name: a tag such as `openai`, a weights file (OpenAI's .pt too), or `random`. With a folder: None.
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
        folder = Path(name.removeprefix(LOCAL_PREFIX))
        model_cfg = read_config(folder)["model_cfg"]
        network, tokenizer = _load_folder(folder)
    else:
        model_cfg = open_clip.get_model_config(name)
        network, tokenizer = _load_named(name, pretrained)
    return Backbone(network.to(pick_device(device)).eval(), tokenizer, cast("Precision", precision), described(model_cfg, network))


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
    """TF32 on or off, explicitly: PyTorch's own default differs between matrix products and convolutions.

    Off with bf16 too, whose towers are cast: what is fp32 beside them, similarities and losses, stays fp32.
    """
    allow = precision == "tf32"
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
            "vision_cfg": {
                "image_size": patch * round((positions - 1) ** 0.5),
                "patch_size": patch,
                "width": vision_width,
                "layers": _num_blocks(weights, "visual.transformer.resblocks."),
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": context_length,
                "vocab_size": weights["token_embedding.weight"].shape[0],
                "width": text_width,
                "heads": text_width // 64,
                "layers": _num_blocks(weights, "transformer.resblocks."),
            },
            "quick_gelu": True,
        }
        with torch.device("meta"):  # takes no memory, whatever the sizes
            outline = build({"model_cfg": sizes}).state_dict()
    except _MISFIT as error:
        raise ConfigError(f"These tensors are not a CLIP of the OpenAI form: {error!r}.") from error
    check_same_model(outline, weights)
    network = build({"model_cfg": sizes})
    backbone = Backbone(network, None, config=described(sizes, network))
    backbone.load_weights(weights)
    return backbone


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
    return network, load_tokenizer(name, **overrides)


def _load_named(name: str, pretrained: str | None) -> tuple[torch.nn.Module, Callable[..., Tensor]]:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ConfigError(f"--model {name} needs --pretrained: a weights file, 'random', or one of {', '.join(tags) or '(no tags)'}.")
    if pretrained == "random":
        return _create(name), load_tokenizer(name)
    settings = open_clip.get_pretrained_cfg(name, pretrained)
    if not settings and not Path(pretrained).is_file():
        raise ConfigError(f"{unknown_name('pretrained tag', pretrained, [*tags, 'random'])} There is no file of that name either.")
    if not settings:
        with _telling(f"{name} from {pretrained}"):
            weights = openai_weights(Path(pretrained))
        if weights is not None:
            return _with_openai_weights(name, pretrained, weights), load_tokenizer(name)
    # open_clip only warns where a tag was trained with QuickGELU and the plain model name says GELU (ViT-B-16 with openai).
    use_quick_gelu = bool(settings.get("quick_gelu", False))
    return _create(name, pretrained=pretrained, force_quick_gelu=use_quick_gelu), load_tokenizer(name)


def _with_openai_weights(name: str, pretrained: str, weights: Mapping[str, Tensor]) -> torch.nn.Module:
    with _silent_about_missing_weights():
        network: torch.nn.Module = _create(name, force_quick_gelu=True)
    own = network.state_dict()
    try:
        check_same_model(own, weights, may_lack=[key for key in own if key.endswith("num_batches_tracked")])  # counts nobody reads
    except ConfigError as error:
        raise ConfigError(f"{pretrained} holds no {name}. {error}") from error
    network.load_state_dict(weights, strict=False)  # halves become floats
    return network


def _create(name: str, **options: object) -> Any:
    with _telling(name.removeprefix(LOCAL_PREFIX)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="QuickGELU mismatch")
        return open_clip.create_model(name, precision="fp32", device="cpu", weights_only=True, **options)


@contextlib.contextmanager
def _silent_about_missing_weights() -> Iterator[None]:
    """open_clip warns that a model without its own weights is random; here they come right after."""

    def is_other(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    logging.getLogger().addFilter(is_other)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_other)


@contextlib.contextmanager
def _telling(model: str) -> Iterator[None]:
    """open_clip asserts, divides and looks up where a configuration or a file is not right; all of it is told as one error."""
    try:
        yield
    except (*_UNREADABLE, *_MISFIT) as error:
        reason = textwrap.shorten(str(error) or repr(error), 1000)
        raise ConfigError(f"Model {model} could not be loaded: {reason}") from error
