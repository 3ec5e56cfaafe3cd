"""`gift-train report`: what is written where."""

import json
from collections.abc import Sequence
from pathlib import Path

from gift_shared.atomic import write_text
from gift_train.report.figures import save_figures
from gift_train.report.page import write_page
from gift_train.report.runs import Run, load_runs
from gift_train.report.tables import as_csv, as_markdown, as_records, as_text, summary_rows


def report_command(folders: Sequence[Path], out: Path | None, *, as_json: bool) -> str:
    """Report on runs; returns what is printed: a table, or JSON with every run's summary and the grouped rows.

    With `out`, also writes OUT/table.{csv,md} and, for each order, OUT/<order>/index.html beside its PNG and SVG pictures.
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
    pictures = save_figures(runs, folder)
    write_page(folder / "index.html", runs, summary_rows(runs), pictures)
