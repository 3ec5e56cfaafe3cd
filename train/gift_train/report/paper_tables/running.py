"""Makes the runs that a table lacks, one after another in this process. A run that fails stops the table with its error."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gift_shared.errors import ConfigError
from gift_shared.options import field_names
from gift_shared.preemption import PreemptionNotice
from gift_train.distributed import require_one_process
from gift_train.methods.method_files import files_of
from gift_train.options import BesideOptions, MachineOptions, RunOptions, TableOptions
from gift_train.report.paper_tables.needed_runs import NeededRun, RunState, TableSetting, obstacle
from gift_train.training.run import train


def run_options(needed: NeededRun, setting: TableSetting) -> RunOptions:
    """What `gift-train run` would be told to make the run."""
    shards = setting.shards.get(needed.row.shards) if needed.needs_shards else None
    return RunOptions(
        **shared_options(setting.options),
        out=needed.folder,
        order=setting.order_argument,
        recipe=needed.recipe_name,
        method_files=files_of(needed.recipe.method, setting.options.method_files),
        overrides=setting.options.overrides,
        model=setting.model,
        pretrained=setting.pretrained,
        quick_gelu=setting.options.quick_gelu,
        shards=None if shards is None else str(shards),
        reference_images=setting.images_for(needed.recipe.method) if needed.needs_reference_images else None,
        reference_captions=setting.options.reference_captions if needed.needs_reference_captions else None,
        seed=needed.seed,
    )


def shared_options(options: TableOptions) -> dict[str, Any]:
    """What a table was told of the machine and of what is evaluated besides, as it is passed on to each run."""
    names = [*field_names(MachineOptions), *field_names(BesideOptions), "label_space"]
    return {name: getattr(options, name) for name in names}


def require_possible(missing: Sequence[NeededRun], setting: TableSetting) -> None:
    """Raises ConfigError if any of the runs cannot be made, as far as it can be told now."""
    for one in missing:
        if (reason := obstacle(one, setting)) is not None:
            raise ConfigError(f"{one.name} cannot be run: {reason}.")


def run_missing(needed: Sequence[NeededRun], setting: TableSetting, tell: Callable[[str], None]) -> Iterator[NeededRun]:
    """Make every run that is not there; yields each once it is finished.

    Raises: ConfigError before the first one if any of them cannot be made; what the run itself raises.
    """
    require_one_process("gift-train table")
    missing = [one for one in needed if one.state is not RunState.THERE]
    require_possible(missing, setting)
    expected = _Expectation(needed)
    started = time.monotonic()
    for place, one in enumerate(missing, start=1):
        left = expected.seconds(missing[place - 1 :])
        estimate = "" if left is None else f", about {spoken(left)} left"
        tell(f"Run {place} of {len(missing)}: {one.name} ({spoken(time.monotonic() - started)} so far{estimate}).")
        begun = time.monotonic()
        with PreemptionNotice() as notice:
            train(run_options(one, setting), notice)
        expected.learn(one, time.monotonic() - begun)
        yield one
    if missing:
        tell(f"{len(missing)} runs in {spoken(time.monotonic() - started)}.")


class _Expectation:
    """How long runs take, learned from those that are there: by recipe, else the mean over the recipes that train."""

    def __init__(self, needed: Sequence[NeededRun]) -> None:
        self._seconds: dict[str, list[float]] = {}
        for one in needed:
            if one.run is not None and "seconds" in one.run.summary:
                self.learn(one, sum(one.run.summary["seconds"].values()))

    def learn(self, needed: NeededRun, seconds: float) -> None:
        self._seconds.setdefault(needed.recipe_name, []).append(seconds)

    def seconds(self, needed: Sequence[NeededRun]) -> float | None:
        """Seconds that these runs will take; None as long as nothing is known."""
        means = {recipe: sum(times) / len(times) for recipe, times in self._seconds.items()}
        trained = [mean for recipe, mean in means.items() if recipe != "zero_shot"] or list(means.values())
        if not trained:
            return None
        return sum(means.get(one.recipe_name, sum(trained) / len(trained)) for one in needed)


def spoken(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
