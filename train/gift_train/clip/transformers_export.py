"""A loaded CLIP as transformers' CLIPModel: configuration, weights, processor and tokenizer, for models of which that is all there is.

The inverse of `transformers_folder`. A setting that a CLIPModel has no word for is a reason not to write one, never left out.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.clip.model_config import TOWERS
from gift_train.clip.transformers_folder import TRANSPOSED, FolderTokenizer, pairs

START, END = "<|startoftext|>", "<|endoftext|>"  # as transformers writes them
SPECIAL_TOKENS = {"<start_of_text>": START, "<end_of_text>": END}
ACTIVATIONS = {True: "quick_gelu", False: "gelu"}
FILTERS = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
USUAL_EPS = 1e-5
TEXT_PREFIX = "text."  # of a CustomTextCLIP's names
# Settings of a tower that become a CLIPModel's, or change no feature once training is over.
TOLD = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs", "patch_dropout"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "pad_id", "eos_id"},
}
TOLD["text_cfg"] |= {"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"}
TOLD_OF_BOTH = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}


def obstacle(backbone: Backbone) -> str | None:
    """Why a model is no CLIPModel, in words; None if it is one."""
    model_cfg, network = backbone.config["model_cfg"], backbone.network
    if getattr(network, "logit_bias", None) is not None:
        return "it has a logit bias, as SigLIP does"
    if "multimodal_cfg" in model_cfg:
        return "it has a caption decoder (CoCa)"
    for tower, library in (("vision_cfg", "timm"), ("text_cfg", "hf")):
        if model_cfg[tower].get(f"{library}_model_name"):
            return f"its {tower.removesuffix('_cfg')} tower is {model_cfg[tower][f'{library}_model_name']}, of another library"
    if isinstance(model_cfg["vision_cfg"].get("layers"), list | tuple):
        return "its vision tower is a ResNet"
    size = network.visual.image_size
    if not isinstance(size, int) and len(set(size)) > 1:
        return f"it reads pictures of {' x '.join(map(str, size))} pixels, which are not square"
    return _odd_setting(model_cfg) or _odd_pictures(backbone) or _odd_tokenizer(backbone.tokenizer)


def tokenizer_of(tokenizer: Callable[..., Tensor] | None) -> Any:
    """transformers' tokenizer with the same ids; a text is followed by its end token again, not by 0. Raises ConfigError."""
    if isinstance(tokenizer, FolderTokenizer | HFTokenizer):
        return tokenizer.tokenizer
    if not isinstance(tokenizer, SimpleTokenizer) or _odd_tokenizer(tokenizer) is not None:
        raise ConfigError("This tokenizer has no form of transformers.")
    vocabulary = {SPECIAL_TOKENS.get(token, token): number for token, number in tokenizer.encoder.items() if token}
    merges = [merge for merge in tokenizer.bpe_ranks if len(merge) == 2]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokenizer.context_length)


