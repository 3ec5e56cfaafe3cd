"""The paper's table: Transfer, Avg. and Last per method, mean over seeds, with the difference to the l2 baseline."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gift_train.report.grid import Grid, grid_markdown, grid_text
from gift_train.report.runs import Run

METRICS = ("transfer", "avg", "last", "forgetting")
HEADINGS = {"transfer": "Transfer", "avg": "Avg.", "last": "Last", "forgetting": "Forgetting"}
BASELINE = "l2"


@dataclass(frozen=True)
class Row:
    """One method on one order: mean and standard deviation over its seeds, percent."""

    order: str
    recipe: str
    seeds: tuple[int, ...]
    mean: dict[str, float | None]  # None: an order of one task has no Transfer and no Forgetting
    deviation: dict[str, float | None]  # sample deviation; None for a single seed
    difference: dict[str, float | None]  # mean minus the l2 baseline's; None where there is no such row


def summary_rows(runs: Sequence[Run]) -> list[Row]:
    """Group runs by order and recipe, in the order in which they are first met."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.order, run.recipe), []).append(run)
    statistics = {key: seed_statistics([run.summary for run in group]) for key, group in groups.items()}
    rows = []
    for (order, recipe), group in groups.items():
        mean, deviation = statistics[order, recipe]
        baseline, _ = statistics.get((order, BASELINE), (None, None))
        rows.append(
            Row(
                order=order,
                recipe=recipe,
                seeds=tuple(run.summary["seed"] for run in group),
                mean=mean,
                deviation=deviation,
                difference={name: _minus(mean[name], None if baseline is None else baseline[name]) for name in METRICS},
            )
        )
    return rows


def as_text(rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal."""
    return grid_text(_grid(rows))


def as_markdown(rows: Sequence[Row]) -> str:
    """A GitHub table."""
    return grid_markdown(_grid(rows))


def as_csv(rows: Sequence[Row]) -> str:
    """Full precision, one line a method."""
    buffer = io.StringIO()
    fields = ["order", "recipe", "seeds", *(f"{name}{suffix}" for name in METRICS for suffix in ("", "_deviation", "_minus_l2"))]
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    for row in as_records(rows):
        flat = {"order": row["order"], "recipe": row["recipe"], "seeds": " ".join(map(str, row["seeds"]))}
        for name in METRICS:
            flat |= {name: row["mean"][name], f"{name}_deviation": row["deviation"][name], f"{name}_minus_l2": row["difference"][name]}
        writer.writerow(flat)
    return buffer.getvalue()


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """JSON-ready rows."""
    return [vars(row) | {"seeds": list(row.seeds)} for row in rows]


def seed_statistics(summaries: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and sample deviation of every metric over runs that differ by their seed; no deviation for a single run."""
    values = {name: [float(summary[name]) for summary in summaries if summary[name] is not None] for name in METRICS}
    mean = {name: float(np.mean(numbers)) if numbers else None for name, numbers in values.items()}
    return mean, {name: float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None for name, numbers in values.items()}


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _grid(rows: Sequence[Row]) -> Grid:
    heading = ["Method", *(HEADINGS[name] for name in METRICS), "seeds"]
    return Grid(heading, [_cells(row, rows) for row in rows])


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    # The order is named only where runs of several stand in one table.
    name = row.recipe if len({other.order for other in rows}) == 1 else f"{row.recipe} ({row.order})"
    return [name, *(_cell(row, metric) for metric in METRICS), str(len(row.seeds))]


def _cell(row: Row, metric: str) -> str:
    mean, deviation, difference = row.mean[metric], row.deviation[metric], row.difference[metric]
    if mean is None:
        return "-"
    text = f"{mean:.1f}"
    if deviation is not None:
        text += f" ± {deviation:.1f}"
    if difference is not None and row.recipe != BASELINE:
        text += f" ({difference:+.1f})"
    return text
