"""One self-contained HTML page. Everything a user typed (captions, names) is escaped by the template engine, never by hand."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader

from gift_train.report.gallery import task_galleries
from gift_train.report.runs import Run
from gift_train.report.tables import HEADINGS, METRICS, Row

GALLERY_IMAGES_PER_TASK = 24
CAPTIONS = {
    "stability_plasticity": "Each point is a run. Right: it knows the tasks it was taught. Up: it still transfers to those it was not.",
    "forgetting_curves": "Accuracy on each dataset after every task. The dotted line is where that dataset itself was learned.",
    "accuracy_matrices": "Row: after which task. Column: on which dataset. White frames: the dataset just learned. Mean over seeds.",
    "training_curves": "Every loss term as logged, first seed of each recipe.",
}


def write_page(path: Path, runs: Sequence[Run], rows: Sequence[Row], pictures: Sequence[Path]) -> None:
    """Render `page.html.j2` with the runs of one order. Pictures are embedded; the page needs no network."""
    environment = Environment(loader=PackageLoader("gift_train.report", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    with_replay = next((run for run in runs if run.recipe == "gift"), next((run for run in runs if (run.path / "replay").is_dir()), None))
    html = environment.get_template("page.html.j2").render(
        runs=runs,
        rows=rows,
        metrics=METRICS,
        headings=HEADINGS,
        pictures=[(picture.stem, _data_uri(picture), CAPTIONS[picture.stem]) for picture in pictures],
        galleries=task_galleries(with_replay, GALLERY_IMAGES_PER_TASK) if with_replay else {},
        gallery_recipe=with_replay.recipe if with_replay else "",
        records={run.path.name: json.dumps(run.record, indent=2, ensure_ascii=False) for run in runs},
    )
    path.write_text(html, encoding="utf-8")


def _data_uri(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
