"""What a CLIP is apart from its weights: open_clip's own document, as open_clip_config.json holds it.

{"model_cfg": the arguments of its class, "preprocess_cfg": how its pictures are made}. Of a loaded model nothing in it is left to a name or
a default: QuickGELU is what the network runs, and no tower asks for weights of its own.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

import open_clip
import torch

from gift_shared.documents import FILE_NAME, Maybe, shape_fault
from gift_shared.errors import ConfigError

ModelConfig = dict[str, Any]
METADATA_KEY = "open_clip_config"  # under which safetensors files of ours hold it
TOWERS = {"vision_cfg": open_clip.CLIPVisionCfg, "text_cfg": open_clip.CLIPTextCfg}
SHAPE = {
    "model_cfg": {
        "embed_dim": int,
        "quick_gelu?": bool,
        "vision_cfg": {},
        "text_cfg": {"tokenizer_kwargs?": Maybe({"bpe_path?": FILE_NAME})},
    },
    "preprocess_cfg?": {"mean?": [float], "std?": [float]},
}
OPENAI_PREPROCESSING = {
    "mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
}  # fmt: skip
# What says nothing of the network that is built, or of the features it computes once it has its weights.
_INDIFFERENT = {
    "tokenizer_kwargs", "tokenizer_mode", "hf_tokenizer_name", "timm_model_pretrained", "hf_model_pretrained", "patch_dropout", "timm_drop",
    "timm_drop_path", "init_logit_scale", "init_logit_bias", "custom_text", "size", "mode",
}  # fmt: skip


def described(model_cfg: Mapping[str, Any], network: torch.nn.Module) -> ModelConfig:
    """The document of a loaded network; `model_cfg` is what it was built from, as open_clip or a folder words it."""
    visual: Any = network.visual
    preprocess_cfg = getattr(visual, "preprocess_cfg", None) or {"size": visual.image_size}
    quick_gelu = bool(model_cfg.get("quick_gelu", False)) and asks_for_activation(model_cfg)
    settings = _without_weights(model_cfg) | {"quick_gelu": quick_gelu}
    return {"model_cfg": settings, "preprocess_cfg": _as_json(preprocess_cfg)}


def build(config: Mapping[str, Any]) -> torch.nn.Module:
    """The network that a document describes, with random weights, in eval mode; of the class that open_clip.create_model would take."""
    settings = _without_weights(config["model_cfg"])
    is_custom = settings.pop("custom_text", False) or bool(settings["text_cfg"].get("hf_model_name"))
    network_class = (open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP) if is_custom else open_clip.CLIP
    network: Any = network_class(**settings)
    told = {key: value for key, value in (config.get("preprocess_cfg") or {}).items() if value is not None}
    network.visual.preprocess_cfg = {"mode": "RGB"} | OPENAI_PREPROCESSING | told | {"size": network.visual.image_size}
    network.eval()
    built: torch.nn.Module = network
    return built


def asks_for_activation(model_cfg: Mapping[str, Any]) -> bool:
    """Whether `quick_gelu` changes the network: not where both towers are of other libraries."""
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    is_plain_vision = not vision.get("timm_model_name") and not isinstance(vision.get("layers"), list | tuple)  # a ResNet has ReLU
    return is_plain_vision or not text.get("hf_model_name") or "multimodal_cfg" in model_cfg


def difference(there: Mapping[str, Any], here: Mapping[str, Any], names: tuple[str, str]) -> str | None:
    """The first thing in which two documents describe other models, in words; `names` are theirs. None if there is none.

    Both are taken with open_clip's defaults; how texts become tokens is not compared. Raises ConfigError for keys that open_clip lacks.
    """
    first, second = _comparable(there, names[0]), _comparable(here, names[1])
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            return f"{key} is {first.get(key)!r} for {names[0]} and {second.get(key)!r} for {names[1]}"
    return None


def check(config: Any, where: str, num_bytes: int | None, holder: str, advice: str) -> None:
    """Whether a document of others is one, and its model can be as large as it says: no more numbers than its weights have bytes.

    where: how errors name the document. holder: what has the `num_bytes`; None if there are none. A tower of another library, named by
    `timm_model_name` or `hf_model_name`, has its sizes from there and is not looked at. Raises: ConfigError.
    """
    if (fault := shape_fault(config, SHAPE)) is not None:
        raise ConfigError(f"{where}{fault}. {advice}")
    for name, values in config.get("preprocess_cfg", {}).items():
        if name in ("mean", "std") and (len(values) != 3 or (name == "std" and min(values) <= 0)):
            raise ConfigError(f"{where}: preprocess_cfg: {name} must be three numbers (std: above 0), found {values}. {advice}")
    model_cfg, fewest = config["model_cfg"], 0.0
    if model_cfg["embed_dim"] < 1:
        raise ConfigError(f"{where}: model_cfg: embed_dim must be above 0, found {model_cfg['embed_dim']}. {advice}")
    vision, text = (_Tower(where, tower, _filled(model_cfg[tower], tower, where), advice) for tower in ("vision_cfg", "text_cfg"))
    if vision.settings["timm_model_name"] is None:
        side, rows = vision.sizes("image_size"), 0
        if not isinstance(vision.settings["layers"], list | tuple):  # a ResNet has no patches
            patch = vision.sizes("patch_size")[0]
            rows = 3 * patch**2 + side[0] * side[-1] // patch**2  # one kernel, and a position for every patch
        fewest += vision.fewest_numbers(rows + model_cfg["embed_dim"])
    if text.settings["hf_model_name"] is None:
        context, words = (text.sizes(name)[0] for name in ("context_length", "vocab_size"))
        fewest += text.fewest_numbers(words + context + model_cfg["embed_dim"]) + context**2  # the causal mask
    if num_bytes is not None and fewest > num_bytes:
        raise ConfigError(f"{where} describes a model of {fewest:.3g} numbers or more, but {holder} holds {num_bytes} bytes. {advice}")


class _Tower:
    """The sizes of a tower, open_clip's defaults included, as far as they bound how large it is."""

    def __init__(self, where: str, name: str, settings: Mapping[str, Any], advice: str) -> None:
        self.settings = settings
        self._where, self._name, self._advice = where, name, advice

    def fewest_numbers(self, rows: int) -> float:
        """A lower bound: `rows` vectors of the width, and in each layer four matrices of attention and two of the MLP."""
        width, mlp_ratio = self.sizes("width")[0], self.sizes("mlp_ratio")[0]
        return rows * width + sum(self.sizes("layers")) * (4 + 2 * mlp_ratio) * width**2

    def sizes(self, name: str) -> list[int]:
        """One size, as a list: an image may have two sides, a ResNet has four stages of layers."""
        value = self.settings[name]
        sizes = list(value) if isinstance(value, list | tuple) else [value]
        kind = float if name == "mlp_ratio" else int
        if not sizes or shape_fault(sizes, [kind]) is not None or min(sizes) <= 0:
            kinds = {int: "a whole number", float: "a number"}
            found = f"{name} must be {kinds[kind]} above 0, found {str(value)[:80]}"
            raise ConfigError(f"{self._where}: model_cfg: {self._name}: {found}. {self._advice}")
        return sizes


