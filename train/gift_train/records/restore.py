"""A weights file back as what it was when it was saved: the student, and the method that knows how to read it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gift_shared.errors import ConfigError, DataError
from gift_train.clip.description import HUB_PREFIX, MINI, RANDOM, Description, describe, is_named
from gift_train.clip.load import backbone_of, load_backbone
from gift_train.clip.model import Backbone, fingerprint
from gift_train.clip.model_config import ModelConfig, difference
from gift_train.clip.weights_files import config_of_file
from gift_train.methods.base import Method
from gift_train.methods.method_files import method_code
from gift_train.methods.registry import method_class, method_names
from gift_train.methods.zero_shot import ZeroShot
from gift_train.recipes.typed_table import parse_table
from gift_train.records.checkpoint import load_method_state, load_weights_file
from gift_train.records.reading import Reading, reading_of_file, reading_of_run

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user says of a checkpoint; None what the checkpoint is to say."""

    model: str | None = None
    pretrained: str | None = None
    quick_gelu: bool | None = None
    precision: str | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Restored:
    """`evaluation_batch_size` is that of the run, None for a file of no run."""

    student: Backbone
    method: Method
    evaluation_batch_size: int | None = None


def plain_clip(asked: Asked) -> Restored:
    """A model as it is published, read as what no method has added to. Raises ConfigError."""
    student = load_backbone(asked.model or MINI, asked.pretrained, asked.device, asked.precision or "fp32", asked.quick_gelu)
    return Restored(student=student, method=ZeroShot(ZeroShot.Config()))


def restore(path: Path, asked: Asked) -> Restored:
    """A checkpoint as its run reads it.

    A file that a run handed on says which model it is of and how it is read, wherever it lies. One of before, in its run's folder, is read
    as RUN/run.json says; any other file as plain CLIP of the model that is asked for.
    Raises: DataError or ConfigError; the latter too for what is asked and contradicts the checkpoint, before its weights are read.
    """
    told = reading_of_file(path)  # first: it tells what is no such file
    config, reading = config_of_file(path), told or reading_of_run(path)
    if config is not None and reading is not None:
        student = backbone_of(_described(path, config, reading, asked), asked.device, _precision(path, reading, asked))
        if reading.tokens is not None and fingerprint(student) not in (None, reading.tokens):
            raise ConfigError(
                f"{path}: the tokenizer of {student.name} is not the one its run had. Give the model it began with as --model."
            )
    elif reading is not None:
        student = backbone_of(_described_by_run(path, reading, asked), asked.device, _precision(path, reading, asked))
    else:
        _log.warning("%s does not say which model it is of; it is read as plain CLIP, --model %s.", path, asked.model or MINI)
        restored = plain_clip(asked)
        load_weights_file(path, restored.student)
        return restored
    method = _method(path, reading)
    method.prepare(student, reading.num_tasks)
    load_weights_file(path, student)
    if path.with_suffix(".state.safetensors").is_file():
        load_method_state(path, method, student.device)
    elif _reads_what_it_kept(type(method)):
        raise DataError(
            f"{path} is read with what {reading.method} kept, {path.with_suffix('.state.safetensors').name}: copy that file beside it."
        )
    return Restored(student=student, method=method, evaluation_batch_size=reading.evaluation_batch_size)


def _described(path: Path, config: ModelConfig, reading: Reading, asked: Asked) -> Description:
    """The checkpoint's own model, with the tokenizer of the one it began with. Raises ConfigError for what is asked and contradicts it."""
    model = asked.model or reading.model
    if model is None:
        raise ConfigError(f"{path} does not say where its tokenizer is: give the model that its run began with as --model.")
    if asked.model is None and not (model == MINI or model.startswith(HUB_PREFIX) or is_named(model) or Path(model).is_dir()):
        raise ConfigError(f"{path} takes its tokenizer from {model}, which is not here: give the place of that folder as --model.")
    said = {f"--checkpoint {path}": bool(config["model_cfg"].get("quick_gelu", False))}
    begun = asked.pretrained or (RANDOM if is_named(model) else None)
    found = describe(model, begun, asked.quick_gelu, with_weights=False, also=said)
    # A name alone does not say how pictures are made; a tag, a file and a folder do.
    compared = [config, found.config] if begun != RANDOM else [{"model_cfg": one["model_cfg"]} for one in (config, found.config)]
    names = " ".join(["--model", model, *(["--pretrained", asked.pretrained] if asked.pretrained else [])])
    if (contradiction := difference(compared[0], compared[1], (f"--checkpoint {path}", names))) is not None:
        left_out = "Left out, --model and --pretrained are as in its run."
        changed = f"{model} has changed since its run: give it as it was as --model."
        raise ConfigError(f"The checkpoint is of another model: {contradiction}. {left_out if asked.model else changed}")
    return replace(found, config=config)


def _described_by_run(path: Path, reading: Reading, asked: Asked) -> Description:
    """For checkpoints that do not say it themselves. Raises ConfigError."""
    model = asked.model or reading.model or MINI
    pretrained = asked.pretrained or (reading.pretrained if asked.model in (None, reading.model) else None)
    shown = " ".join(["--model", model, *(["--pretrained", pretrained] if pretrained else [])])
    _log.warning("%s does not say which model it is of; it is read as its run.json or the command says, %s.", path, shown)
    quick_gelu = reading.quick_gelu if asked.quick_gelu is None else asked.quick_gelu
    return describe(model, pretrained or (RANDOM if is_named(model) else None), quick_gelu)


def _precision(path: Path, reading: Reading, asked: Asked) -> str:
    if asked.precision not in (None, reading.precision):
        _log.warning("%s is evaluated in %s; its run evaluates in %s.", path, asked.precision, reading.precision)
    return asked.precision or reading.precision


def _method(path: Path, reading: Reading) -> Method:
    """The method that reads the weights. Raises ConfigError for one of a file that is not given, unless any CLIP is read so."""
    code = reading.method_code
    if code is not None and reading.method not in method_names():
        if not reading.is_plain_clip:
            raise ConfigError(f"{path} is read by the method {reading.method!r} of {code['path']}: give that file as --method-file.")
        return ZeroShot(ZeroShot.Config())
    here = method_code(reading.method)
    if code is not None and here is not None and here.sha256 != code["sha256"]:
        _log.warning("%s is read by %s as it is written now, which has changed since its run.", path, here.path)
    chosen = method_class(reading.method)
    return chosen(parse_table(chosen.Config, _given(reading.method_config), f"{path} [method_config]"))


def _reads_what_it_kept(chosen: type[Method]) -> bool:
    """Whether a method keeps something beside the weights and reads images in a way of its own."""
    reads = any(getattr(chosen, hook) is not getattr(Method, hook) for hook in ("readings", "answers"))
    return reads and chosen.load_state_dict is not Method.load_state_dict


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without the optional keys a recipe left out, which a resolved recipe holds as None; at any depth."""
    there = {key: value for key, value in settings.items() if value is not None}
    return {key: _given(value) if isinstance(value, dict) else value for key, value in there.items()}
