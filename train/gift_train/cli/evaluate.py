"""gift-train evaluate. Imports nothing heavy until the command runs."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from gift_shared.options import takes_options
from gift_train.options import Datasets, EvaluateOptions

if TYPE_CHECKING:
    from gift_shared.manifests import TaskManifest


@takes_options
def evaluate(
    options: EvaluateOptions,
    datasets: Datasets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with full precision.")] = False,
) -> None:
    """Accuracy of a model or a checkpoint: zero-shot classifier from class names and all templates.

    A checkpoint in its run's folder is read by that run's method (moe_adapter: adapters and selector).
    """
    from gift_shared.manifests import Manifests

    lookup = Manifests(tuple(options.manifests or ()))
    chosen = [lookup.task(name) for name in datasets or lookup.order(options.order).tasks]
    from gift_train.training.faults import machine_faults

    with machine_faults():
        readings = _readings(options, {manifest.name: manifest for manifest in chosen})
    found = readings.pop("")
    mean = sum(found.values()) / len(found)
    if as_json:
        typer.echo(json.dumps({"accuracy": found, "mean": mean, "readings": readings}, indent=2))
        return
    for manifest in chosen:
        typer.echo(f"{manifest.display_name:24} {found[manifest.name]:6.1f}")
    typer.echo(f"{'mean':24} {mean:6.1f}")
    for reading, accuracies in readings.items():
        typer.echo(f"{'mean, ' + reading:24} {sum(accuracies.values()) / len(accuracies):6.1f}")


def _readings(options: EvaluateOptions, manifests: "Mapping[str, TaskManifest]") -> dict[str, dict[str, float]]:
    """Accuracy in percent by reading of the weights ("" = the method's own) and dataset."""
    from gift_train.clip.load import load_backbone
    from gift_train.data.loader import resolved_loading
    from gift_train.data.tasks import load_test
    from gift_train.data.transforms import image_transforms
    from gift_train.distributed import require_one_process
    from gift_train.evaluation.cache import EvaluationCache
    from gift_train.evaluation.evaluate import evaluate_readings
    from gift_train.records.restore import plain_clip, restore

    require_one_process("gift-train evaluate")
    student = load_backbone(options.model, options.pretrained, options.device, options.precision or "fp32")
    if options.compiles:
        student.compile_blocks()
    restored = plain_clip() if options.checkpoint is None else restore(options.checkpoint, student)
    loading = resolved_loading(options.num_workers, options.worker_start_method, student.device)
    transforms, cache = image_transforms(student.image_settings[0], student.resize_settings), options.evaluation_cache
    tests = {
        name: (manifest, load_test(manifest, options.data_root, transforms, options.image_cache_bytes))
        for name, manifest in manifests.items()
    }
    return evaluate_readings(
        restored.method,
        student,
        tests,
        batch_size=options.batch_size or restored.evaluation_batch_size or 256,
        loading=loading,
        cache=None if cache is None else EvaluationCache(cache, loading),
    )
