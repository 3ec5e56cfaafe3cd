"""Makes the runs that a table lacks, one after another in this process. A run that fails stops the table with its error."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gift_shared.errors import ConfigError
from gift_shared.preemption import PreemptionNotice
from gift_train.data.pixel_cache import CACHE_BYTES
from gift_train.distributed import require_one_process
from gift_train.report.paper_tables.needed_runs import NeededRun, RunState, Setting, obstacle
from gift_train.training.run import run
from gift_train.training.setup import RunRequest


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where runs find their data and what they run on; nothing here changes a number, but last bits if it compiles."""

    data_root: Path
    manifests: Sequence[Path]
    device: str
    num_workers: int
    cache_bytes: int
    evaluation_cache: Path | None
    compiles: bool


def run_request(needed: NeededRun, setting: Setting, machine: Machine) -> RunRequest:
    """The run as `gift-train run` would be asked for it."""
    return RunRequest(
        order=setting.order_argument,
        recipe=needed.row.recipe,
        overrides=setting.overrides,
        model=setting.model,
        pretrained=setting.pretrained,
        shards=setting.shards.get(needed.row.shards) if needed.needs_shards else None,
        reference_images=setting.images_for(needed.recipe.method) if needed.needs_reference_images else None,
        reference_captions=setting.reference_captions if needed.needs_reference_captions else None,
        data_root=machine.data_root,
        manifests=machine.manifests,
        out=needed.folder,
        seed=needed.seed,
        device=machine.device,
        num_workers=machine.num_workers,
        cache_bytes=machine.cache_bytes,
        evaluation_cache=machine.evaluation_cache,
        compiles=machine.compiles,
        stop_after=None,
    )


def command_line(request: RunRequest) -> list[str]:
    """The words of a `gift-train run` that does the same, e.g. as a job of its own."""
    flags = {
        "--order": request.order,
        "--recipe": request.recipe,
        "--model": request.model,
        "--pretrained": request.pretrained,
        "--shards": request.shards,
        "--reference-images": request.reference_images,
        "--reference-captions": request.reference_captions,
        "--data-root": request.data_root,
        "--seed": request.seed,
        "--device": request.device,
        "--num-workers": request.num_workers,
        "--image-cache-gb": request.cache_bytes / 1e9 if request.cache_bytes != CACHE_BYTES else None,
        "--evaluation-cache": request.evaluation_cache,
    }
    words = ["gift-train", "run", *(word for flag, value in flags.items() if value is not None for word in (flag, str(value)))]
    words += ["--compile"] if request.compiles else []
    words += [word for folder in request.manifests for word in ("--manifests", str(folder))]
    words += [word for override in request.overrides for word in ("--set", override)]
    return [*words, "--out", str(request.out)]


def require_possible(missing: Sequence[NeededRun], setting: Setting) -> None:
    """Raises ConfigError if any of the runs cannot be made, as far as it can be told now."""
    for one in missing:
        if (reason := obstacle(one, setting)) is not None:
            raise ConfigError(f"{one.name} cannot be run: {reason}.")


def run_missing(needed: Sequence[NeededRun], setting: Setting, machine: Machine, tell: Callable[[str], None]) -> Iterator[NeededRun]:
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
            run(run_request(one, setting, machine), notice)
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
        self._seconds.setdefault(needed.row.recipe, []).append(seconds)

    def seconds(self, needed: Sequence[NeededRun]) -> float | None:
        """Seconds that these runs will take; None as long as nothing is known."""
        means = {recipe: sum(times) / len(times) for recipe, times in self._seconds.items()}
        trained = [mean for recipe, mean in means.items() if recipe != "zero_shot"] or list(means.values())
        if not trained:
            return None
        return sum(means.get(one.row.recipe, sum(trained) / len(trained)) for one in needed)


def spoken(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
