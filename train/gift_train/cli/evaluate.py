"""gift-train evaluate. Imports nothing heavy until the command runs."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from gift_shared.errors import ConfigError, GiftError
from gift_shared.options import takes_options
from gift_train.options import Datasets, EvaluateOptions, is_quick_gelu

if TYPE_CHECKING:
    from gift_shared.manifests import Manifests, OrderManifest, TaskManifest
    from gift_train.evaluation.beside import BesideScores


@takes_options
def evaluate(
    options: EvaluateOptions,
    datasets: Datasets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with full precision.")] = False,
) -> None:
    """Accuracy of a model or a checkpoint: zero-shot classifier from class names and all templates.

    A checkpoint is evaluated as in its run: its model, QuickGELU, precision, batch size, order, and the method that reads it (moe_adapter:
    adapters and selector). A model that contradicts it is refused.
    """
    from gift_shared.manifests import Manifests

    lookup = Manifests(tuple(options.manifests or ()))
    chosen = [lookup.task(name) for name in datasets or _order(options, lookup).tasks]
    from gift_train.training.faults import machine_faults

    with machine_faults():
        readings, beside = _readings(options, {manifest.name: manifest for manifest in chosen}, lookup)
    found = readings.pop("")
    mean = sum(found.values()) / len(found)
    if as_json:
        told = {"accuracy": found, "mean": mean, "readings": readings}
        typer.echo(json.dumps(told | {key: value for key, value in vars(beside).items() if value}, indent=2))
        return
    for manifest in chosen:
        typer.echo(f"{manifest.display_name:24} {found[manifest.name]:6.1f}")
    typer.echo(f"{'mean':24} {mean:6.1f}")
    for reading, accuracies in readings.items():
        typer.echo(f"{'mean, ' + reading:24} {sum(accuracies.values()) / len(accuracies):6.1f}")
    for line in _lines_beside(beside):
        typer.echo(line)


def _lines_beside(beside: "BesideScores") -> list[str]:
    lines = ["", "beside the order"] if beside.also else []
    lines += [f"{name:24} {accuracy:6.1f}" for name, accuracy in beside.also.items()]
    for name, recalls in beside.retrieval.items():
        lines += ["", f"{'retrieval, ' + name:24} {'R@1':>6} {'R@5':>6} {'R@10':>6}"]
        for direction, by_k in recalls.items():
            lines.append(f"{direction.replace('_', ' '):24} " + " ".join(f"{value:6.1f}" for value in by_k.values()))
    return lines


def _order(options: EvaluateOptions, lookup: "Manifests") -> "OrderManifest":
    """The order that is asked for, else that of the checkpoint's run, else the mini world's."""
    if options.order is not None or options.checkpoint is None:
        return lookup.order(options.order or "mini")
    from gift_train.records.reading import reading_of

    reading = reading_of(options.checkpoint)
    if reading is None:
        return lookup.order("mini")
    try:
        return lookup.order(reading.order)
    except GiftError as error:
        raise ConfigError(f"{options.checkpoint} is of order {reading.order!r}: {error} Give its --manifests, or --order.") from error


def _readings(
    options: EvaluateOptions, manifests: "Mapping[str, TaskManifest]", lookup: "Manifests"
) -> "tuple[dict[str, dict[str, float]], BesideScores]":
    """Accuracy in percent by reading of the weights ("" = the method's own) and dataset; and what stands beside them."""
    from gift_train.data.loader import resolved_loading
    from gift_train.data.tasks import load_test
    from gift_train.data.transforms import image_transforms
    from gift_train.distributed import require_one_process
    from gift_train.evaluation.beside import list_beside
    from gift_train.evaluation.cache import EvaluationCache
    from gift_train.evaluation.evaluate import evaluate_readings
    from gift_train.records.restore import Asked, plain_clip, restore

    require_one_process("gift-train evaluate")
    listing = list_beside(options, lookup, list(manifests))
    asked = Asked(
        model=options.model,
        pretrained=options.pretrained,
        quick_gelu=is_quick_gelu(options.quick_gelu),
        precision=options.precision,
        device=options.device,
    )
    restored = plain_clip(asked) if options.checkpoint is None else restore(options.checkpoint, asked)
    student = restored.student
    if options.compiles:
        student.compile_blocks()
    loading = resolved_loading(options.num_workers, options.worker_start_method, student.device)
    student.warn_of_long([prompt for manifest in manifests.values() for prompt in manifest.prompts])
    transforms, cache = image_transforms(student.image_settings[0], student.resize_settings), options.evaluation_cache
    tests = {
        name: (manifest, load_test(manifest, options.data_root, transforms, options.image_cache_bytes))
        for name, manifest in manifests.items()
    }
    beside = listing.load(options.data_root, transforms, student, options.image_cache_bytes)
    batch_size = options.batch_size or restored.evaluation_batch_size or 256
    kept = None if cache is None else EvaluationCache(cache, loading)
    readings = evaluate_readings(restored.method, student, tests, batch_size=batch_size, loading=loading, cache=kept)
    return readings, beside.evaluate(restored.method, student, batch_size=batch_size, loading=loading, cache=kept)
