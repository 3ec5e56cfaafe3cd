"""Experiment trackers through accelerate: what metrics.jsonl gets, tensorboard, wandb or trackio get too.

The run folder stays the record; a tracker is a copy to look at while a run goes on. Resumed steps are told again under their number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gift_shared.errors import ConfigError, unknown_name

PROJECT = "gift"


class Trackers:
    """Any number of accelerate's trackers, or none."""

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        self._accelerator = None
        if not names:
            return
        check_trackers(names)
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        # The accelerator serves its trackers only: devices, precision and batches are the trainer's own.
        place = ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "trackers"))
        self._accelerator = Accelerator(log_with=list(names), project_config=place, cpu=True)
        own = folder / "trackers"
        own.mkdir(parents=True, exist_ok=True)
        try:
            # wandb would else write into the working directory
            self._accelerator.init_trackers(PROJECT, config=dict(settings), init_kwargs={"wandb": {"dir": str(own)}})
        except ImportError as error:
            raise ConfigError(f"--tracker {', '.join(names)} cannot be used: {error}. Install it whole, or leave it out.") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell one step's numbers; `step` counts over the whole run."""
        if self._accelerator is not None:
            self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and end all of them."""
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:  # not end_training, which also ends the process group of a run on several ranks
                tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that accelerate does not know, or whose package is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError("--tracker: " + unknown_name("tracker", name, LOGGER_TYPE_TO_CLASS))
        if name not in there:
            raise ConfigError(f"--tracker {name}: its package is not installed. Install it, or leave the tracker out.")


def flat_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as tracker values: `terms/alignment`, `loss`, `learning_rate`, `measurements/...`."""
    numbers: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            numbers |= {f"{name}/{inner}": number for inner, number in value.items() if isinstance(number, int | float)}
        elif isinstance(value, int | float) and name not in ("step", "task_index"):
            numbers[name] = value
    return numbers
