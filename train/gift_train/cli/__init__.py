"""gift-train: the trainer's command line. Imports nothing heavy until a command runs."""

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer

from gift_shared.console import run_app
from gift_shared.errors import ConfigError
from gift_train.cli.data import data_app
from gift_train.cli.submit import submit
from gift_train.cli.table import table
from gift_train.options import (
    Compiles,
    DataRoot,
    Device,
    EvaluationCacheFolder,
    ImageCacheGb,
    ManifestFolders,
    Model,
    Order,
    Overrides,
    Pretrained,
    Workers,
)

app = typer.Typer(
    name="gift-train",
    help="Stage 2 of GIFT: synthetic shards and a sequence of tasks in, a continually learned CLIP and its accuracy matrix out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: boxes cut flag names short, and markup swallows [default: ...]
    pretty_exceptions_enable=False,
)
app.add_typer(data_app)

PrecisionName = Annotated[str, typer.Option("--precision", help="Of the towers: fp32, tf32 or bf16. Losses and weights stay fp32.")]


def main() -> None:
    """Entry point of the command line."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # told to a user, not to a developer
    run_app(app)


@app.command()
def run(
    out: Annotated[Path, typer.Option("--out", help="Run folder; given again, the run goes on where it stopped.", show_default=False)],
    order: Order = "mini",
    method: Annotated[str | None, typer.Option(help="Method by name, with its recipe for the order's benchmark.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe by name or as a .toml file; instead of --method.")] = None,
    model: Model = "mini",
    pretrained: Pretrained = None,
    shards: Annotated[str | None, typer.Option(help="Output folder of gift-generate render, or its URL (http, https, s3).")] = None,
    shard_cache: Annotated[
        Path | None,
        typer.Option(envvar="GIFT_SHARD_CACHE", help="Where shards of a URL are kept for a while.  [default: ~/.cache/gift/shards]"),
    ] = None,
    shard_cache_gb: Annotated[
        float | None, typer.Option(envvar="GIFT_SHARD_CACHE_GB", min=0, help="How much is kept there.  [default: 20]")
    ] = None,
    reference_images: Annotated[
        Path | None, typer.Option(help="Folder or tars of images beside the tasks: no task (moe_adapter), reference set (zscl).")
    ] = None,
    reference_captions: Annotated[
        Path | None, typer.Option(help="Sentences of the reference set (zscl): .txt, .tsv, .jsonl or .parquet.")
    ] = None,
    data_root: DataRoot = Path("data"),
    manifests: ManifestFolders = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of the towers, over the recipe's: fp32, tf32 or bf16. Losses and weights stay fp32.", show_default=False),
    ] = None,
    compiles: Compiles = False,
    seed: Annotated[int, typer.Option(help="Decides data order, crops and the choice from a pool.")] = 42,
    device: Device = "auto",
    num_workers: Workers = 0,
    image_cache_gb: ImageCacheGb = 0.2,
    evaluation_cache: EvaluationCacheFolder = None,
    overrides: Overrides = None,
    stop_after: Annotated[int | None, typer.Option(help="Stop after so many tasks; the same command goes on.")] = None,
    tracker: Annotated[list[str] | None, typer.Option(help="tensorboard, wandb, trackio ... (accelerate's trackers); repeatable.")] = None,
) -> None:
    """Learn the tasks of an order one after the other, and evaluate on all of them after each."""
    if (method is None) == (recipe is None):
        raise ConfigError("Give either --method NAME or --recipe NAME_OR_FILE.")
    from gift_shared.preemption import PreemptionNotice

    with PreemptionNotice() as notice:  # before the imports, which take seconds: a signal that comes meanwhile is not lost
        from gift_shared.file_cache import FileCache
        from gift_shared.storage import open_folder
        from gift_train.methods.registry import method_class
        from gift_train.training.run import run as run_sequence
        from gift_train.training.setup import RunRequest

        if method is not None:
            method_class(method)  # a misspelt method is told as such, not as a missing recipe
        summary = run_sequence(
            RunRequest(
                order=order,
                recipe=str(method or recipe),
                overrides=[*(overrides or []), *([] if precision is None else [f"precision={precision}"])],
                compiles=compiles,
                model=model,
                pretrained=pretrained,
                shards=None if shards is None else open_folder(shards, FileCache(shard_cache, shard_cache_gb)),
                reference_images=reference_images,
                reference_captions=reference_captions,
                data_root=data_root,
                manifests=manifests or [],
                out=out,
                seed=seed,
                device=device,
                num_workers=num_workers,
                cache_bytes=round(image_cache_gb * 1e9),
                evaluation_cache=evaluation_cache,
                stop_after=stop_after,
                trackers=tracker or [],
            ),
            notice,
        )
    from gift_train.distributed import is_main_process

    if not is_main_process():
        return
    if summary is None:
        typer.echo(f"Stopped after {stop_after} task{'s' * (stop_after != 1)}; the same command without --stop-after goes on.", err=True)
        return
    numbers = {key: summary[key] for key in ("transfer", "avg", "last", "forgetting")}
    shown = "  ".join(f"{key.capitalize()} {value:.1f}" for key, value in numbers.items() if value is not None)
    typer.echo(f"{summary['title']}, {summary['order']}, seed {summary['seed']}:  {shown}")


@app.command()
def evaluate(
    datasets: Annotated[list[str] | None, typer.Argument(help="Datasets by name.  [default: those of --order]", show_default=False)] = None,
    order: Order = "mini",
    model: Model = "mini",
    pretrained: Pretrained = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of a run: RUN/checkpoints/task-*.safetensors.")] = None,
    data_root: DataRoot = Path("data"),
    manifests: ManifestFolders = None,
    device: Device = "auto",
    precision: PrecisionName = "fp32",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass.  [default: the run's, or 256]", show_default=False)
    ] = None,
    num_workers: Workers = 0,
    evaluation_cache: EvaluationCacheFolder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with full precision.")] = False,
) -> None:
    """Accuracy of a model or a checkpoint: zero-shot classifier from class names and all templates.

    A checkpoint in its run's folder is read by that run's method (moe_adapter: adapters and selector).
    """
    from gift_shared.manifests import Manifests
    from gift_train.clip.load import load_backbone
    from gift_train.data.tasks import load_test
    from gift_train.data.transforms import image_transforms
    from gift_train.distributed import require_one_process
    from gift_train.evaluation.cache import EvaluationCache
    from gift_train.evaluation.evaluate import evaluate_readings
    from gift_train.methods.zero_shot import ZeroShot
    from gift_train.records.restore import Restored, restore

    require_one_process("gift-train evaluate")
    lookup = Manifests(tuple(manifests or ()))
    chosen = [lookup.task(name) for name in datasets or lookup.order(order).tasks]
    student = load_backbone(model, pretrained, device, precision)
    restored = Restored(method=ZeroShot(ZeroShot.Config()), evaluation_batch_size=None)
    if checkpoint is not None:
        restored = restore(checkpoint, student)
    transforms = image_transforms(student.image_settings[0])
    tests = {manifest.name: (manifest, load_test(manifest, data_root, transforms)) for manifest in chosen}
    batch_size = batch_size or restored.evaluation_batch_size or 256
    cache = None if evaluation_cache is None else EvaluationCache(evaluation_cache, num_workers)
    readings = evaluate_readings(restored.method, student, tests, batch_size=batch_size, num_workers=num_workers, cache=cache)
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


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of run folders.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for tables and pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: every run's summary and the rows of the table.")] = False,
) -> None:
    """The paper's table for one or many runs, with differences to the l2 baseline; pictures with --out."""
    from gift_train.report.command import report_command

    typer.echo(report_command(runs, out, as_json=as_json))


