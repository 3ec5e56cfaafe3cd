"""What a plan is asked for: the options of the command and the object that planning reads. Imports nothing heavy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gift_shared.errors import ConfigError, unknown_name
from gift_shared.options import field_names, flag_of

IMAGES_PER_SHARD = 1000  # where nothing decides it
SMALLEST = {
    "images_per_task": 1, "images_per_class": 1, "num_images": 1, "denoising_steps": 1, "images_per_shard": 1, "workers": 1,
    "guidance_scale": 0, "seed": 0,
}  # fmt: skip


class Seeding(StrEnum):
    """`hashed`: from run seed and sample key. `published`: the authors' rule, from position and index (DATA_NOTES section 6)."""

    HASHED = "hashed"
    PUBLISHED = "published"


class Templates(StrEnum):
    """Into which of a manifest's templates a class name is put."""

    FIRST = "first"
    ALL = "all"


class Sampling(StrEnum):
    """How captions of a file are chosen: any again at any time; none again before all were used; one after the other."""

    REPLACEMENT = "replacement"
    SHUFFLED = "shuffled"
    IN_ORDER = "in-order"


@dataclass(frozen=True)
class WeightedFile:
    """Caption files by path, folder or pattern, and their share against the others and against the class names."""

    path: Path
    weight: float


def parse_weighted_file(argument: str) -> WeightedFile:
    """`captions.txt` (weight 1) or `captions.txt=0.5`. Raises ConfigError."""
    path, separator, weight = argument.rpartition("=")
    if not separator:
        return WeightedFile(Path(argument), 1.0)
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not path or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"--caption-file {argument!r}: expected FILE or FILE=WEIGHT with a weight above 0.")
    return WeightedFile(Path(path), value)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The arguments a plan follows from; they are recorded in its metadata. Raises ConfigError for a word that is none of its kind's."""

    order: Annotated[str | None, typer.Option(help="Order of tasks; its manifest names the pretraining source.  [default: mini]")] = None
    kind: Annotated[
        str | None,
        typer.Option(
            help="per-task: n images for each task, as GIFT does. pool: n images per class name. captions: of files alone."
            "  [default: per-task; captions where caption files are all that is given]"
        ),
    ] = None
    images_per_task: Annotated[int | None, typer.Option(help="Images for each task (kind per-task).")] = None
    images_per_class: Annotated[int | None, typer.Option(help="Images for each class name (kind pool).")] = None
    class_counts: Annotated[
        Path | None, typer.Option(help="Table with columns class_name, images and, where needed, dataset: counts of a pool by class name.")
    ] = None
    num_images: Annotated[int | None, typer.Option("--images", help="Images in all (kind captions).  [default: one for each caption]")] = (
        None
    )
    datasets: Annotated[list[str] | None, typer.Option("--dataset", help="Datasets of a pool, in place of an order's; repeatable.")] = None
    seed: Annotated[int, typer.Option(help="Decides captions and image seeds.")] = 42
    seeding: Annotated[str, typer.Option(help="Image seeds: hashed (from seed and key) or published (the authors' rule).")] = "hashed"
    draws_per_task: Annotated[
        int | None, typer.Option(help="Captions drawn per task before the first n are kept.  [default: the order's captions_drawn]")
    ] = None
    is_pretraining_only: Annotated[
        bool, typer.Option("--pretraining-only", help="Captions of the pretraining source alone, for every task (ablation).")
    ] = False
    templates: Annotated[str, typer.Option(help="Of a class name: its manifest's first template, or all (drawn, or in turn).")] = "first"
    caption_files: Annotated[
        list[WeightedFile] | None,
        typer.Option(
            "--caption-file",
            parser=parse_weighted_file,
            metavar="<list[str]>",
            help="FILE[=WEIGHT]: .txt, .tsv, .csv, .jsonl, .json or .parquet, also .gz, a folder or 'pattern*'; repeatable.",
        ),
    ] = None
    caption_column: Annotated[
        str | None, typer.Option(help="Column of the captions by name, or by number from 1.  [default: found by its header]")
    ] = None
    class_name_weight: Annotated[float, typer.Option(help="Weight of class-name captions against caption files.")] = 1.0
    sampling: Annotated[
        str | None,
        typer.Option(
            help="Captions of files: replacement (any again), shuffled (none again before all were used) or in-order (line for line)."
            "  [default: replacement; pool: shuffled; captions: in-order]"
        ),
    ] = None
    drops_repeats: Annotated[bool, typer.Option("--dedup", help="Take a caption that stands in the files several times once.")] = False
    table: Annotated[
        Path | None,
        typer.Option("--from", help="Rows that you decided: .parquet, .csv, .tsv or .jsonl with columns of a plan, caption at least."),
    ] = None
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5
    denoising_steps: Annotated[int, typer.Option("--steps", help="Denoising steps.")] = 50
    images_per_shard: Annotated[int | None, typer.Option(help="Images a shard holds at most.  [default: 1000]")] = None
    workers: Annotated[int | None, typer.Option(help="Choose the shard size so that so many workers are busy to the end.")] = None
    minutes_per_shard: Annotated[
        float | None, typer.Option(help="Choose the shard size by the time a worker takes for it; needs a rate.")
    ] = None

    def __post_init__(self) -> None:
        from gift_shared.schema import PlanKind  # heavy

        _require_one_of("kind", self.kind, [kind for kind in PlanKind if kind != PlanKind.TABLE])
        _require_one_of("seeding", self.seeding, list(Seeding))
        _require_one_of("templates", self.templates, list(Templates))
        _require_one_of("sampling", self.sampling, list(Sampling))

    def given(self) -> list[str]:
        """Names of the options that are not at their default."""
        return [one.name for one in fields(self) if getattr(self, one.name) != one.default]


def _require_one_of(kind: str, name: str | None, valid: Sequence[str]) -> None:
    if name is not None and name not in valid:
        raise ConfigError(f"--{kind}: " + unknown_name(kind, name, valid))


def check_numbers(request: Any) -> None:
    """Raises ConfigError for a number of a request (an options class) that is below what is possible, naming its flag."""
    for name in [name for name in SMALLEST if name in field_names(type(request))]:
        value = getattr(request, name)
        if value is not None and not SMALLEST[name] <= value < math.inf:
            raise ConfigError(f"{flag_of(type(request), name)} must be at least {SMALLEST[name]}, found {value}.")
