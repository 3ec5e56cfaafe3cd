"""What was logged along the steps of a run, as curves: loss terms, learning rate, and what diagnostics measured."""

from collections.abc import Callable, Sequence
from typing import Any

from gift_train.records.files import steps_of_tasks
from gift_train.report.runs import Run

Curve = list[tuple[int, float]]  # (step counted over all tasks, value)
LABELS = {
    "loss": "loss (sum of terms)",
    "learning_rate": "learning rate",
    "distance_from_task_start": "distance from the previous weights",
    "fisher_half_share": "share of weights with half the Fisher",
}


def task_length(runs: Sequence[Run]) -> int:
    """Updates of the longest task, so that curves of several runs stand over one axis; all tasks at once have that many each."""
    return 1 + max(steps for run in runs for steps in [0, *steps_of_tasks(run.record)])


def curves(runs: Sequence[Run]) -> dict[str, dict[str, Curve]]:
    """{quantity: {recipe: curve}}, of the first seed of each recipe; every loss term first, then the measurements."""
    first = {run.recipe: run for run in reversed(runs)}
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    length = task_length(runs)
    readers: dict[str, Callable[[dict[str, Any]], float | None]] = {}
    for group in ("terms", "measurements"):
        names = {name for run in first.values() for line in run.metrics for name in line.get(group, {})}
        readers |= {name: lambda line, group=group, name=name: line.get(group, {}).get(name) for name in sorted(names)}
    readers["learning_rate"] = lambda line: line["learning_rate"]
    found: dict[str, dict[str, Curve]] = {}
    for name, read in readers.items():
        for recipe in recipes:
            points = [(line["task_index"] * length + line["step"], read(line)) for line in first[recipe].metrics]
            curve = [(step, value) for step, value in points if value is not None]
            if curve:
                found.setdefault(name, {})[recipe] = curve
    return found


def label(name: str) -> str:
    """How a quantity is called on an axis."""
    return LABELS.get(name, name.replace("_", " "))
