"""One self-contained HTML page. Everything a user typed (captions, names) is escaped by the template engine, never by hand."""

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gift_shared.atomic import write_text
from gift_shared.manifests import LabelSpace
from gift_shared.worker_logs import render_times
from gift_train.evaluation.metrics import accuracies_so_far
from gift_train.report import charts
from gift_train.report.beside_table import beside_tables
from gift_train.report.charts import Chart
from gift_train.report.gallery import ForgottenImage, RunPictures
from gift_train.report.heat_map import heat_maps, mean_matrix
from gift_train.report.published import printed_rows
from gift_train.report.runs import Run, label_spaces
from gift_train.report.series import curves, label, task_length
from gift_train.report.share_of_joint import share_text, shares_of_joint
from gift_train.report.summary_table import HEADINGS, METRICS, Row

MOST_BYTES = 5_000_000
PICTURES_PER_TASK = ((24, 8), (12, 6), (6, 3), (0, 0))  # synthetic and forgotten ones; the first that keep the page small enough


def write_page(path: Path, runs: Sequence[Run], rows: Sequence[Row], files: Sequence[Path]) -> None:
    """Render `page.html.j2` with the runs of one order. It opens from disk and needs no network; `files` lie beside it."""
    pictures = _pictures_of(runs)
    for num_synthetic, num_forgotten in PICTURES_PER_TASK:
        html = _render(runs, rows, files, pictures, (num_synthetic, num_forgotten))
        if len(html.encode()) <= MOST_BYTES or not num_synthetic:
            break
    write_text(path, html)


