"""A folder in transformers' form: config.json of a CLIPModel, weights, preprocessor_config.json, tokenizer. Read as an open_clip model.

What a file says and open_clip cannot express is refused, never guessed. No code from the folder runs. transformers is imported here and in
`transformers_export` alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gift_shared.documents import FILE_NAME, read_json_object
from gift_shared.errors import ConfigError, first_line
from gift_train.clip.model_config import ModelConfig, check
from gift_train.clip.model_folder import num_bytes

CONFIG_FILE = "config.json"
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # the first there is
PICTURES_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # of transformers 5: it may hold the other's content
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")  # one of them
_ADVICE = "Copy the folder again, with config.json, weights, preprocessor_config.json and tokenizer as they were saved."
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
_USUAL_EPS = 1e-5
_READ_AT_THE_LARGEST = 2  # `eos_token_id` of configurations before transformers 4.32: texts are read at their largest id

# Names of a CLIPModel, and open_clip's; both towers' blocks are below.
NAMES = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
}
TRANSPOSED = ("text_projection", "visual.proj")  # open_clip multiplies by them from the right
BLOCKS = {"text_model.encoder.layers": "transformer.resblocks", "vision_model.encoder.layers": "visual.transformer.resblocks"}
BLOCK_NAMES = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj")  # which are one matrix in open_clip, in this order
_POSITION_COUNTS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")

# Keys of preprocessor_config.json. What is on the left is read here; what is on the right changes no pixel.
_PICTURE_KEYS = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "default_to_square", "use_square_size",
}  # fmt: skip
_INDIFFERENT_KEYS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "data_format", "input_data_format",
    "return_tensors", "device", "disable_grouping", "_valid_processor_keys", "transformers_version",
}  # fmt: skip
_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def read_config(folder: Path, *, with_weights: bool = True) -> ModelConfig:
    """The folder's model as open_clip words it. Raises ConfigError for what is no CLIPModel, or none that open_clip can run alike.

    with_weights: whether the weights must be there too.
    """
    path = folder / CONFIG_FILE
    told = read_json_object(path, {"model_type?": str}, ConfigError, _ADVICE)
    if told.get("model_type") != "clip" or told.get("architectures") not in (None, ["CLIPModel"]):
        found = f"{(told.get('architectures') or ['none'])[0]} of model_type {told.get('model_type')!r}"
        raise ConfigError(f"{path} describes {found}; of transformers' models a CLIPModel can be read, any other in open_clip's form.")
    model_cfg = _model_cfg(_Said(path, _with_defaults(told, path)))
    config = {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_cfg(folder, model_cfg["vision_cfg"]["image_size"])}
    check(config, str(path), num_bytes(folder) if with_weights and _weights_paths(folder) else None, str(folder), _ADVICE)
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The folder's weights by open_clip's names. Raises ConfigError, or what torch and safetensors raise for damaged files."""
    found: dict[str, Tensor] = {}
    for path in _weights_paths(folder):
        found |= load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    return converted(found, str(folder))


