"""A weights file back as what it was when it was saved: the student's weights, and the method that knows how to read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift_shared.documents import read_json_object
from gift_shared.errors import DataError
from gift_train.clip.model import Backbone
from gift_train.methods.base import Method
from gift_train.methods.registry import method_class
from gift_train.methods.zero_shot import ZeroShot
from gift_train.recipes.typed_table import parse_table
from gift_train.records.checkpoint import load_method_state, load_weights_file


@dataclass(frozen=True, kw_only=True)
class Restored:
    """`evaluation_batch_size` is that of the run, None for a file of no run."""

    method: Method
    evaluation_batch_size: int | None


def plain_clip() -> Restored:
    """What reads weights that no method has added to."""
    return Restored(method=ZeroShot(ZeroShot.Config()), evaluation_batch_size=None)


def restore(path: Path, student: Backbone) -> Restored:
    """Put the weights into the student.

    A checkpoint in its run's folder, RUN/checkpoints/task-*.safetensors, is read by that run's method, which may have added
    parameters and kept state; any other file is read as plain CLIP. Raises: DataError or ConfigError.
    """
    run_file = path.parent.parent / "run.json"
    if path.parent.name != "checkpoints" or not run_file.is_file():
        load_weights_file(path, student)
        return plain_clip()
    record = read_json_object(run_file, {}, DataError, "Restore it from the run.")
    try:
        recipe, num_tasks = record["recipe"], len(record["datasets"])
        chosen, settings = method_class(recipe["method"]), _given(recipe["method_config"])
        batch_size = int(recipe["evaluation_batch_size"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(f"{run_file} does not tell which method made {path.name} ({error!r}). Restore it from the run.") from error
    method = chosen(parse_table(chosen.Config, settings, f"{run_file} [method_config]"))
    method.prepare(student, num_tasks)
    load_weights_file(path, student)
    load_method_state(path, method, student.device)
    return Restored(method=method, evaluation_batch_size=batch_size)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the optional keys a recipe left out, which a resolved recipe holds as None; at any depth."""
    there = {key: value for key, value in settings.items() if value is not None}
    return {key: _given(value) if isinstance(value, dict) else value for key, value in there.items()}
