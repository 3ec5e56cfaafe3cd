"""A loaded CLIP as a folder: in open_clip's form, and beside it in transformers' where a CLIPModel can be what it is.

Both libraries read the same folder, as many on the hub are; each knows its own files' names.
"""

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from gift_shared.atomic import json_text
from gift_shared.errors import ConfigError
from gift_train.clip import transformers_export, transformers_folder
from gift_train.clip.model import Backbone
from gift_train.clip.model_config import METADATA_KEY
from gift_train.clip.model_folder import CONFIG_FILE, WEIGHTS_FILES
from gift_train.clip.transformers_folder import FolderTokenizer
from gift_train.clip.weights_files import write_tensors

WEIGHTS_FILE, TRANSFORMERS_WEIGHTS_FILE = WEIGHTS_FILES[0], transformers_folder.WEIGHTS_FILES[0]


@dataclass(frozen=True)
class Forms:
    """What was written. why_not_transformers: None if that form was. has_tokenizer: whether the folder brings the tokenizer along."""

    why_not_transformers: str | None
    has_tokenizer: bool


def write_forms(backbone: Backbone, folder: Path, name: str) -> Forms:
    """Write all files of a model into an empty folder.

    Args:
        name: under which open_clip finds the tokenizer, if the folder brings its own: of the repository on the hub where it goes to one.
    Raises: ConfigError for a tokenizer that no folder can hold.
    """
    reason = transformers_export.obstacle(backbone)
    config = copy.deepcopy(backbone.config)
    has_tokenizer = _write_tokenizer(backbone, folder, config["model_cfg"]["text_cfg"], name, is_wanted=reason is None)
    (folder / CONFIG_FILE).write_text(json_text(config), encoding="utf-8")
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in backbone.network.state_dict().items()}
    write_tensors(folder / WEIGHTS_FILE, weights, {METADATA_KEY: _as_weights_tell_it(config)})
    if reason is None:
        theirs = transformers_export.config_of(backbone)
        write_tensors(folder / TRANSFORMERS_WEIGHTS_FILE, transformers_export.weights_of(backbone, theirs), {"format": "pt"})
        theirs.save_pretrained(folder)
        transformers_export.image_processor_of(backbone).save_pretrained(folder)
    return Forms(reason, has_tokenizer)


def _write_tokenizer(backbone: Backbone, folder: Path, text_cfg: dict[str, Any], name: str, *, is_wanted: bool) -> bool:
    """The tokenizer's files if there are any of its own, or they are wanted; changes what the configuration says of it."""
    tokenizer = backbone.tokenizer
    merges = (text_cfg.get("tokenizer_kwargs") or {}).get("bpe_path")
    if isinstance(tokenizer, FolderTokenizer | HFTokenizer):
        transformers_export.save_tokenizer(backbone, folder)
        text_cfg["hf_tokenizer_name"] = name
        return True
    if not isinstance(tokenizer, SimpleTokenizer):
        raise ConfigError(f"The model's tokenizer is {type(tokenizer).__name__}, which open_clip has for names alone and in no folder.")
    if merges is not None and not is_wanted:
        shutil.copyfile(_source_of(backbone) / merges, folder / merges)
        return True
    if is_wanted:
        transformers_export.save_tokenizer(backbone, folder)
    if merges is not None:  # open_clip would look for them in the working directory; with a name it takes transformers' files
        del text_cfg["tokenizer_kwargs"]["bpe_path"]
        text_cfg["hf_tokenizer_name"] = name
    return is_wanted


def _as_weights_tell_it(config: dict[str, Any]) -> str:
    """The model for the metadata of its weights, which are the same whatever the folder is called: without the tokenizer's place.

    One key of metadata and no more: safetensors writes several in any order.
    """
    told = copy.deepcopy(config)
    for key in ("tokenizer_kwargs", "hf_tokenizer_name"):
        told["model_cfg"]["text_cfg"].pop(key, None)
    return json.dumps(told, sort_keys=True)


def _source_of(backbone: Backbone) -> Path:
    """The folder that the model's own files are in."""
    from gift_mini.locations import clip_folder

    return clip_folder() if backbone.name in (None, "mini") else Path(str(backbone.name))