def config_of(backbone: Backbone) -> CLIPConfig:
    """The configuration of a model without `obstacle`."""
    model_cfg, tokenizer = backbone.config["model_cfg"], tokenizer_of(backbone.tokenizer)
    filled = {name: vars(TOWERS[name](**model_cfg[name])) for name in ("vision_cfg", "text_cfg")}
    vision, text = filled["vision_cfg"], filled["text_cfg"]
    shared = {"hidden_act": ACTIVATIONS[bool(model_cfg.get("quick_gelu", False))], "projection_dim": model_cfg["embed_dim"]}
    image_size, _, _ = backbone.image_settings
    patch_size = vision["patch_size"]
    config = CLIPConfig(
        text_config=_tower(text)
        | shared
        | {
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "num_attention_heads": text["heads"],
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=_tower(vision)
        | shared
        | {
            "image_size": image_size,
            "patch_size": patch_size if isinstance(patch_size, int) else patch_size[0],
            "num_attention_heads": vision["width"] // vision["head_width"],
        },
        projection_dim=model_cfg["embed_dim"],
        logit_scale_init_value=float(backbone.network.logit_scale),
    )
    config.architectures = [CLIPModel.__name__]
    return config


def weights_of(backbone: Backbone, config: CLIPConfig) -> dict[str, Tensor]:
    """The weights by a CLIPModel's names. Raises ConfigError if the two do not fit one another, name by name and shape by shape."""
    with torch.device("meta"):  # names and shapes alone
        theirs = CLIPModel(config).state_dict()
    ours = {name.removeprefix(TEXT_PREFIX): tensor for name, tensor in backbone.network.state_dict().items() if not _is_mask(name)}
    found: dict[str, Tensor] = {}
    for names, name in pairs(theirs):
        tensor = ours.pop(name).detach().cpu()
        parts = tensor.chunk(len(names)) if len(names) > 1 else [tensor.T if name in TRANSPOSED else tensor]
        found |= {part_name: part.reshape(theirs[part_name].shape).contiguous() for part_name, part in zip(names, parts, strict=True)}
    odd = [*ours, *(set(theirs) - set(found))]
    if odd:
        raise ConfigError(f"The model is no CLIPModel: {min(odd)!r} is on one side only.")
    return found


def image_processor_of(backbone: Backbone) -> CLIPImageProcessor:
    """How pictures are made, for a model without `obstacle`."""
    size, mean, std = backbone.image_settings
    resize = backbone.resize_settings
    square = {"height": size, "width": size}
    return CLIPImageProcessor(
        size=square if resize.mode == "squash" else {"shortest_edge": size},
        do_center_crop=resize.mode == "shortest",
        crop_size=square,
        resample=FILTERS[resize.interpolation],
        image_mean=list(mean),
        image_std=list(std),
    )


def save_tokenizer(backbone: Backbone, folder: Path) -> None:
    """The tokenizer's files, which transformers and open_clip's HFTokenizer read; of CLIP's those of transformers before 5, too."""
    tokenizer = tokenizer_of(backbone.tokenizer)
    tokenizer.save_pretrained(folder)
    if isinstance(tokenizer, CLIPTokenizer):
        tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt


def _tower(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": settings["width"],
        "intermediate_size": int(settings["width"] * settings["mlp_ratio"]),
        "num_hidden_layers": settings["layers"],
        "layer_norm_eps": (settings["norm_kwargs"] or {}).get("eps", USUAL_EPS),
    }


def _odd_setting(model_cfg: Mapping[str, Any]) -> str | None:
    """A setting of a tower that is not open_clip's default and that a CLIPModel lacks."""
    for tower, told in TOLD.items():
        settings = TOWERS[tower](**model_cfg[tower])
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if field.name not in told and value != field.default and not _reads_the_end(field.name, value):
                return f"{tower}: {field.name} is {value!r}, which it has no word for"
        if set(settings.norm_kwargs or {}) - {"eps"}:
            return f"{tower}: norm_kwargs is {settings.norm_kwargs!r}, which it has no word for"
    odd = sorted(set(model_cfg) - TOLD_OF_BOTH)
    return f"{odd[0]} is {model_cfg[odd[0]]!r}, which it has no word for" if odd else None


def _reads_the_end(name: str, value: Any) -> bool:
    return name == "pool_type" and value == "eos"  # where a CLIPModel reads a text, too


def _odd_pictures(backbone: Backbone) -> str | None:
    mode = backbone.resize_settings.mode
    return f"its pictures are resized by {mode!r}, which CLIPImageProcessor lacks" if mode == "longest" else None


def _odd_tokenizer(tokenizer: Callable[..., Tensor] | None) -> str | None:
    """Why a tokenizer is not CLIP's; one of open_clip is told by what it does to a text that shows it."""
    if isinstance(tokenizer, FolderTokenizer):
        return None
    if isinstance(tokenizer, HFTokenizer) and isinstance(tokenizer.tokenizer, CLIPTokenizer) and not tokenizer.tokenizer_mode:
        return None if not tokenizer.strip_sep_token else "its tokenizer strips the end of a text"
    if not isinstance(tokenizer, SimpleTokenizer):
        return f"its tokenizer is {type(tokenizer).__name__}, not CLIP's"
    if tokenizer.clean_fn("A, b") != "a, b" or tokenizer.reduction_fn is not None or len(tokenizer.all_special_ids) != len(SPECIAL_TOKENS):
        return "its tokenizer cleans or shortens texts in a way of its own"
    return None


def _is_mask(name: str) -> bool:
    return name.rpartition(".")[2] == "attn_mask"