def _render(runs: Sequence[Run], rows: Sequence[Row], files: Sequence[Path], pictures: RunPictures | None, counts: tuple[int, int]) -> str:
    environment = Environment(
        loader=PackageLoader("gift_train.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    style = charts.styles(recipes)
    script, css = (_part(name) for name in ("page.js", "page.css"))
    synthetic = pictures.synthetic(counts[0]) if pictures else []
    disagreeing = sorted((image for image in synthetic if image.fit is not None), key=lambda image: -image.divergence)
    return environment.get_template("page.html.j2").render(
        order=runs[0].order,
        runs=runs,
        rows=[row for row in rows if row.label_space == runs[0].label_space],
        metrics=_metrics(runs),
        headings=HEADINGS,
        spaces=_label_spaces(runs, rows),
        is_class_incremental=runs[0].is_class_incremental,
        shares=shares_of_joint(runs),
        share_text=share_text,
        beside=beside_tables(runs),
        printed=printed_rows(runs[0].order),
        style=style,
        marker_shape=charts.marker_shape,
        heat_maps=heat_maps(runs),
        so_far=_so_far_chart(runs, style),
        forgetting=_forgetting_charts(runs, style),
        scatter=_scatter(runs, style),
        training=_training_charts(runs, style),
        picture_run=pictures.run if pictures else None,
        synthetic=synthetic,
        disagreeing=disagreeing[:12],
        forgotten=_by_task(pictures.forgotten(counts[1])) if pictures else {},
        records=[_record(run) for run in runs],
        files=[file.name for file in files],
        # The only code on the page: what is not this script, by its hash, the browser refuses to run.
        script=Markup(script),
        css=Markup(css),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _metrics(runs: Sequence[Run]) -> list[str]:
    """The columns of results; what the order's protocol does not have is none."""
    return [name for name in METRICS if not runs[0].is_class_incremental or any(run.summary[name] is not None for run in runs)]


@dataclass(frozen=True)
class LabelSpaces:
    """The same runs under every answer to who knows the task. `rows`: by recipe, a row for each of `names` that it was evaluated in."""

    names: Sequence[LabelSpace]
    rows: Mapping[str, Mapping[LabelSpace, Row]]


def _label_spaces(runs: Sequence[Run], rows: Sequence[Row]) -> LabelSpaces | None:
    """None where all runs know one."""
    names = label_spaces(runs)
    recipes = dict.fromkeys(row.recipe for row in rows)
    by_recipe = {recipe: {row.label_space: row for row in rows if row.recipe == recipe} for recipe in recipes}
    return LabelSpaces(names, by_recipe) if len(names) > 1 else None


def _by_task(images: Sequence[ForgottenImage]) -> dict[str, list[ForgottenImage]]:
    tasks = dict.fromkeys(image.task for image in images)
    return {task: [image for image in images if image.task == task] for task in tasks}


def _part(name: str) -> str:
    return (resources.files("gift_train.report") / "templates" / name).read_text(encoding="utf-8")


def _pictures_of(runs: Sequence[Run]) -> RunPictures | None:
    """The run whose images are shown: GIFT itself if it is there, else one that replayed any, else one that forgot any."""
    with_replay = [run for run in runs if (run.path / "replay").is_dir()]
    with_notes = [run for run in runs if (run.path / "diagnostics").is_dir()]
    gift = [run for run in with_replay if run.recipe == "gift"]
    chosen = next(iter([*gift, *with_replay, *with_notes]), None)
    return None if chosen is None else RunPictures(chosen)


def _so_far_chart(runs: Sequence[Run], style: Mapping[str, int]) -> Chart | None:
    """The curve of class-incremental papers: accuracy on all classes learned by then. None for another protocol."""
    if not runs[0].is_class_incremental:
        return None
    curves = {}
    for recipe in style:
        group = [run for run in runs if run.recipe == recipe]
        found = np.mean([accuracies_so_far(run.matrix.tolist(), run.accuracy["test_images"]) for run in group], axis=0)
        curves[recipe] = list(enumerate(found.tolist(), start=1))
    return charts.curve_chart("all classes so far (%)", curves, style, charts.learned_axis(runs[0].datasets), has_markers=True)


def _forgetting_charts(runs: Sequence[Run], style: Mapping[str, int]) -> list[Chart]:
    datasets = runs[0].datasets
    matrices = {recipe: mean_matrix([run for run in runs if run.recipe == recipe]) for recipe in style}
    found = []
    for column, dataset in enumerate(datasets):
        by_recipe = {recipe: list(enumerate(matrix[:, column].tolist())) for recipe, matrix in matrices.items()}
        found.append(charts.curve_chart(dataset, by_recipe, style, charts.evaluations_axis(datasets, column), has_markers=True))
    return found


def _scatter(runs: Sequence[Run], style: Mapping[str, int]) -> Chart | None:
    if any(run.summary["transfer"] is None for run in runs):
        return None  # an order of one task transfers to nothing
    clouds: dict[str, list[tuple[float, float, str]]] = {}
    for run in runs:
        last, transfer = run.summary["last"], run.summary["transfer"]
        name = f"seed {run.summary['seed']}: Last {last:.2f}, Transfer {transfer:.2f}"
        clouds.setdefault(run.recipe, []).append((last, transfer, name))
    return charts.scatter_chart("Transfer (%) over Last (%)", clouds, style, "Last: all datasets after the last task (%)")


def _training_charts(runs: Sequence[Run], style: Mapping[str, int]) -> list[Chart]:
    axis = charts.training_axis(runs[0].datasets, task_length(runs))
    return [charts.curve_chart(label(name), by_recipe, style, axis, has_markers=False) for name, by_recipe in curves(runs).items()]


@dataclass(frozen=True)
class Record:
    """What it takes to repeat a run, ready to be shown. `stages`: (stage, what was used, hours)."""

    name: str
    command: str
    hardware: str
    versions: str
    commit: str
    times: str
    stages: Sequence[tuple[str, str, str]]
    recipe: str


def _record(run: Run) -> Record:
    record = run.record
    hardware: Mapping[str, Any] = record.get("hardware") or {}
    accelerators = ", ".join(hardware.get("accelerators") or ()) or "no accelerator"
    machine = f"{hardware.get('processor', '?')}, {hardware.get('cores', '?')} cores, {accelerators}"
    command = record.get("command") or ""
    command = command if isinstance(command, str) else shlex.join([Path(command[0]).name, *command[1:]] if command else [])
    stages = [(stage, accelerators, _hours(seconds)) for stage, seconds in (run.summary.get("seconds") or {}).items()]
    waited = run.summary.get("waited")
    if waited is not None:
        stages.append(("of training, waiting for images", accelerators, f"{waited:.0%}"))
    return Record(
        name=run.path.name,
        command=command,
        hardware=machine,
        versions=", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()),
        commit=str(record.get("commit") or "unknown"),
        times=f"{record.get('started', '?')} to {record.get('ended', '?')}",
        stages=[*_generation_stage(run), *stages],
        recipe=json.dumps(record.get("recipe", record), indent=2, ensure_ascii=False),
    )


def _generation_stage(run: Run) -> list[tuple[str, str, str]]:
    """What the shards of a run took, all workers added up, where the folder still tells."""
    shards = (run.record.get("shards") or {}).get("path")
    if shards is None:
        return []
    times = render_times(Path(shards)).values()
    if not times:
        return []
    num_images, seconds = sum(images for images, _ in times), sum(seconds for _, seconds in times)
    return [(f"generate {num_images:,} images", "once, for every run over these shards", _hours(seconds))]


def _hours(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
