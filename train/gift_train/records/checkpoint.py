"""Whole run state as safetensors with JSON metadata: written beside, renamed, never pickled.

After a task: `task-01-<name>.safetensors`, plain weights under open_clip's own names, which open_clip loads as they are, with the model
and how it is read in the metadata; and `task-01-<name>.state.safetensors` where the method keeps something between tasks.
Inside a task: `progress/`, the last two.
"""

import json
import logging
import math
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gift_shared.errors import ConfigError, DataError
from gift_train.clip.model import Backbone
from gift_train.clip.model_config import METADATA_KEY as CONFIG_KEY
from gift_train.clip.weights_files import write_tensors
from gift_train.distributed import SINGLE, Ranks
from gift_train.methods.base import Method
from gift_train.records.files import ALL_TASKS
from gift_train.records.reading import READING_KEY, Reading

KEEP_PROGRESS = 2
METADATA_KEY = "gift"
CHECKSUM_KEY = "gift_crc32"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where in a run a checkpoint was taken. `metrics_bytes`: length of metrics.jsonl then; what follows is done again."""

    task_index: int
    task_name: str
    next_step: int
    metrics_bytes: int
    train_seconds: float


class TrainingState(Protocol):
    """What the loop works on, as far as a checkpoint holds it."""

    @property
    def method(self) -> Method: ...
    @property
    def student(self) -> Backbone: ...
    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def ranks(self) -> Ranks: ...


def task_file(folder: Path, task_index: int, task_name: str) -> Path:
    """The weights handed on by a task."""
    return folder / f"task-{task_index + 1:02d}-{task_name}.safetensors"


def finished_tasks(folder: Path, tasks: Sequence[str]) -> dict[int, Path]:
    """The weights that are there, by the zero-based index of the task that handed them on; of all at once, by the last one's."""
    at_once = task_file(folder, 0, ALL_TASKS)
    if at_once.is_file():
        return {len(tasks) - 1: at_once}
    files = {index: task_file(folder, index, name) for index, name in enumerate(tasks)}
    return {index: path for index, path in files.items() if path.is_file()}


def save_task(
    folder: Path, point: ResumePoint, student: Backbone, method_state: Mapping[str, Tensor], reading: Reading | None = None
) -> None:
    """Save what a task hands on, with the model and how it is read. The weights come last: once they are there, the task is done."""
    path = task_file(folder, point.task_index, point.task_name)
    if method_state:
        _save(path.with_suffix(".state.safetensors"), method_state, point)
    about = {CONFIG_KEY: json.dumps(student.config, sort_keys=True)} if student.config else {}
    _save(path, student.network.state_dict(), point, about if reading is None else about | reading.as_metadata())


def load_task(path: Path, student: Backbone, method: Method | None = None, ranks: Ranks = SINGLE) -> ResumePoint:
    """Put a finished task's weights into the student, and what the method kept into it, if one is given. Raises DataError.

    The main rank reads the files, which the others need not see.
    """
    weights, point = _load(path, student.device) if ranks.is_main else ({}, None)
    found = ranks.broadcast_object(lambda: point)
    assert found is not None
    weights = ranks.broadcast_tensors(weights)
    with _fitting(path):
        student.load_weights(weights)
    if method is not None:
        load_method_state(path, method, student.device, ranks)
    return found


def load_method_state(path: Path, method: Method, device: torch.device, ranks: Ranks = SINGLE) -> None:
    """Give the method what it kept beside the weights at `path`; nothing for most methods. Raises DataError."""
    state_file = path.with_suffix(".state.safetensors")
    state = _load(state_file, device)[0] if ranks.is_main and state_file.is_file() else {}
    state = {name: tensor.to(device, copy=True) for name, tensor in ranks.broadcast_tensors(state).items()}
    with _fitting(state_file):
        method.load_state_dict(state)


def load_weights_file(path: Path, student: Backbone) -> None:
    """Put the weights of any safetensors file with open_clip's names into the student. Raises DataError."""
    if not path.is_file():
        raise DataError(f"No checkpoint at {path}.")
    weights = _read_tensors(path, student.device)
    with _fitting(path):
        student.load_weights(weights)


def read_resume_point(path: Path) -> ResumePoint:
    """The metadata of a checkpoint alone. Raises DataError if it is not one of ours."""
    if not path.is_file():
        raise DataError(f"No checkpoint at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return _point(file.metadata(), path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable checkpoint: {error}. Remove it and run again.") from error


def save_progress(folder: Path, point: ResumePoint, training: TrainingState) -> None:
    """Save everything the next step depends on, then drop all but the last two."""
    tensors = {f"student/{name}": tensor for name, tensor in training.student.network.state_dict().items()}
    for number, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in state.items()}
    tensors |= {f"method/{name}": tensor for name, tensor in training.method.state_dict().items()}
    tensors |= {f"random/{name}": tensor for name, tensor in random_state(training.student.device).items()}
    name = f"task-{point.task_index + 1:02d}-step-{point.next_step:06d}.safetensors"
    _save(folder / "progress" / name, tensors, point)
    # Beyond this point lies at most what could not be read when the run went on from before it.
    kept = [path for path in _progress_files(folder) if path.name <= name][-KEEP_PROGRESS:]
    for path in set(_progress_files(folder)).difference(kept):
        path.unlink()


