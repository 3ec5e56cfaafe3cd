"""Whole run state as safetensors with JSON metadata: written beside, renamed, never pickled.

After a task: `task-01-<name>.safetensors`, plain weights under open_clip's own names, which open_clip loads as they are, and
`task-01-<name>.state.safetensors` where the method keeps something between tasks. Inside a task: `progress/`, the last two.
"""

import errno
import json
import logging
import os
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gift_shared.atomic import atomic_path
from gift_shared.errors import DataError
from gift_train.backbone import Backbone
from gift_train.loop import Training

KEEP_PROGRESS = 2
METADATA_KEY = "gift"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a run a checkpoint was taken. `metrics_bytes`: length of metrics.jsonl then; what follows is done again."""

    task_index: int
    task_name: str
    next_step: int
    metrics_bytes: int
    train_seconds: float


def task_file(folder: Path, task_index: int, task_name: str) -> Path:
    """The weights handed on by a task."""
    return folder / f"task-{task_index + 1:02d}-{task_name}.safetensors"


def save_task(folder: Path, place: Place, student: Backbone, method_state: Mapping[str, Tensor]) -> None:
    """Save what a task hands on. The weights come last: once they are there, the task is done."""
    path = task_file(folder, place.task_index, place.task_name)
    if method_state:
        _save(path.with_suffix(".state.safetensors"), method_state, place)
    _save(path, student.network.state_dict(), place)


def load_task(folder: Path, task_index: int, task_name: str, student: Backbone) -> tuple[Place, dict[str, Tensor]]:
    """Put a finished task's weights into the student; returns its place and the method's state. Raises DataError."""
    path = task_file(folder, task_index, task_name)
    weights, place = _load(path, student.device)
    student.load_weights(weights)
    return place, load_method_state(path, student.device)


def load_method_state(path: Path, device: torch.device) -> dict[str, Tensor]:
    """What the method kept beside the weights at `path`; nothing for most methods. Raises DataError."""
    state_file = path.with_suffix(".state.safetensors")
    return _load(state_file, device)[0] if state_file.is_file() else {}


def load_weights_file(path: Path, student: Backbone) -> None:
    """Put the weights of any safetensors file with open_clip's names into the student. Raises DataError or ConfigError."""
    if not path.is_file():
        raise DataError(f"No checkpoint at {path}.")
    try:
        student.load_weights(load_file(path, device=str(student.device)))
    except SafetensorError as error:
        raise DataError(f"{path} is not a readable safetensors file: {error}.") from error


def read_place(path: Path) -> Place:
    """The metadata of a checkpoint alone. Raises DataError if it is not one of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return _place(file.metadata(), path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable checkpoint: {error}. Remove it and run again.") from error


def save_progress(folder: Path, place: Place, training: Training) -> None:
    """Save everything the next step depends on, then drop all but the last two."""
    tensors = {f"student/{name}": tensor for name, tensor in training.student.network.state_dict().items()}
    for number, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in state.items()}
    tensors |= {f"method/{name}": tensor for name, tensor in training.method.state_dict().items()}
    tensors |= {f"random/{name}": tensor for name, tensor in random_state().items()}
    name = f"task-{place.task_index + 1:02d}-step-{place.next_step:06d}.safetensors"
    _save(folder / "progress" / name, tensors, place)
    for path in _progress_files(folder)[:-KEEP_PROGRESS]:
        path.unlink()


def load_progress(folder: Path, task_index: int, training: Training) -> Place | None:
    """Go on inside a task: load the newest readable progress of it into `training`. None if there is none."""
    for path in reversed(_progress_files(folder)):
        try:
            place = read_place(path)
        except DataError as error:
            _log.warning("%s Trying the one before.", error)
            continue
        if place.task_index == task_index:
            tensors, _ = _load(path, torch.device("cpu"))
            _restore(tensors, training)
            return place
    return None


def clear_progress(folder: Path) -> None:
    """Remove the progress of a task that is done."""
    for path in _progress_files(folder):
        path.unlink()


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch (CPU and CUDA) from one seed; deterministic cuDNN (METHODS 1.10)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, Tensor]:
    """The states of all generators `seed_everything` seeds, as tensors."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words]),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state |= {f"cuda/{number}": tensor for number, tensor in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Take back what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    version, *words = state["python"].tolist()
    random.setstate((version, tuple(words), next(iter(state["python_gauss"].tolist()), None)))
    position, has_gauss, cached = state["numpy_rest"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    for name, tensor in state.items():
        if name.startswith("cuda/") and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensor, int(name.removeprefix("cuda/")))


def _restore(tensors: Mapping[str, Tensor], training: Training) -> None:
    training.student.load_weights(_under(tensors, "student/"))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "optimizer/").items():
        number, key = name.split("/", 1)
        state.setdefault(int(number), {})[key] = tensor
    groups = training.optimizer.state_dict()["param_groups"]
    training.optimizer.load_state_dict({"state": state, "param_groups": groups})
    device = training.student.device
    training.method.load_state_dict({name: tensor.to(device) for name, tensor in _under(tensors, "method/").items()})
    set_random_state(_under(tensors, "random/"))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _progress_files(folder: Path) -> list[Path]:
    return sorted((folder / "progress").glob("task-*-step-*.safetensors"))


def _save(path: Path, tensors: Mapping[str, Tensor], place: Place) -> None:
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={METADATA_KEY: json.dumps(asdict(place)), "format": "pt"})
        except SafetensorError as error:
            if "os error 28" in str(error):  # the library tells a full disk in words only
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise


def _load(path: Path, device: torch.device) -> tuple[dict[str, Tensor], Place]:
    place = read_place(path)
    return load_file(path, device=str(device)), place


def _place(metadata: dict[str, Any] | None, path: Path) -> Place:
    try:
        return Place(**json.loads((metadata or {})[METADATA_KEY]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is a safetensors file but not a checkpoint of a run: its metadata lacks {METADATA_KEY!r}.") from error
