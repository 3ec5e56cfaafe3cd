"""Which runs a table needs and which of them are there. A run counts only if all that decides its numbers is as asked."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gift_shared.caption_files import captions_sha256
from gift_shared.errors import ConfigError, DataError, GiftError, ShardError
from gift_shared.manifests import OrderManifest
from gift_shared.schema import INDEX_FILE
from gift_shared.storage import Folder, index_file
from gift_train.clip.description import decided_by_flag
from gift_train.data.score_rules import score_record
from gift_train.data.selection import ReplayShortage, count_replay
from gift_train.data.sources import NoTaskSource, ReplaySource, TextSource
from gift_train.methods.base import Method
from gift_train.methods.method_files import method_code
from gift_train.methods.registry import method_class
from gift_train.options import TableOptions
from gift_train.recipes.recipe import Recipe, load_recipe
from gift_train.records.files import read_accuracies, read_record
from gift_train.records.identity import difference, flat
from gift_train.report.paper_tables.definition import PaperTable, TableRow
from gift_train.report.runs import Run, load_run


@dataclass(frozen=True, kw_only=True)
class TableSetting:
    """What all runs of a table share, and where they lie: the options, with what they name looked up.

    order_argument: the order as `gift-train run` is told it, a name or a file. shards: output folders by label, None = the plain set.
    reference_images: by method, None = every other; for methods that look at images beside their tasks'.
    manifests_sha256: see `manifests_digest`.
    """

    options: TableOptions
    order: OrderManifest
    order_argument: str
    manifests_sha256: str
    model: str
    pretrained: str | None
    shards: Mapping[str | None, Folder]
    reference_images: Mapping[str | None, Path]

    @property
    def overrides(self) -> list[str]:
        """What is set over every recipe."""
        return self.options.recipe_overrides

    @cached_property
    def quick_gelu(self) -> bool | None:
        """As runs record it."""
        return decided_by_flag(self.model, self.pretrained, self.options.quick_gelu)

    @cached_property
    def index_digests(self) -> dict[str | None, str]:
        """SHA-256 of each set's index, as runs record it. Raises DataError for a folder without one."""
        digests = {}
        for label, folder in self.shards.items():
            index = index_file(folder)
            if not index.is_file():
                raise DataError(f"--shards {folder} has no {INDEX_FILE}: expected a finished output folder of gift-generate render.")
            digests[label] = hashlib.sha256(index.read_bytes()).hexdigest()
        return digests

    @cached_property
    def captions_digest(self) -> str:
        """SHA-256 of the caption file, as runs record it. Raises DataError if there is none."""
        assert self.options.reference_captions is not None
        return captions_sha256(self.options.reference_captions)

    def images_for(self, method: str) -> Path | None:
        """The reference images of a method; None if none are given."""
        return self.reference_images.get(method, self.reference_images.get(None))


class RunState(StrEnum):
    """What is known of a needed run."""

    THERE = "there"
    UNFINISHED = "unfinished"  # `gift-train run` goes on where it stopped
    MISSING = "missing"
    OCCUPIED = "occupied"  # its folder holds another run


@dataclass(frozen=True, kw_only=True)
class NeededRun:
    """One run of one row. `folder`: where it is, or is to be. `run` only if it is there. `remark` tells more of the state."""

    row: TableRow
    recipe: Recipe
    seed: int
    folder: Path
    state: RunState
    run: Run | None = None
    remark: str = ""

    @property
    def recipe_name(self) -> str:
        """The recipe as the row names it."""
        assert self.row.recipe is not None, "a row that is only printed needs no run"
        return self.row.recipe

    @property
    def needs_shards(self) -> bool:
        """Whether it looks at synthetic images."""
        return _needs_shards(self.recipe)

    @property
    def needs_reference_images(self) -> bool:
        """Whether it looks at images beside its tasks that are not synthetic."""
        return _needs_reference_images(self.recipe)

    @property
    def needs_reference_captions(self) -> bool:
        """Whether it looks at the sentences of a file."""
        return _method(self.recipe).text_source() == TextSource.FILE

    @property
    def name(self) -> str:
        """As told to people."""
        return f"{self.recipe_name}, seed {self.seed}" + (f", shards {self.row.shards}" if self.row.shards else "")


def needed_runs(table: PaperTable, setting: TableSetting, seeds: Sequence[int]) -> list[NeededRun]:
    """Every run the table needs, in its order; a method that does not train has the first seed only.

    Raises: ConfigError for a row whose recipe does not exist in the order's benchmark or does not load.
    """
    records = dict(_records(setting.options.runs))
    needed = []
    for row in table.rows:
        if row.recipe is None:
            continue
        recipe = load_recipe(row.recipe, setting.order.recipes, setting.overrides)
        trains = method_class(recipe.method).trains
        needed += [_look_up(row, recipe, seed, setting, records) for seed in (seeds if trains else seeds[:1])]
    return needed


def obstacle(needed: NeededRun, setting: TableSetting) -> str | None:
    """Why a run that is not there cannot be made, as far as it can be told without loading a model; None if nothing is seen."""
    if needed.state is RunState.OCCUPIED:
        return f"{needed.folder} {needed.remark}. Move it away, or give another --runs"
    if needed.needs_reference_images and setting.images_for(needed.recipe.method) is None:
        what = "images of no task" if _no_task_source(needed.recipe) == NoTaskSource.REFERENCE else "reference images"
        return f"it looks at {what}: give their folder or tars with --reference-images"
    if needed.needs_reference_captions and setting.options.reference_captions is None:
        return "it looks at the sentences of a file: give it with --reference-captions"
    if needed.needs_shards and needed.row.shards not in setting.shards:
        label = f"{needed.row.shards}=" if needed.row.shards else ""
        return f"it looks at synthetic images: give their output folder with --shards {label}FOLDER"
    try:
        replay_shortage(needed, setting)
    except GiftError as error:
        return str(error)
    return None


