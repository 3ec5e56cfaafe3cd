"""`gift-train report`: what is written where."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gift_shared.atomic import write_text
from gift_train.report.figures import save_figures
from gift_train.report.page import write_page
from gift_train.report.runs import Run, load_runs
from gift_train.report.series import curves, task_length
from gift_train.report.summary_table import as_csv, as_markdown, as_records, as_text, summary_rows


def report_command(folders: Sequence[Path], out: Path | None, *, as_json: bool) -> str:
    """Report on runs; returns what is printed: a table, or JSON with every run's summary and the grouped rows.

    With `out`, also writes OUT/table.{csv,md} and, for each order, OUT/<order>/index.html beside its PNG, SVG and CSV parts.
    """
    runs = load_runs(folders)
    rows = summary_rows(runs)
    if out is not None:
        write_text(out / "table.csv", as_csv(rows))
        write_text(out / "table.md", as_markdown(rows) + "\n")
        for order in dict.fromkeys(run.order for run in runs):
            _write_order(out / order, [run for run in runs if run.order == order])
    if as_json:
        return json.dumps({"runs": [run.summary | {"path": str(run.path)} for run in runs], "rows": as_records(rows)}, indent=2)
    return as_text(rows)


def _write_order(folder: Path, runs: list[Run]) -> None:
    parts = [path.with_suffix(suffix) for path in save_figures(runs, folder) for suffix in (".png", ".svg")]
    for name, heading, lines in (
        ("accuracy", ("recipe", "seed", "label_space", "after", "dataset", "percent"), _accuracy_lines(runs)),
        ("training", ("recipe", "task", "step", "quantity", "value"), _training_lines(runs)),
    ):
        parts.append(folder / f"{name}.csv")
        write_text(parts[-1], _csv(heading, lines))
    write_page(folder / "index.html", runs, summary_rows(runs), parts)


def _accuracy_lines(runs: Sequence[Run]) -> Iterable[tuple[Any, ...]]:
    for run in runs:
        for space, found in run.label_spaces.items():
            for after, row in [("zero_shot", found.zero_shot), *zip(run.datasets, found.matrix, strict=False)]:
                for dataset, percent in zip(run.datasets, row.tolist(), strict=True):
                    yield run.recipe, run.summary["seed"], space, after, dataset, percent


def _training_lines(runs: Sequence[Run]) -> Iterable[tuple[Any, ...]]:
    length, tasks = task_length(runs), runs[0].datasets
    for quantity, by_recipe in curves(runs).items():
        for recipe, curve in by_recipe.items():
            for step, value in curve:
                yield recipe, tasks[step // length], step % length, quantity, value


def _csv(heading: Sequence[str], lines: Iterable[tuple[Any, ...]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(lines)
    return buffer.getvalue()
