"""`gift-train report`: what is written where."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gift_shared.atomic import write_text
from gift_train.records.files import ALL_TASKS
from gift_train.report.beside_table import beside_lines, beside_tables
from gift_train.report.figures import save_figures
from gift_train.report.grid import Grid, grid_markdown, grid_text
from gift_train.report.page import write_page
from gift_train.report.runs import Run, load_runs
from gift_train.report.series import curves, task_length
from gift_train.report.share_of_joint import Share, share_csv, share_grid, share_records, shares_of_joint
from gift_train.report.summary_table import as_csv, as_markdown, as_records, as_text, summary_rows


def report_command(folders: Sequence[Path], out: Path | None, *, as_json: bool) -> str:
    """Report on runs; returns what is printed: a table, or JSON with every run's summary and the grouped rows.

    With `out`, also writes OUT/table.{csv,md} and, for each order, OUT/<order>/index.html beside its PNG, SVG and CSV parts.
    """
    runs = load_runs(folders)
    rows, shares = summary_rows(runs), shares_of_joint(runs)
    if out is not None:
        write_text(out / "table.csv", as_csv(rows))
        parts = [as_markdown(rows), *map(grid_markdown, _more_grids(runs, shares))]
        write_text(out / "table.md", "\n\n".join(parts) + "\n")
        if shares:
            write_text(out / "share_of_joint.csv", share_csv(shares))
        for order in dict.fromkeys(run.order for run in runs):
            _write_order(out / order, [run for run in runs if run.order == order])
    if as_json:
        return json.dumps(
            {
                "runs": [run.summary | {"path": str(run.path)} for run in runs],
                "rows": as_records(rows),
                "share_of_joint": share_records(shares),
            },
            indent=2,
        )
    return "\n\n".join([as_text(rows), *map(grid_text, _more_grids(runs, shares))])


def _more_grids(runs: Sequence[Run], shares: Sequence[Share]) -> list[Grid]:
    """What stands under the table where runs have it: shares of the way to joint, and what was evaluated beside the order."""
    grids = [share_grid(shares)] if shares else []
    orders = list(dict.fromkeys(run.order for run in runs))
    for order in orders:
        for table in beside_tables([run for run in runs if run.order == order]):
            grid = table.grid()
            where = f", {order}" if len(orders) > 1 else ""
            grids.append(Grid([f"{grid.heading[0]}{where}: last (change since zero-shot)", *grid.heading[1:]], grid.lines))
    return grids


def _write_order(folder: Path, runs: list[Run]) -> None:
    parts = [path.with_suffix(suffix) for path in save_figures(runs, folder) for suffix in (".png", ".svg")]
    for name, heading, lines in (
        ("accuracy", ("recipe", "seed", "label_space", "after", "dataset", "percent"), _accuracy_lines(runs)),
        ("beside", ("recipe", "seed", "after", "what", "quantity", "percent"), _beside_lines(runs)),
        ("training", ("recipe", "task", "step", "quantity", "value"), _training_lines(runs)),
    ):
        if name == "beside" and not beside_tables(runs):
            continue
        parts.append(folder / f"{name}.csv")
        write_text(parts[-1], _csv(heading, lines))
    write_page(folder / "index.html", runs, summary_rows(runs), parts)


def _accuracy_lines(runs: Sequence[Run]) -> Iterable[tuple[Any, ...]]:
    for run in runs:
        for space, found in run.label_spaces.items():
            for after, row in [("zero_shot", found.zero_shot), *zip(run.datasets, found.matrix, strict=False)]:
                for dataset, percent in zip(run.datasets, row.tolist(), strict=True):
                    yield run.recipe, run.summary["seed"], space, after, dataset, percent


def _beside_lines(runs: Sequence[Run]) -> Iterable[tuple[Any, ...]]:
    for run in runs:
        for line in beside_lines(run):
            yield run.recipe, run.summary["seed"], *line


def _training_lines(runs: Sequence[Run]) -> Iterable[tuple[Any, ...]]:
    length, tasks = task_length(runs), runs[0].datasets
    at_once = {run.recipe for run in runs if run.learns_at_once}
    for quantity, by_recipe in curves(runs).items():
        for recipe, curve in by_recipe.items():
            is_at_once = recipe in at_once
            for step, value in curve:
                task, own_step = (ALL_TASKS, step) if is_at_once else (tasks[step // length], step % length)
                yield recipe, task, own_step, quantity, value


def _csv(heading: Sequence[str], lines: Iterable[tuple[Any, ...]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(lines)
    return buffer.getvalue()
