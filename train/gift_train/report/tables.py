"""The paper's table: Transfer, Avg. and Last per method, mean over seeds, with the difference to the l2 baseline."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    mean: dict[str, float]
    deviation: dict[str, float | None]  # sample deviation; None for a single seed
    difference: dict[str, float | None]  # mean minus the l2 baseline's; None where there is no such row


def summary_rows(runs: Sequence[Run]) -> list[Row]:
    """Group runs by order and recipe, in the order in which they are first met."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.order, run.recipe), []).append(run)
    means = {key: {name: float(np.mean([run.summary[name] for run in group])) for name in METRICS} for key, group in groups.items()}
    rows = []
    for (order, recipe), group in groups.items():
        baseline = means.get((order, BASELINE))
        rows.append(
            Row(
                order=order,
                recipe=recipe,
                seeds=tuple(run.summary["seed"] for run in group),
                mean=means[order, recipe],
                deviation={name: _deviation([run.summary[name] for run in group]) for name in METRICS},
                difference={name: None if baseline is None else means[order, recipe][name] - baseline[name] for name in METRICS},
            )
        )
    return rows


def as_text(rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal."""
    cells = [_heading(rows), *(_cells(row, rows) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for name, *values in cells:
        padded = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(rows: Sequence[Row]) -> str:
    """A GitHub table."""
    heading, *lines = [_heading(rows), *(_cells(row, rows) for row in rows)]
    ruler = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, ruler, *lines))


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


def _deviation(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _heading(rows: Sequence[Row]) -> list[str]:
    return ["Method", *(HEADINGS[name] for name in METRICS), "seeds"]


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    # The order is named only where runs of several stand in one table.
    name = row.recipe if len({other.order for other in rows}) == 1 else f"{row.recipe} ({row.order})"
    return [name, *(_cell(row, metric) for metric in METRICS), str(len(row.seeds))]


def _cell(row: Row, metric: str) -> str:
    text = f"{row.mean[metric]:.1f}"
    deviation, difference = row.deviation[metric], row.difference[metric]
    if deviation is not None:
        text += f" ± {deviation:.1f}"
    if difference is not None and row.recipe != BASELINE:
        text += f" ({difference:+.1f})"
    return text
