"""What a model folder says of its CLIP, checked before open_clip builds anything from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gift_shared.documents import FILE_NAME, Maybe, read_json_object, shape_fault
from gift_shared.errors import ConfigError

CONFIG_FILE = "open_clip_config.json"
_ADVICE = "Copy the folder again; its configuration must describe the weights beside it."
_CONFIG = {
    "model_cfg": {
        "embed_dim": int,
        "vision_cfg": {},
        "text_cfg": {"tokenizer_kwargs?": Maybe({"bpe_path?": FILE_NAME})},
    },
    "preprocess_cfg?": {"mean?": [float], "std?": [float]},
}


def read_config(folder: Path) -> dict[str, Any]:
    """`folder`'s open_clip_config.json. Raises: ConfigError if it is missing or not a CLIP's."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"Model folder {folder} has no {CONFIG_FILE}; it must hold that file and open_clip_model.safetensors.")
    config = read_json_object(path, _CONFIG, ConfigError, _ADVICE)
    for name, values in config.get("preprocess_cfg", {}).items():
        if name in ("mean", "std") and (len(values) != 3 or (name == "std" and min(values) <= 0)):
            raise ConfigError(f"{path}: preprocess_cfg: {name} must be three numbers (std: above 0), found {values}. {_ADVICE}")
    return config


def check_sizes(folder: Path, embed_dim: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Whether the model can be as large as its configuration says: it cannot hold more numbers than the folder has bytes.

    `vision` and `text` are the settings of the towers, open_clip's defaults included. A tower of another library, named by
    `timm_model_name` or `hf_model_name`, has its sizes from there and is not looked at. Raises: ConfigError.
    """
    path, fewest = folder / CONFIG_FILE, 0.0
    if embed_dim < 1:
        raise ConfigError(f"{path}: model_cfg: embed_dim must be above 0, found {embed_dim}. {_ADVICE}")
    if vision["timm_model_name"] is None:
        side, rows = _sizes(path, "vision_cfg", vision, "image_size"), 0
        if not isinstance(vision["layers"], list | tuple):  # a ResNet has no patches
            patch = _sizes(path, "vision_cfg", vision, "patch_size")[0]
            rows = 3 * patch**2 + side[0] * side[-1] // patch**2  # one kernel, and a position for every patch
        fewest += _fewest_numbers(path, "vision_cfg", vision, rows + embed_dim)
    if text["hf_model_name"] is None:
        context, words = (_sizes(path, "text_cfg", text, name)[0] for name in ("context_length", "vocab_size"))
        fewest += _fewest_numbers(path, "text_cfg", text, words + context + embed_dim) + context**2  # the causal mask
    num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if fewest > num_bytes:
        raise ConfigError(f"{path} describes a model of {fewest:.3g} numbers or more, but {folder} holds {num_bytes} bytes. {_ADVICE}")


def _fewest_numbers(path: Path, tower: str, settings: Mapping[str, Any], rows: int) -> float:
    """A lower bound: `rows` vectors of the tower's width, and in each layer four matrices of attention and two of the MLP."""
    width, mlp_ratio = _sizes(path, tower, settings, "width")[0], _sizes(path, tower, settings, "mlp_ratio")[0]
    return rows * width + sum(_sizes(path, tower, settings, "layers")) * (4 + 2 * mlp_ratio) * width**2


def _sizes(path: Path, tower: str, settings: Mapping[str, Any], name: str) -> list[int]:
    """One size of a tower, as a list: an image may have two sides, a ResNet has four stages of layers."""
    value = settings[name]
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    kind = float if name == "mlp_ratio" else int
    if not sizes or shape_fault(sizes, [kind]) is not None or min(sizes) <= 0:
        kinds = {int: "a whole number", float: "a number"}
        raise ConfigError(f"{path}: model_cfg: {tower}: {name} must be {kinds[kind]} above 0, found {str(value)[:80]}. {_ADVICE}")
    return sizes