def replay_shortage(needed: NeededRun, setting: TableSetting) -> tuple[int, int] | None:
    """(fewest images of a task, images asked for), if a task has fewer than the recipe asks for.

    A run that is there tells it from what it replayed, one that is not from the shards. Raises ShardError or DataError.
    """
    if needed.recipe.replay is None:
        return None
    asked = needed.recipe.replay.num_images
    if needed.run is not None:
        sizes = [pq.read_metadata(path).num_rows for path in sorted((needed.folder / "replay").glob("*.parquet"))]
    elif needed.row.shards in setting.shards:
        rule = needed.recipe.replay.selection(needed.seed)
        folder = setting.shards[needed.row.shards]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReplayShortage)  # the table tells it in its own words
            sizes = list(count_replay(folder, setting.order, rule).values())
    else:
        return None
    return (min(sizes), asked) if sizes and min(sizes) < asked else None


def _look_up(row: TableRow, recipe: Recipe, seed: int, setting: TableSetting, records: Mapping[Path, dict[str, Any]]) -> NeededRun:
    label = f"-{row.shards}" if row.shards else ""
    home = setting.options.runs / setting.order.name / f"{row.folder_name}-seed{seed}{label}"
    wanted = _wanted(recipe, seed, row, setting)
    # Without the shards at hand only the folder's name tells which set a run was trained on, so runs elsewhere do not count.
    is_told_by_record = not _needs_shards(recipe) or row.shards in setting.shards
    candidates = [home, *(path for path in records if path != home)] if is_told_by_record else [home]
    matching = [path for path in candidates if path in records and _difference(records[path], wanted) is None]
    finished = next((path for path in matching if (path / "summary.json").is_file()), None)
    needed = partial(NeededRun, row=row, recipe=recipe, seed=seed)
    if finished is not None:
        return needed(folder=finished, state=RunState.THERE, run=load_run(finished))
    if home in matching:
        remark = f"{_num_finished_tasks(home)} of {len(setting.order.tasks)} tasks done"
        return needed(folder=home, state=RunState.UNFINISHED, remark=remark)
    if home in records:
        return needed(folder=home, state=RunState.OCCUPIED, remark=f"holds another run: {_difference(records[home], wanted)}")
    return needed(folder=home, state=RunState.MISSING)


def _records(runs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every run folder directly in `runs` or one folder deeper, with its run.json."""
    for path in sorted([*runs.glob("*/run.json"), *runs.glob("*/*/run.json")]):
        yield path.parent, read_record(path.parent)


def _wanted(recipe: Recipe, seed: int, row: TableRow, setting: TableSetting) -> dict[str, Any]:
    """What the run's record must say, flat."""
    wanted: dict[str, Any] = {
        "order": setting.order.name,
        "datasets": list(setting.order.tasks),
        "manifests_sha256": setting.manifests_sha256,
        "seed": seed,
        "model": setting.model,
        "pretrained": setting.pretrained,
        "quick_gelu": setting.quick_gelu,
        "overrides": list(setting.overrides),
        "recipe": recipe.as_table(),
    }
    if not method_class(recipe.method).trains:
        del wanted["seed"]
    if (code := method_code(recipe.method)) is not None:
        wanted["method_code"] = {"sha256": code.sha256}
    if _needs_shards(recipe) and row.shards in setting.shards:
        wanted["shards"] = {"index_sha256": setting.index_digests[row.shards]}
        if recipe.replay is not None and recipe.replay.by_score:
            with suppress(ShardError, ConfigError):  # no scores there: told when the run is made
                wanted["shards"]["scores"] = {"sha256": score_record(setting.shards[row.shards], recipe.replay.by_score)["sha256"]}
    images = setting.images_for(recipe.method)
    if _needs_reference_images(recipe) and images is not None:
        wanted["reference_images"] = str(images)
    if _method(recipe).text_source() == TextSource.FILE and setting.options.reference_captions is not None:
        wanted["reference_captions"] = {"sha256": setting.captions_digest}
    return flat(json.loads(json.dumps(wanted)))  # compare as it was written


def _difference(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first thing in which a record is not what is wanted; what the table leaves open is not looked at."""
    return difference({key: value for key, value in flat(record).items() if key in wanted or key.startswith("recipe.")}, wanted)


def _no_task_source(recipe: Recipe) -> NoTaskSource:
    return _method(recipe).no_task_source()


def _needs_reference_images(recipe: Recipe) -> bool:
    return _no_task_source(recipe) == NoTaskSource.REFERENCE or _method(recipe).replay_source() == ReplaySource.REFERENCE


def _method(recipe: Recipe) -> Method:
    return method_class(recipe.method)(recipe.method_config)


def _needs_shards(recipe: Recipe) -> bool:
    return recipe.replay is not None or _no_task_source(recipe) == NoTaskSource.SYNTHETIC


def _num_finished_tasks(path: Path) -> int:
    accuracies = read_accuracies(path, read_record(path)["datasets"])
    return 0 if accuracies is None else len(accuracies["matrix"])