def load_progress(folder: Path, task_index: int, training: TrainingState) -> ResumePoint | None:
    """Go on inside a task: load the newest readable progress of it into `training`, on all ranks. None if there is none.

    Raises: DataError for a file that reads well and is of another run.
    """
    ranks = training.ranks
    found = _newest_progress(folder, task_index) if ranks.is_main else None
    told = ranks.broadcast_object(lambda: None if found is None else (found[0], found[1]))
    if told is None:
        return None
    path, point = told
    tensors = ranks.broadcast_tensors(None if found is None else found[2])
    with _fitting(path):
        _restore(tensors, training)
    return point


def clear_progress(folder: Path) -> None:
    """Remove the progress of a task that is done."""
    for path in _progress_files(folder):
        path.unlink()


def checksum(head: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of a text and of all tensors in order of their names: a file's format would not notice a flipped bit."""
    found = zlib.crc32(head.encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].cpu().flatten().view(torch.uint8).numpy().data, zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch (CPU and CUDA) from one seed; deterministic cuDNN (METHODS 1.10)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that training on `device` draws from, as tensors."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words]),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Take back what `random_state` gave, on this device or another of its kind."""
    torch.set_rng_state(state["torch"])
    version, *words = state["python"].tolist()
    random.setstate((version, tuple(words), next(iter(state["python_gauss"].tolist()), None)))
    position, has_gauss, cached = state["numpy_rest"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _newest_progress(folder: Path, task_index: int) -> tuple[Path, ResumePoint, dict[str, Tensor]] | None:
    for path in reversed(_progress_files(folder)):
        try:
            tensors, point = _load(path, torch.device("cpu"))
        except DataError as error:
            _log.warning("%s Trying the one before.", error)
            continue
        if point.task_index == task_index:
            return path, point, tensors
    return None


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """What is raised while a file's tensors are put where they belong means that the file is of something else."""
    try:
        yield
    except (ConfigError, KeyError, ValueError, TypeError, LookupError, OverflowError, RuntimeError) as error:
        reason = str(error) if isinstance(error, ConfigError) else repr(error)
        raise DataError(f"{path} does not fit this run: {reason} Remove it or take the right one, and run again.") from error


def _restore(tensors: Mapping[str, Tensor], training: TrainingState) -> None:
    training.student.load_weights(_under(tensors, "student/"))
    groups = training.optimizer.state_dict()["param_groups"]
    state = _optimizer_state(_under(tensors, "optimizer/"), list(training.parameters.values()))
    training.optimizer.load_state_dict({"state": state, "param_groups": groups})
    device = training.student.device
    training.method.load_state_dict({name: tensor.to(device, copy=True) for name, tensor in _under(tensors, "method/").items()})
    set_random_state(_under(tensors, "random/"), device)


def _optimizer_state(tensors: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[int, dict[str, Tensor]]:
    """`<number>/<name>` back to what AdamW wants of a parameter it has moved; one without a gradient yet has nothing."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split("/", 1)
        state.setdefault(int(number), {})[key] = tensor.clone()
    for place, kept in state.items():
        if not 0 <= place < len(parameters):
            raise ValueError(f"optimizer/{place} belongs to none of {len(parameters)} parameters")
        shapes = {"step": torch.Size(), "exp_avg": parameters[place].shape, "exp_avg_sq": parameters[place].shape}
        found = {key: tensor.shape for key, tensor in kept.items()}
        if found != shapes or not all(tensor.is_floating_point() for tensor in kept.values()):
            raise ValueError(f"optimizer/{place} holds {found}, not {shapes}")
    return state


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _progress_files(folder: Path) -> list[Path]:
    return sorted((folder / "progress").glob("task-*-step-*.safetensors"))


def _save(path: Path, tensors: Mapping[str, Tensor], point: ResumePoint, about: Mapping[str, str] | None = None) -> None:
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {METADATA_KEY: json.dumps(asdict(point)), "format": "pt", **(about or {})}
    metadata[CHECKSUM_KEY] = checksum(_told(metadata), here)
    write_tensors(path, here, metadata)


def _load(path: Path, device: torch.device) -> tuple[dict[str, Tensor], ResumePoint]:
    point = read_resume_point(path)
    return _read_tensors(path, device), point


def _read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """On the CPU they lie in the file itself: what is kept must be copied, or the process dies (SIGBUS) with a file that is cut.

    Raises: DataError for what is no safetensors file, or whose bytes are not those that were written. Files of others have no checksum.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable safetensors file: {error}. Copy it again, or remove it.") from error
    expected = metadata.get(CHECKSUM_KEY)
    if expected is not None and checksum(_told(metadata), tensors) != expected:
        raise DataError(f"{path} is damaged: its bytes are not those that were written (CRC-32). Copy it again, or remove it.")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _told(metadata: Mapping[str, str]) -> str:
    """What the checksum covers beside the tensors. Files of before have the first alone."""
    return "".join(metadata.get(key, "") for key in (METADATA_KEY, CONFIG_KEY, READING_KEY))


def _point(metadata: dict[str, Any] | None, path: Path) -> ResumePoint:
    try:
        point = ResumePoint(**json.loads((metadata or {})[METADATA_KEY]))
        for name, kind in get_type_hints(ResumePoint).items():
            if type(getattr(point, name)) is not kind or (kind is not str and not 0 <= getattr(point, name) < math.inf):
                raise ValueError(f"{name} = {getattr(point, name)!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is a safetensors file but not a checkpoint of a run: its metadata lacks or garbles {METADATA_KEY!r} ({error})."
        ) from error
    return point
