"""The paper's table: Transfer, Avg. and Last per method, mean over seeds, with the difference to the l2 baseline; in every label space."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gift_shared.manifests import LabelSpace
from gift_train.report.grid import Grid, grid_markdown, grid_text
from gift_train.report.runs import Run, label_spaces

METRICS = ("transfer", "avg", "last", "forgetting")
HEADINGS = {"transfer": "Transfer", "avg": "Avg.", "last": "Last", "forgetting": "Forgetting"}
BASELINE = "l2"


@dataclass(frozen=True)
class Row:
    """One method on one order in one label space: mean and standard deviation over its seeds, percent."""

    order: str
    recipe: str
    label_space: LabelSpace
    seeds: tuple[int, ...]
    mean: dict[str, float | None]  # None: an order of one task has no Transfer and no Forgetting
    deviation: dict[str, float | None]  # sample deviation; None for a single seed
    difference: dict[str, float | None]  # mean minus the l2 baseline's; None where there is no such row


def summary_rows(runs: Sequence[Run]) -> list[Row]:
    """Group runs by order and recipe, in the order in which they are first met, a row for each label space, the order's own first."""
    groups: dict[tuple[str, str, LabelSpace], list[Run]] = {}
    for order, recipe in dict.fromkeys((run.order, run.recipe) for run in runs):
        group = [run for run in runs if (run.order, run.recipe) == (order, recipe)]
        for space in label_spaces(group):
            groups[order, recipe, space] = [run for run in group if space in run.label_spaces]
    statistics = {key: seed_statistics([run.label_spaces[key[2]].numbers for run in group]) for key, group in groups.items()}
    rows = []
    for (order, recipe, space), group in groups.items():
        mean, deviation = statistics[order, recipe, space]
        baseline, _ = statistics.get((order, BASELINE, space), (None, None))
        rows.append(
            Row(
                order=order,
                recipe=recipe,
                label_space=space,
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
    """Full precision, one line a method and label space."""
    buffer = io.StringIO()
    fields = [
        "order",
        "recipe",
        "label_space",
        "seeds",
        *(f"{name}{suffix}" for name in METRICS for suffix in ("", "_deviation", "_minus_l2")),
    ]
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    for row in as_records(rows):
        flat = {name: row[name] for name in ("order", "recipe", "label_space")} | {"seeds": " ".join(map(str, row["seeds"]))}
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
    # Order and label space are named only where there are several in one table.
    has_orders, has_spaces = (len({getattr(row, name) for row in rows}) > 1 for name in ("order", "label_space"))
    heading = ["Method", *(["label space"] if has_spaces else []), *(HEADINGS[name] for name in METRICS), "seeds"]
    lines = []
    for row in rows:
        name = f"{row.recipe} ({row.order})" if has_orders else row.recipe
        lines.append([name, *([row.label_space] if has_spaces else []), *(_cell(row, metric) for metric in METRICS), str(len(row.seeds))])
    return Grid(heading, lines)


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
