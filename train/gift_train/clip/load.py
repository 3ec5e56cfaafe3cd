"""A CLIP from its files: by open_clip's name, from a folder, from the hub, or from bare tensors.

Weights come from safetensors, through `torch.load(weights_only=True)` or from OpenAI's archives by a reader of our own; no code from a
checkpoint ever runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import open_clip
import torch
from torch import Tensor

from gift_shared.errors import ConfigError, unknown_name
from gift_shared.hub import is_unreachable
from gift_train.clip import transformers_folder
from gift_train.clip.description import LOCAL_PREFIX, MISFIT, Description, describe, telling
from gift_train.clip.model import Backbone, Precision, check_same_model
from gift_train.clip.model_config import build, described
from gift_train.clip.model_folder import CONFIG_FILE, weights_file
from gift_train.clip.tokenizers import load_tokenizer
from gift_train.clip.weights_files import put_tensors, put_weights


def load_backbone(
    model: str,
    pretrained: str | None,
    device: str = "cpu",
    precision: str = "fp32",
    quick_gelu: bool | None = None,
    check: Callable[[Backbone], None] | None = None,
) -> Backbone:
    """Load a CLIP.

    Args:
        model: `mini`, a folder (open_clip's form or that of transformers' CLIPModel), `hf-hub:owner/name`, or an open_clip name (ViT-B-16).
        pretrained: with an open_clip name: a tag such as `openai`, a weights file (OpenAI's .pt too), or `random`. Else None.
        device: anything torch.device takes; `auto` is the accelerator if there is one.
        precision: fp32, tf32 or bf16, see Backbone.
        quick_gelu: whether it was trained with QuickGELU, where neither names nor files say so.
        check: asked of the model before any weights are read or fetched; what it raises is raised.
    Raises: ConfigError if there is no such model or precision, or the model's files are incomplete or contradict each other.
    """
    description = describe(model, pretrained, quick_gelu)
    backbone = backbone_of(description, device, precision)
    if check is not None:
        check(backbone)
    with telling(f"{description.name} from {pretrained}" if pretrained else description.name):
        _load_weights(backbone.network, description)
    return backbone


def backbone_of(description: Description, device: str = "cpu", precision: str = "fp32") -> Backbone:
    """The model that is described, with random weights, and its tokenizer. Raises ConfigError."""
    if precision not in get_args(Precision):
        raise ConfigError(unknown_name("precision", precision, get_args(Precision)))
    set_matmul_precision(precision)
    network = _network(description)
    config = described(description.config["model_cfg"], network)
    return Backbone(network.to(pick_device(device)), _tokenizer(description), cast("Precision", precision), config, description.name)


def _network(description: Description) -> Any:
    tower = description.config["model_cfg"]["text_cfg"].get("hf_model_name")
    with telling(description.name):
        try:
            return build(description.config)
        except OSError as error:
            if tower is None or not is_unreachable(error):
                raise
            raise ConfigError(
                f"Model {description.name} has a text tower of transformers, {tower}, whose configuration could not be had from the hub."
                f" Where there is a network, run `hf download {tower} config.json`, and bring its cache (HF_HOME) here."
            ) from error


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
    except MISFIT as error:
        raise ConfigError(f"These tensors are not a CLIP of the OpenAI form: {error!r}.") from error
    check_same_model(outline, weights)
    network = build({"model_cfg": sizes})
    backbone = Backbone(network, None, config=described(sizes, network))
    backbone.load_weights(weights)
    return backbone


def _num_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def _load_weights(network: torch.nn.Module, description: Description) -> None:
    if description.is_transformers_form:
        assert description.folder is not None
        put_tensors(network, transformers_folder.read_weights(description.folder), str(description.folder), description.name)
    elif description.folder is not None:
        put_weights(network, weights_file(description.folder), description.name)
    elif description.weights is not None:
        settings = open_clip.get_pretrained_cfg(description.name, description.weights)
        put_weights(network, Path(open_clip.download_pretrained(settings) if settings else description.weights), description.name)


def _tokenizer(description: Description) -> Callable[..., Tensor]:
    folder = description.folder
    if folder is None:
        return load_tokenizer(description.name)
    if description.is_transformers_form:
        return transformers_folder.FolderTokenizer(folder, description.config["model_cfg"])
    overrides = {}
    merges = (description.config["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}).get("bpe_path")
    if merges is not None:
        # A path in a folder that moves must be relative to the folder; open_clip would look in the working directory.
        overrides["bpe_path"] = str(folder / merges)
        if not (folder / merges).is_file():
            raise ConfigError(f"{folder / CONFIG_FILE} names the tokenizer merges {merges!r}, which are not in {folder}.")
    return load_tokenizer(f"{LOCAL_PREFIX}{folder}", **overrides)