app.command()(table)
app.command(context_settings={"allow_interspersed_args": False})(submit)


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="Run folder, running or finished.", show_default=False)],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks at the folder.")] = 2.0,
) -> None:
    """Show task, step, rate, time left, loss terms and accuracy so far while a run goes on."""
    from gift_train.report.watch import watch_command

    watch_command(run, once=once, every=every)


@app.command()
def methods() -> None:
    """List the methods, what each replays, and its recipes."""
    from gift_train.methods.registry import METHOD_NAMES, method_class
    from gift_train.recipes.recipe import benchmarks, recipe_methods

    for name in METHOD_NAMES:
        chosen = method_class(name)
        typer.echo(f"{name:10} {chosen.summary}")
        typer.echo(f"{'':10} replays: {chosen.replay.value}")
        for benchmark in benchmarks():
            recipes = [recipe for recipe, method in recipe_methods(benchmark).items() if method == name]
            if recipes:
                typer.echo(f"{'':10} recipes for {benchmark}: {', '.join(recipes)}")


@app.command()
def validate(
    recipe: Annotated[str, typer.Argument(help="Recipe by name or as a .toml file.", show_default=False)],
    benchmark: Annotated[str, typer.Option(help="Folder of recipes the name is looked up in.")] = "mini",
    overrides: Overrides = None,
) -> None:
    """Check a recipe without running it, and print it resolved."""
    from gift_train.recipes.recipe import load_recipe

    typer.echo(json.dumps(load_recipe(recipe, benchmark, overrides or ()).as_table(), indent=2))


@app.command()
def parity(
    fixture: Annotated[
        Path, typer.Argument(help="Folder with fixture.safetensors and .json, or the .safetensors file.", show_default=False)
    ],
) -> None:
    """Replay golden numbers through the code that training runs. Exit code 1 unless every variant agrees.

    A variant whose method is not built counts as disagreement: nobody has shown that it agrees.
    """
    from gift_train.parity.bounds import LOSS_BOUND, WEIGHT_BOUND
    from gift_train.parity.replay import check_fixture

    num_disagreeing = 0
    typer.echo(
        f"{'variant':24} {'largest loss difference':>24} {'99th pct. of weights':>22}   (bounds {LOSS_BOUND:.0e}, {WEIGHT_BOUND:.0e})"
    )
    for result in check_fixture(fixture):
        num_disagreeing += not result.agrees
        shown = ("-" if value is None else f"{value:.2e}" for value in (result.loss_difference, result.weight_difference))
        verdict = "agrees" if result.agrees else "DISAGREES"
        typer.echo("{:24} {:>24} {:>22}   {}".format(result.name, *shown, f"{verdict} ({result.note})" if result.note else verdict))
    if num_disagreeing:
        typer.echo(f"{num_disagreeing} variants do not agree.")
        raise typer.Exit(1)
    typer.echo("All variants agree.")
