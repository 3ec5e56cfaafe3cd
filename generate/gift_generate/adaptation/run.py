"""Adaptation, top to bottom: open the tasks' images, load the model, be sure of the folders, train task after task."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gift_generate.adaptation.model import AdaptedModel
from gift_generate.adaptation.options import AdaptOptions
from gift_generate.adaptation.record import AdaptationFolder
from gift_generate.adaptation.task_images import TaskToLearn, open_tasks
from gift_generate.adaptation.training import train
from gift_generate.rendering.devices import is_out_of_memory
from gift_generate.workers.rank import Worker
from gift_shared.errors import MachineError, first_line
from gift_shared.locks import only_writer
from gift_shared.manifests import Manifests
from gift_shared.preemption import PreemptionNotice


def adapt(
    out: Path, options: AdaptOptions, manifests: Manifests, worker: Worker, tell: Callable[[str], None], notice: PreemptionNotice
) -> list[Path]:
    """Train a LoRA for each of this worker's share of the tasks, into OUT/<task>/; those that are there are left as they are.

    Returns: their folders. Raises what a user can mend before anything is trained.
    """
    tasks = open_tasks(options, manifests, worker)
    if not tasks:
        return []
    tell(f"loading {options.model}")
    model = AdaptedModel(options)
    folders = {task.name: AdaptationFolder(out / task.name, _settings(task, options, model)) for task in tasks}
    for folder in folders.values():
        folder.require_own()
    for task in tasks:
        folder = folders[task.name]
        if folder.is_done:
            tell(f"{task.name} is there")
            continue
        notice.obey(f"{task.name} was not begun")
        folder.bind(model.machine)
        with only_writer(folder.lock, str(folder.path)), _memory_told():
            train(model, task, options, folder, notice)
        model.end()
    return [folder.path for folder in folders.values()]


@contextmanager
def _memory_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            f"A batch does not fit in the device's memory ({first_line(error)}). Give --gradient-checkpointing, or a smaller --batch-size "
            "and another --out."
        ) from error


def _settings(task: TaskToLearn, options: AdaptOptions, model: AdaptedModel) -> Mapping[str, Any]:
    """All that decides a LoRA's bytes; a folder holds one of one setting."""
    return {
        "task": task.name,
        "images_sha256": task.digest(),
        "num_images": len(task.images),
        "rank": options.rank,
        "text_encoder": options.trains_text_encoder,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "caption_dropout": options.caption_dropout,
        "seed": options.seed,
        **model.settings,
    }
