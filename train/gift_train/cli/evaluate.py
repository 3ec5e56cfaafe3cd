"""gift-train evaluate. Imports nothing heavy until the command runs."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gift_shared.errors import ConfigError, GiftError
from gift_shared.keys import composed
from gift_shared.manifests import LabelSpace, Manifests, OrderManifest, TaskManifest
from gift_shared.options import takes_options
from gift_train.options import Datasets, EvaluateOptions, is_quick_gelu, label_spaces

if TYPE_CHECKING:
    from gift_train.evaluation.beside import BesideListing, BesideScores
    from gift_train.evaluation.evaluate import Accuracies

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What is asked. order: all tasks whose classes union spaces join; tests: what is evaluated; beside: what is told apart from them."""

    order: Mapping[str, TaskManifest]
    tests: Mapping[str, TaskManifest]
    spaces: tuple[LabelSpace, ...]
    num_learned: int
    beside: "BesideListing"


@takes_options
def evaluate(
    options: EvaluateOptions,
    datasets: Datasets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with full precision.")] = False,
) -> None:
    """Accuracy of a model or a checkpoint: zero-shot classifier from class names and all templates.

    A checkpoint is evaluated as in its run: its model, QuickGELU, precision, batch size, order with its label space, and the method that
    reads it (moe_adapter: adapters and selector). A model that contradicts it is refused.
    """
    exam = _exam(options, datasets)
    from gift_train.training.faults import machine_faults

    with machine_faults():
        found, beside = _evaluated(options, exam)
    # By label space and reading of the weights ("" = the method's own), then dataset; percent.
    readings = {space: by_number[exam.num_learned] for space, by_number in found.items()}
    if as_json:
        spaces = {space: _as_json(of_space) for space, of_space in readings.items()}
        own = exam.spaces[0]
        told = {**spaces.pop(own), "label_space": own, "label_spaces": spaces}
        typer.echo(json.dumps(told | {key: value for key, value in vars(beside).items() if value}, indent=2))
        return
    for line in [*_lines(exam, readings), *_lines_beside(beside)]:
        typer.echo(line)


def _exam(options: EvaluateOptions, datasets: Sequence[str] | None) -> Exam:
    lookup = Manifests(tuple(options.manifests or ()))
    order = _order(options, lookup, is_needed=not datasets)
    tasks = {} if order is None else lookup.tasks_of(order)
    tests = _chosen(lookup, tasks, datasets) if datasets else tasks
    spaces = label_spaces(options.label_space) or ("known" if order is None else order.label_space,)
    if spaces != ("known",):
        from gift_train.evaluation.spellings import warn_of_spellings

        if order is None:
            raise ConfigError(f"Label space {spaces[-1]} joins the classes of an order: give it with --order.")
        for name in tests:
            if name not in tasks:
                raise ConfigError(
                    f"{name} is no task of order {order.name}, whose classes {spaces[-1]} joins. Give another --order, or known."
                )
        warn_of_spellings(tasks, spaces)
    if options.num_learned is not None and "union-seen" not in spaces:
        raise ConfigError(f"--num-learned tells what union-seen joins, and labels are looked for in {', '.join(spaces)} alone.")
    num_learned = _num_learned(options, order) if order is not None and "union-seen" in spaces else 0
    joined = tasks if spaces != ("known",) else tests
    from gift_train.evaluation.beside import list_beside  # takes a while: what is misspelt above is told at once

    beside = list_beside(options, lookup, list(tests))
    return Exam(order=joined, tests=tests, spaces=spaces, num_learned=num_learned, beside=beside)


def _chosen(lookup: Manifests, tasks: Mapping[str, TaskManifest], datasets: Sequence[str]) -> dict[str, TaskManifest]:
    """Datasets by name, as the order words them; names of its tasks, which may be steps of a dataset, too."""
    found = [tasks.get(composed(name)) or lookup.task(name) for name in datasets]
    return {manifest.name: tasks.get(manifest.name, manifest) for manifest in found}


def _order(options: EvaluateOptions, lookup: Manifests, is_needed: bool) -> OrderManifest | None:
    """The order that is asked for, else that of the checkpoint's run, else the mini world's; None if that run's is not needed nor there."""
    if options.order is not None or options.checkpoint is None:
        return lookup.order(options.order or "mini")
    from gift_train.records.reading import reading_of

    reading = reading_of(options.checkpoint)
    if reading is None:
        return lookup.order("mini")
    try:
        return lookup.order(reading.order)
    except GiftError as error:
        if not is_needed:
            _log.warning(
                "%s is of order %r, which is not here: datasets meet their own classes, in their own templates.",
                options.checkpoint,
                reading.order,
            )
            return None
        raise ConfigError(f"{options.checkpoint} is of order {reading.order!r}: {error} Give its --manifests, or --order.") from error


