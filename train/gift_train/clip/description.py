"""What `--model`, `--pretrained` and `--quick-gelu` name: the whole configuration, before any weight is loaded.

Whether a model runs QuickGELU changes every number and no shape. It is taken from whoever says it, all of whom must agree: the model's
name, the tag, the weights file, a configuration beside it, the flag. Where nobody does it is asked for.
"""

import contextlib
import logging
import os
import pickle
import textwrap
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from safetensors import SafetensorError

from gift_shared.errors import ConfigError, unknown_name
from gift_train.clip import hub, transformers_folder
from gift_train.clip.model_config import OPENAI_PREPROCESSING, ModelConfig, asks_for_activation, difference
from gift_train.clip.model_folder import CONFIG_FILE, read_config
from gift_train.clip.openai_files import is_openai_file
from gift_train.clip.weights_files import BIG_VISION, config_of_file

MINI = "mini"
HUB_PREFIX = hub.PREFIX
LOCAL_PREFIX = "local-dir:"
RANDOM = "random"
UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, SafetensorError, pickle.UnpicklingError)
MISFIT = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, ImportError)
_ACTIVATIONS = {True: "QuickGELU", False: "GELU"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Description:
    """A model that can be built; its weights and tokenizer can be had by the names in it.

    name: as `--model` takes it on this machine, wherever the working directory is. folder: where its files are, None for open_clip's names.
    weights: a file, or a tag of open_clip, or None for random ones or a folder's. flag_decides: only the flag says that it runs QuickGELU.
    """

    name: str
    config: ModelConfig
    folder: Path | None = None
    weights: str | None = None
    flag_decides: bool = False

    @property
    def is_transformers_form(self) -> bool:
        """Whether its folder is one of transformers'."""
        return self.folder is not None and not (self.folder / CONFIG_FILE).is_file()


def describe(
    model: str,
    pretrained: str | None,
    quick_gelu: bool | None = None,
    *,
    with_weights: bool = True,
    also: Mapping[str, bool] | None = None,
) -> Description:
    """Look up a model; reads configurations, and of weights files what they say of themselves.

    Args:
        model, pretrained: see `load.load_backbone`.
        quick_gelu: what `--quick-gelu` says, None if it is not given.
        with_weights: whether a folder's must be there, and those of a repository of the hub be downloaded.
        also: who else says whether it runs QuickGELU, e.g. a checkpoint.
    Raises: ConfigError for names that are not there, and where two say different things of one model or nobody says what must be known.
    """
    with telling(pretrained or model):
        folder, name = _folder(model, with_weights=with_weights)
        if folder is None:
            return _named(model, pretrained, quick_gelu, also or {})
        if pretrained is not None:
            raise ConfigError(f"--pretrained {pretrained} goes with an open_clip name; {model!r} is a folder and brings its own weights.")
        is_open_clips = (folder / CONFIG_FILE).is_file() or not (folder / transformers_folder.CONFIG_FILE).is_file()
        config = (read_config if is_open_clips else transformers_folder.read_config)(folder, with_weights=with_weights)
        said = {f"--model {model}": bool(config["model_cfg"].get("quick_gelu", False)), **(also or {})}
        _quick_gelu(config["model_cfg"], said, quick_gelu, model)
        return Description(name=name, config=config, folder=folder)


@contextlib.contextmanager
def telling(model: str) -> Iterator[None]:
    """open_clip asserts, divides and looks up where a configuration or a file is not right; all of it is told as one error."""
    try:
        yield
    except (*UNREADABLE, *MISFIT) as error:
        reason = textwrap.shorten(str(error) or repr(error), 1000)
        raise ConfigError(f"Model {model} could not be loaded: {reason}") from error


def is_named(model: str) -> bool:
    """Whether it is a name of open_clip, which says nothing of weights."""
    return model in open_clip.list_models()


def decided_by_flag(model: str, pretrained: str | None, quick_gelu: str | None) -> bool | None:
    """True where `--quick-gelu yes` and nothing else says that the model runs QuickGELU, so that records must; else None."""
    return True if quick_gelu == "yes" and describe(model, pretrained, True).flag_decides else None


def stated_config(name: str, model_cfg: Mapping[str, Any], path: Path) -> tuple[dict[str, bool], Mapping[str, Any] | None]:
    """What a weights file says of itself: whether QuickGELU, by who says it; and a preprocess_cfg. Raises ConfigError for another model."""
    configs = {str(path): config_of_file(path)}
    beside = path.parent / CONFIG_FILE
    if beside.is_file():
        configs[str(beside)] = read_config(path.parent, with_weights=False)
    said: dict[str, bool] = {}
    preprocess_cfg: Mapping[str, Any] | None = None
    for who, config in configs.items():
        if config is None:
            continue
        named = {"model_cfg": dict(model_cfg) | {"quick_gelu": config["model_cfg"].get("quick_gelu", False)}}
        found = difference({"model_cfg": config["model_cfg"]}, named, (who, f"--model {name}"))
        if found is not None:
            raise ConfigError(f"--pretrained {path} is of another model: {found}.")
        said[who] = bool(config["model_cfg"].get("quick_gelu", False))
        preprocess_cfg = preprocess_cfg or config.get("preprocess_cfg")
    if path.suffix in BIG_VISION:
        said[f"{path}, of big_vision,"] = False
    elif is_openai_file(path):
        said[f"{path}, by OpenAI's marks,"] = True
        preprocess_cfg = preprocess_cfg or OPENAI_PREPROCESSING
    return said, preprocess_cfg


def _folder(model: str, *, with_weights: bool) -> tuple[Path | None, str]:
    """The folder a model's files are in, None for a name of open_clip; and its name for the record."""
    if model == MINI:
        from gift_mini.locations import clip_folder

        return clip_folder(), MINI
    if model.startswith(hub.PREFIX):
        return hub.snapshot(model, with_weights=with_weights), str(hub.parse_name(model))
    if model.startswith(LOCAL_PREFIX) or Path(model).is_dir():
        folder = Path(model.removeprefix(LOCAL_PREFIX))
        return folder, os.path.abspath(folder)
    if not is_named(model):
        known = unknown_name("model", model, [MINI, *open_clip.list_models()])
        on_the_hub = (
            f", {hub.PREFIX}{model} is a repository of the hub" if model.count("/") == 1 else f", one of the hub as {hub.PREFIX}owner/name"
        )
        raise ConfigError(f"{known} A folder of your own is given by its path{on_the_hub}.")
    return None, model


def _named(name: str, pretrained: str | None, quick_gelu: bool | None, also: Mapping[str, bool]) -> Description:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ConfigError(f"--model {name} needs --pretrained: a weights file, 'random', or one of {', '.join(tags) or '(no tags)'}.")
    model_cfg: dict[str, Any] = open_clip.get_model_config(name)
    said = {f"--model {name}": True} if model_cfg.get("quick_gelu") else {}
    preprocess_cfg: Mapping[str, Any] | None = None
    settings, is_file = open_clip.get_pretrained_cfg(name, pretrained), Path(pretrained).is_file()
    if pretrained == RANDOM:
        said = said or ({} if also or quick_gelu is not None else {f"--model {name}": False})
    elif settings:
        # open_clip only warns where a tag was trained with QuickGELU and the plain model name says GELU (ViT-B-16 with openai).
        said = said or {f"--pretrained {pretrained}": bool(settings.get("quick_gelu", False))}
        preprocess_cfg = {key: value for key, value in settings.items() if key in OPENAI_PREPROCESSING}
    elif is_file:
        more, preprocess_cfg = stated_config(name, model_cfg, Path(pretrained))
        said |= more
    else:
        raise ConfigError(f"{unknown_name('pretrained tag', pretrained, [*tags, RANDOM])} There is no file of that name either.")
    said |= also
    model_cfg["quick_gelu"] = _quick_gelu(model_cfg, said, quick_gelu, f"{pretrained} nor the name {name}")
    if preprocess_cfg is None:
        preprocess_cfg = _usual_preprocessing(name, pretrained) if is_file and not settings else OPENAI_PREPROCESSING
    return Description(
        name=name,
        config={"model_cfg": model_cfg, "preprocess_cfg": dict(preprocess_cfg)},
        weights=None if pretrained == RANDOM else pretrained,
        flag_decides=not said and bool(quick_gelu),
    )


def _quick_gelu(model_cfg: Mapping[str, Any], said: Mapping[str, bool], flag: bool | None, silent: str) -> bool:
    """Whether the model runs QuickGELU, as all say; `silent`: who does not, where nobody does. Raises ConfigError."""
    if not asks_for_activation(model_cfg):
        if flag:
            raise ConfigError("--quick-gelu yes: both towers of this model are of other libraries, which have no QuickGELU. Leave it out.")
        return False
    if flag is not None:
        said = {**said, f"--quick-gelu {'yes' if flag else 'no'}": flag}
    if not said:
        raise ConfigError(
            f"Neither {silent} says whether the weights were trained with QuickGELU: give --quick-gelu yes (OpenAI, MetaCLIP, DFN)"
            " or --quick-gelu no (most of LAION and DataComp; open_clip's own training unless told)."
        )
    (first, value), *others = said.items()
    for who, other in others:
        if other != value:
            told = f"{first} says {_ACTIVATIONS[value]}, {who} says {_ACTIVATIONS[other]}"
            raise ConfigError(f"{told}. Weights were trained with one of them.")
    return value


def _usual_preprocessing(name: str, pretrained: str) -> dict[str, Any]:
    """How pictures are made for a name's published weights, for a file that does not say; OpenAI's way where they differ, which is told."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    kinds: list[dict[str, Any]] = []
    for tag in tags:
        settings = open_clip.get_pretrained_cfg(name, tag)
        kind = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items() if key in OPENAI_PREPROCESSING}
        kinds += [kind] if kind not in kinds else []
    if len(kinds) == 1:
        return kinds[0]
    if len(kinds) > 1:
        _log.warning(
            "%s does not say how its pictures are made, and weights of %s differ in it: made as OpenAI's. An %s beside it would say.",
            pretrained,
            name,
            CONFIG_FILE,
        )
    return dict(OPENAI_PREPROCESSING)
