"""What a CLIP is apart from its weights: open_clip's own document, as open_clip_config.json holds it.

{"model_cfg": the arguments of its class, "preprocess_cfg": how its pictures are made}. Nothing in it is left to a name or a default:
QuickGELU is what the network runs, and no tower asks for weights of its own.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU

ModelConfig = dict[str, Any]


def described(model_cfg: Mapping[str, Any], network: torch.nn.Module) -> ModelConfig:
    """The document of a loaded network; `model_cfg` is what it was built from, as open_clip or a folder words it."""
    visual: Any = network.visual
    preprocess_cfg = getattr(visual, "preprocess_cfg", None) or {"size": visual.image_size}
    settings = without_weights(model_cfg) | {"quick_gelu": uses_quick_gelu(network)}
    return {"model_cfg": settings, "preprocess_cfg": _as_json(preprocess_cfg)}


def build(config: Mapping[str, Any]) -> torch.nn.Module:
    """The network that a document describes, with random weights; what open_clip.create_model makes of the same folder."""
    settings = without_weights(config["model_cfg"])
    is_custom = settings.pop("custom_text", False) or bool(settings["text_cfg"].get("hf_model_name"))
    network_class = (open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP) if is_custom else open_clip.CLIP
    network: Any = network_class(**settings)
    filled = {"size": network.visual.image_size, "mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    network.visual.preprocess_cfg = filled | dict(config.get("preprocess_cfg", {}))
    network.eval()
    built: torch.nn.Module = network
    return built


def uses_quick_gelu(network: torch.nn.Module) -> bool:
    """Whether anything in the network is activated by QuickGELU; towers of other libraries never are."""
    return any(isinstance(module, QuickGELU) for module in network.modules())


def without_weights(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
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
