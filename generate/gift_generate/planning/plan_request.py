"""What a plan is asked for: the options of the command and the object that planning reads. Imports nothing heavy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gift_generate.model_families import FAMILIES, model_family
from gift_shared.errors import ConfigError, unknown_name
from gift_shared.options import field_names, flag_of

DEFAULT_FAMILY = "sd-1"
SMALLEST = {"images_per_task": 1, "images_per_class": 1, "denoising_steps": 1, "images_per_shard": 1, "guidance_scale": 0, "seed": 0}


class Seeding(StrEnum):
    """`hashed`: from run seed and sample key. `published`: the authors' rule, from position and index (DATA_NOTES section 6)."""

    HASHED = "hashed"
    PUBLISHED = "published"


@dataclass(frozen=True)
class WeightedFile:
    """A caption file and its share against the others and against the class names."""

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
    """The arguments a plan follows from; they are recorded in its metadata. Raises ConfigError for a kind or seeding that is none."""

    order: Annotated[str | None, typer.Option(help="Order of tasks; its manifest names the pretraining source.  [default: mini]")] = None
    kind: Annotated[str, typer.Option(help="per-task: n images for each task, as GIFT does. pool: n images per class name.")] = "per-task"
    images_per_task: Annotated[int | None, typer.Option(help="Images for each task (kind per-task).")] = None
    images_per_class: Annotated[int | None, typer.Option(help="Images for each class name (kind pool).")] = None
    datasets: Annotated[list[str] | None, typer.Option("--dataset", help="Datasets of a pool, in place of an order's; repeatable.")] = None
    seed: Annotated[int, typer.Option(help="Decides captions and image seeds.")] = 42
    seeding: Annotated[str, typer.Option(help="Image seeds: hashed (from seed and key) or published (the authors' rule).")] = "hashed"
    draws_per_task: Annotated[
        int | None, typer.Option(help="Captions drawn per task before the first n are kept.  [default: the order's captions_drawn]")
    ] = None
    is_pretraining_only: Annotated[
        bool, typer.Option("--pretraining-only", help="Captions of the pretraining source alone, for every task (ablation).")
    ] = False
    caption_files: Annotated[
        list[WeightedFile] | None,
        typer.Option(
            "--caption-file",
            parser=parse_weighted_file,
            metavar="<list[str]>",
            help="FILE[=WEIGHT]: .txt, .tsv, .jsonl or .parquet of captions to mix in; repeatable.",
        ),
    ] = None
    class_name_weight: Annotated[float, typer.Option(help="Weight of class-name captions against caption files.")] = 1.0
    model_family: Annotated[
        str | None,
        typer.Option(help=f"Guidance and steps as the card of such a model gives them: {', '.join(FAMILIES)}.  [default: sd-1]"),
    ] = None
    # None: the family's; after construction a number.
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.  [default: the family's]")] = None
    denoising_steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.  [default: the family's]")] = None
    images_per_shard: Annotated[int, typer.Option(help="Images a shard holds at most.")] = 1000

    def __post_init__(self) -> None:
        from gift_shared.schema import PlanKind  # heavy

        _require_one_of("kind", self.kind, list(PlanKind))
        _require_one_of("seeding", self.seeding, list(Seeding))
        family = model_family(self.model_family or DEFAULT_FAMILY)
        for name in ("guidance_scale", "denoising_steps"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(family, name))


def _require_one_of(kind: str, name: str, valid: Sequence[str]) -> None:
    if name not in valid:
        raise ConfigError(f"--{kind}: " + unknown_name(kind, name, valid))


def check_numbers(request: Any) -> None:
    """Raises ConfigError for a number of a request (an options class) that is below what is possible, naming its flag."""
    for name in [name for name in SMALLEST if name in field_names(type(request))]:
        value = getattr(request, name)
        if value is not None and not SMALLEST[name] <= value < math.inf:
            raise ConfigError(f"{flag_of(type(request), name)} must be at least {SMALLEST[name]}, found {value}.")