def _num_learned(options: EvaluateOptions, order: OrderManifest) -> int:
    """How many tasks of the order the model has learned. Raises ConfigError where nothing says it, or more than there are."""
    if options.num_learned is not None:
        if options.num_learned > len(order.tasks):
            raise ConfigError(f"--num-learned {options.num_learned}: order {order.name} has {len(order.tasks)} tasks.")
        return options.num_learned
    if options.checkpoint is None:
        return 0
    from gift_train.records.checkpoint import read_resume_point
    from gift_train.records.files import ALL_TASKS
    from gift_train.records.reading import reading_of

    asks = f"give --num-learned, the tasks of order {order.name} that it has learned (0 to {len(order.tasks)})."
    reading = reading_of(options.checkpoint)
    if reading is None:
        raise ConfigError(f"{options.checkpoint} does not say what it has learned, which union-seen depends on: {asks}")
    point = read_resume_point(options.checkpoint)
    is_its_order = composed(Path(reading.order).name.removesuffix(".toml")) == order.name
    if is_its_order and point.task_name == ALL_TASKS:
        return len(order.tasks)
    if not is_its_order or order.tasks[point.task_index : point.task_index + 1] != (point.task_name,):
        raise ConfigError(f"{options.checkpoint} is of order {reading.order}, so what it has learned of {order.name} is not known: {asks}")
    return point.task_index + 1


def _evaluated(options: EvaluateOptions, exam: Exam) -> "tuple[Accuracies, BesideScores]":
    from gift_train.data.loader import resolved_loading
    from gift_train.data.tasks import load_tests
    from gift_train.data.transforms import image_transforms
    from gift_train.distributed import require_one_process
    from gift_train.evaluation.cache import EvaluationCache
    from gift_train.evaluation.evaluate import evaluate_spaces
    from gift_train.evaluation.label_spaces import LabelSpaces
    from gift_train.methods.method_files import load_method_files
    from gift_train.records.restore import Asked, plain_clip, restore

    require_one_process("gift-train evaluate")
    asked = Asked(
        model=options.model,
        pretrained=options.pretrained,
        quick_gelu=is_quick_gelu(options.quick_gelu),
        precision=options.precision,
        device=options.device,
    )
    load_method_files(options.method_files)
    restored = plain_clip(asked) if options.checkpoint is None else restore(options.checkpoint, asked)
    student = restored.student
    if options.compiles:
        from gift_train.clip.compiler import require_compiler

        require_compiler(student.device)
        student.compile_blocks()
    loading = resolved_loading(options.num_workers, options.worker_start_method, student.device)
    student.warn_of_long([prompt for manifest in exam.order.values() for prompt in manifest.prompts])
    transforms, cache = image_transforms(student.image_settings[0], student.resize_settings), options.evaluation_cache
    images = load_tests(list(exam.tests.values()), options.data_root, transforms, options.image_cache_bytes)
    tests = {name: (manifest, images[name]) for name, manifest in exam.tests.items()}
    beside = exam.beside.load(options.data_root, transforms, student, options.image_cache_bytes)
    batch_size = options.batch_size or restored.evaluation_batch_size or 256
    kept = None if cache is None else EvaluationCache(cache, loading)
    spaces = LabelSpaces(exam.spaces, exam.order, (exam.num_learned,))
    found = evaluate_spaces(restored.method, student, tests, spaces, batch_size=batch_size, loading=loading, cache=kept)
    return found, beside.evaluate(restored.method, student, batch_size=batch_size, loading=loading, cache=kept)


def _as_json(readings: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    others = {reading: accuracies for reading, accuracies in readings.items() if reading}
    return {"accuracy": readings[""], "mean": _mean(readings[""]), "readings": others}


def _lines(exam: Exam, readings: Mapping[LabelSpace, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A line for each dataset, and means; a column for each label space, which is named unless it is `known` alone."""
    widths = [max(6, len(space) + 1) if exam.spaces != ("known",) else 6 for space in readings]
    lines = [] if exam.spaces == ("known",) else [" ".join([f"{'':24}", *(f"{s:>{w}}" for s, w in zip(readings, widths, strict=True))])]

    def line(title: str, values: Sequence[float]) -> str:
        return " ".join([f"{title:24}", *(f"{value:{width}.1f}" for value, width in zip(values, widths, strict=True))])

    of_spaces = list(readings.values())
    for name, manifest in exam.tests.items():
        lines.append(line(manifest.display_name, [of_space[""][name] for of_space in of_spaces]))
    for reading in of_spaces[0]:
        lines.append(line(f"mean, {reading}" if reading else "mean", [_mean(of_space[reading]) for of_space in of_spaces]))
    return lines


def _lines_beside(beside: "BesideScores") -> list[str]:
    lines = ["", "beside the order"] if beside.also else []
    lines += [f"{name:24} {accuracy:6.1f}" for name, accuracy in beside.also.items()]
    for name, recalls in beside.retrieval.items():
        lines += ["", f"{'retrieval, ' + name:24} {'R@1':>6} {'R@5':>6} {'R@10':>6}"]
        for direction, by_k in recalls.items():
            lines.append(f"{direction.replace('_', ' '):24} " + " ".join(f"{value:6.1f}" for value in by_k.values()))
    return lines


def _mean(accuracies: Mapping[str, float]) -> float:
    return sum(accuracies.values()) / len(accuracies)