def converted(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A CLIPModel's weights by open_clip's names. Raises ConfigError for names that are not a CLIPModel's."""
    left = {name: tensor for name, tensor in weights.items() if name not in _POSITION_COUNTS}
    ours: dict[str, Tensor] = {}
    for theirs, name in pairs(left):
        parts = [left.pop(part) for part in theirs]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        ours[name] = tensor.T if name in TRANSPOSED else tensor
    if left:
        raise ConfigError(f"{where} holds no CLIPModel: {min(left)!r} is no name of its weights ({len(left)} are not).")
    return ours


class FolderTokenizer:
    """The folder's own tokenizer, called as open_clip's are. Ids are transformers' up to the end; after it stand zeros, as in CLIP."""

    def __init__(self, folder: Path, model_cfg: Mapping[str, Any]) -> None:
        from transformers import AutoTokenizer

        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise ConfigError(f"{folder} has no tokenizer ({' or '.join(TOKENIZER_FILES)}). {_ADVICE}")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers raise Exception itself for files they cannot read
            raise ConfigError(f"The tokenizer in {folder} could not be loaded: {first_line(error)}. {_ADVICE}") from error
        text_cfg = model_cfg["text_cfg"]
        self.context_length = int(text_cfg["context_length"])
        texts = self._ids(["a", "b c"], self.context_length)
        ends = {ids[-1] for ids in texts if ids}
        read = [text_cfg.get("eos_id") if text_cfg.get("pool_type") == "eos" else max(ids, default=None) for ids in texts]
        if len(ends) != 1 or set(read) != ends or any(ids.count(ids[-1]) > 1 for ids in texts):
            raise ConfigError(f"The tokenizer in {folder} does not end a text where its model reads it: 'a' is {texts[0]}. {_ADVICE}")
        if len(self.tokenizer) > text_cfg["vocab_size"]:
            raise ConfigError(f"The tokenizer in {folder} has {len(self.tokenizer)} tokens, its model {text_cfg['vocab_size']}. {_ADVICE}")

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """K texts -> [K, context length]; those too long are cut before their end token."""
        length = context_length or self.context_length
        rows = self._ids([texts] if isinstance(texts, str) else list(texts), length)
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def encode(self, text: str) -> list[int]:
        """Ids without start and end, however many."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _ids(self, texts: list[str], length: int) -> list[list[int]]:
        return list(self.tokenizer(texts, truncation=True, max_length=length)["input_ids"]) if texts else []


def _with_defaults(told: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration with transformers' defaults, and what older versions wrote in other places."""
    from transformers import CLIPConfig

    try:
        filled: dict[str, Any] = CLIPConfig.from_dict(told).to_dict()
    except Exception as error:  # its checks raise many kinds
        raise ConfigError(f"{path} is not the configuration of a CLIPModel: {first_line(error)}. {_ADVICE}") from error
    return filled


class _Said:
    """Values of a configuration, each as it must be."""

    def __init__(self, path: Path, table: Mapping[str, Any]) -> None:
        self.path = path
        self.table = table

    def below(self, tower: str) -> "_Said":
        inner = self.table.get(tower)
        return _Said(self.path, {f"{tower}.{key}": value for key, value in inner.items()} if isinstance(inner, dict) else {})

    def count(self, key: str) -> int:
        value = self.table.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise ConfigError(f"{self.path}: {key} must be a whole number above 0, found {str(value)[:80]}. {_ADVICE}")
        return value

    def refuse(self, what: str) -> ConfigError:
        return ConfigError(f"{self.path}: {what}, which open_clip's CLIP cannot do alike.")


def _model_cfg(said: _Said) -> dict[str, Any]:
    vision, text = said.below("vision_config"), said.below("text_config")
    kinds = {str(tower.table.get(f"{name}.hidden_act")) for tower, name in ((vision, "vision_config"), (text, "text_config"))}
    if len(kinds) > 1 or not kinds <= set(_ACTIVATIONS):
        raise said.refuse(f"its towers are activated by {' and '.join(sorted(kinds))}")
    if vision.count("vision_config.num_channels") != 3:
        raise said.refuse(f"its pictures have {vision.table['vision_config.num_channels']} channels")
    vision_cfg = {"image_size": vision.count("vision_config.image_size"), "patch_size": vision.count("vision_config.patch_size")}
    vision_width, vision_heads, vision_tower = _tower(vision, "vision_config")
    if vision_width % vision_heads:
        raise said.refuse(f"its width {vision_width} is not parted by {vision_heads} heads")
    _, text_heads, text_tower = _tower(text, "text_config")
    words = text.count("text_config.vocab_size")
    text_cfg = {"context_length": text.count("text_config.max_position_embeddings"), "vocab_size": words}
    end = text.table.get("text_config.eos_token_id")
    if not isinstance(end, int):
        raise said.refuse(f"texts end with {str(end)[:80]}")
    # The largest id of all is found either way; open_clip's own models say nothing then.
    pooling = {} if end in (_READ_AT_THE_LARGEST, words - 1) else {"pool_type": "eos", "eos_id": end}
    return {
        "embed_dim": said.count("projection_dim"),
        "quick_gelu": _ACTIVATIONS[kinds.pop()],
        "vision_cfg": vision_cfg | vision_tower | {"head_width": vision_width // vision_heads},
        "text_cfg": text_cfg | text_tower | {"heads": text_heads} | pooling,
    }


def _tower(said: _Said, name: str) -> tuple[int, int, dict[str, Any]]:
    """Width, heads, and the settings that both kinds of towers have."""
    width, inner = said.count(f"{name}.hidden_size"), said.count(f"{name}.intermediate_size")
    ratio = inner / width
    if int(width * ratio) != inner:  # open_clip rounds down
        ratio = (inner + 0.5) / width
    settings: dict[str, Any] = {"width": width, "layers": said.count(f"{name}.num_hidden_layers"), "mlp_ratio": ratio}
    eps = said.table.get(f"{name}.layer_norm_eps")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ConfigError(f"{said.path}: {name}.layer_norm_eps must be between 0 and 1, found {str(eps)[:80]}. {_ADVICE}")
    if eps != _USUAL_EPS:
        settings["norm_kwargs"] = {"eps": eps}
    return width, said.count(f"{name}.num_attention_heads"), settings


def _preprocess_cfg(folder: Path, image_size: int) -> dict[str, Any]:
    """How pictures are made, from preprocessor_config.json, in open_clip's words. Raises ConfigError for what it has no words for."""
    path = folder / PICTURES_FILE
    if path.is_file():
        told = read_json_object(path, {}, ConfigError, _ADVICE)
    elif (folder / PROCESSOR_FILE).is_file():
        path = folder / PROCESSOR_FILE
        told = read_json_object(path, {"image_processor": {}}, ConfigError, _ADVICE)["image_processor"]
    else:
        raise ConfigError(f"{folder} has no {PICTURES_FILE}, which says how its pictures are made. {_ADVICE}")
    told = {key: value for key, value in told.items() if value is not None}

    def refused(what: str) -> ConfigError:
        return ConfigError(f"{path}: {what}, which is not understood here. Give the model in open_clip's form, with a preprocess_cfg.")

    kind = told.get("image_processor_type", told.get("feature_extractor_type"))
    if kind not in _PROCESSORS:
        raise refused(f"pictures are made by {kind!r}")
    if unknown := sorted(key for key, value in told.items() if key not in _PICTURE_KEYS | _INDIFFERENT_KEYS and value is not False):
        raise refused(f"the key {unknown[0]!r}")
    if not all(told.get(key, True) is True for key in ("do_resize", "do_rescale")):
        raise refused("do_resize or do_rescale is off")
    if abs(float(told.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise refused(f"rescale_factor is {told['rescale_factor']}")
    if (resample := told.get("resample", 3)) not in _FILTERS:
        raise refused(f"resample is {resample}")
    mean, std = told.get("image_mean", [0.48145466, 0.4578275, 0.40821073]), told.get("image_std", [0.26862954, 0.26130258, 0.27577711])
    if told.get("do_normalize", True) is not True:
        mean, std = [0.0] * 3, [1.0] * 3
    return {"mean": mean, "std": std, "interpolation": _FILTERS[resample], "resize_mode": _resize_mode(told, image_size, refused)}


def _resize_mode(told: Mapping[str, Any], image_size: int, refused: Any) -> str:
    """`shortest` or `squash`; both end in the square that the model reads."""
    square, crop = {"height": image_size, "width": image_size}, told.get("crop_size", 224)
    size = told.get("size", 224)
    if isinstance(size, int):
        is_square = told.get("default_to_square", False) or told.get("use_square_size", False)
        size = {"height": size, "width": size} if is_square else {"shortest_edge": size}
    is_cropped = told.get("do_center_crop", True) is True
    if is_cropped and crop not in (image_size, square):
        raise refused(f"crop_size is {crop} where the model reads {image_size} pixels")
    if size == square:
        return "squash"
    if size == {"shortest_edge": image_size} and is_cropped:
        return "shortest"
    raise refused(f"size is {told.get('size')} where the model reads {image_size} pixels{'' if is_cropped else ', without a crop'}")


def _weights_paths(folder: Path) -> list[Path]:
    chosen = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if chosen is None:
        raise ConfigError(f"{folder} has no weights ({' or '.join(WEIGHTS_FILES[::2])}). {_ADVICE}")
    if chosen.suffix != ".json":
        return [chosen]
    names = sorted(set(read_json_object(chosen, {"weight_map": {str: FILE_NAME}}, ConfigError, _ADVICE)["weight_map"].values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ConfigError(f"{chosen} names {missing[0]}, which is not in {folder}. {_ADVICE}")
    return [folder / name for name in names]


def pairs(weights: Mapping[str, Tensor]) -> Iterator[tuple[list[str], str]]:
    """(names of a CLIPModel, the name in open_clip) of all that are there whole."""
    for theirs, ours in NAMES.items():
        for end in ("", ".weight", ".bias"):
            if theirs + end in weights:
                yield [theirs + end], ours + end
    for prefix, blocks in BLOCKS.items():
        numbers = {match[1] for name in weights if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
        for number in sorted(numbers, key=int):
            for end in ("weight", "bias"):
                for theirs, ours in BLOCK_NAMES.items():
                    if (name := f"{prefix}.{number}.{theirs}.{end}") in weights:
                        yield [name], f"{blocks}.{number}.{ours}.{end}"
                parts = [f"{prefix}.{number}.self_attn.{part}.{end}" for part in ATTENTION_PARTS]
                if all(part in weights for part in parts):
                    yield parts, f"{blocks}.{number}.attn.in_proj_{end}"