def _comparable(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All that decides features, flat, with defaults."""
    model_cfg, compared = config["model_cfg"], dict[str, Any]()
    for name, value in model_cfg.items():
        settings = _filled(value, name, where) if name in TOWERS else value if isinstance(value, Mapping) else {"": value}
        compared |= {f"{name}.{key}".rstrip("."): value for key, value in settings.items()}
    compared["quick_gelu"] = bool(model_cfg.get("quick_gelu", False)) and asks_for_activation(model_cfg)
    told = {key: value for key, value in (config.get("preprocess_cfg") or {}).items() if value is not None}
    compared |= OPENAI_PREPROCESSING | told
    compared["has a logit bias"] = model_cfg.get("init_logit_bias") is not None
    return _as_json({key: value for key, value in compared.items() if key.rpartition(".")[2] not in _INDIFFERENT})


def _filled(settings: Mapping[str, Any], tower: str, where: str) -> dict[str, Any]:
    try:
        return dict(vars(TOWERS[tower](**settings)))
    except TypeError as error:
        raise ConfigError(f"Model {where} could not be loaded: {error}") from error


def _without_weights(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The same model, whose towers of other libraries do not fetch pretrained weights of their own: those of the CLIP come after."""
    settings = copy.deepcopy(dict(model_cfg))
    if settings["vision_cfg"].get("timm_model_name"):
        settings["vision_cfg"]["timm_model_pretrained"] = False
    if settings["text_cfg"].get("hf_model_name"):
        settings["text_cfg"]["hf_model_pretrained"] = False
    return settings


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as a file gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
