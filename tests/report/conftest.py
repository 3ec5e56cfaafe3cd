"""Run folders as `gift-train run` leaves them, made up in a moment: three recipes over three tasks, and a folder of shards."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gift_shared.parquet_files import write_index
from gift_shared.schema import INDEX_SCHEMA
from gift_train.records.diagnostics.files import diagnostics_file, write_diagnostics

DATASETS = ("shapes", "digits", "flags")
NASTY = (
    "<script>document.title = 'owned'</script>",
    '"><img src=x onerror="document.title = \'owned\'">',
    "' onmouseover='document.title = 1' x='",
    "</script><script>document.title = 'owned'</script>",
    "صورة لثعلب أحمر في الثلج",
    "a 🦊 in the ❄️, by night",
    "a very long caption " * 40,
    "{{ 7 * 7 }} {% raw %}",
)


def _save_run(folder: Path, recipe: str, seed: int = 42, *, last: float = 70.0, datasets: Sequence[str] = DATASETS) -> Path:
    """A finished run whose row after the last task is `last` percent everywhere."""
    rng = np.random.default_rng(seed)
    size = len(datasets)
    matrix = 40 + 20 * rng.random((size, size)) + 25 * np.tril(np.ones((size, size)))
    matrix[-1] = last
    folder.mkdir(parents=True)
    numbers = {"transfer": 40.0, "avg": 50.0, "last": last, "forgetting": -5.0}
    summary = {"method": recipe, "title": recipe, "recipe": recipe, "order": "mini", "seed": seed, **numbers, "seconds": {"train": 4000.0}}
    accuracy = {"order": "mini", "datasets": list(datasets), "zero_shot": np.linspace(30, 60, size).tolist(), "matrix": matrix.tolist()}
    record = {
        "recipe_name": recipe, "recipe": {"method": recipe, "steps": 29}, "order": "mini", "datasets": list(datasets), "seed": seed,
        "shards": None, "command": ["/usr/bin/gift-train", "run", "--method", recipe], "commit": "0123abc", "started": "2025-01-01T10:00",
        "ended": "2025-01-01T11:00", "versions": {"python": "3.11"}, "hardware": {"processor": "x86", "cores": 2, "accelerators": []},
    }  # fmt: skip
    for name, content in (("summary", summary), ("accuracy_matrix", accuracy), ("run", record)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    lines = []
    for place, task in enumerate(datasets):
        for step in range(0, 30, 5):
            terms = {"cross_entropy": 2.0 / (step + 1), "distillation": 0.4 + 0.01 * step}
            row = {"task": task, "task_index": place, "step": step, "learning_rate": 1e-4 * (30 - step), "terms": terms}
            measured = {"distance_from_task_start": 0.1 * step, "fisher_half_share": 0.02}
            lines.append(json.dumps(row | {"loss": sum(terms.values()), "measurements": measured}))
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def picture(number: int, side: int = 32) -> bytes:
    """A PNG of two colours that depend on the number."""
    rng = np.random.default_rng(number)
    pixels = np.repeat(np.repeat(rng.integers(0, 255, (4, 4, 3)), side // 4, axis=0), side // 4, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def save_shards(out: Path, captions: Sequence[str], datasets: Sequence[str] = DATASETS) -> dict[str, list[dict]]:
    """One shard a task with one image for each caption; returns the index rows by task."""
    rows: dict[str, list[dict]] = {}
    (out / "shards").mkdir(parents=True)
    for task in datasets:
        with tarfile.open(out / "shards" / f"{task}-00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index, caption in enumerate(captions):
                content = picture(index)
                member = tarfile.TarInfo(f"{task}-{index:06d}.png")
                member.size, offset = len(content), tar.offset + 512
                tar.addfile(member, io.BytesIO(content))
                values = {
                    "task": task, "index": index, "sample_key": f"{task}-{index:06d}", "caption": caption,
                    "source": "shapes" if index % 2 else "file:web", "class_name": f"class {index % 3}" if index % 2 else None,
                    "sample_seed": index, "guidance_scale": 7.5, "denoising_steps": 5, "shard": f"{task}-00000", "status": "ok",
                    "message": "", "attempts": 1, "used_seed": index, "byte_offset": offset, "byte_size": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(), "width": 32, "height": 32, "image_name": member.name,
                }  # fmt: skip
                rows.setdefault(task, []).append(dict.fromkeys(INDEX_SCHEMA.names) | values)
    return rows


def _add_pictures(run: Path, shards: Path, captions: Sequence[str], datasets: Sequence[str] = DATASETS) -> None:
    """Give a run a replay selection, shards and diagnostics."""
    rows = save_shards(shards, captions, datasets)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"shards": {"path": str(shards)}}))
    write_index(shards / "index.parquet", pa.Table.from_pylist([row for task in datasets for row in rows[task]], INDEX_SCHEMA), {})
    (shards / "workers").mkdir()
    (shards / "workers" / "00000-w.jsonl").write_text(json.dumps({"event": "shard", "images": 24, "seconds": 90.0}) + "\n")
    rng = np.random.default_rng(0)
    for number, task in enumerate(datasets, start=1):
        write_index(run / "replay" / f"{task}.parquet", pa.Table.from_pylist(rows[task], INDEX_SCHEMA), {})
        count = len(captions)
        fit: dict = {"sample_key": [row["sample_key"] for row in rows[task]]}
        for name in ("similarity_before", "similarity_after", "probability_before", "probability_after", "divergence"):
            fit[name] = rng.random(count).tolist()
        fit |= {"rank_before": [2] * count, "rank_after": [1] * count}
        write_diagnostics(diagnostics_file(run, "replay", number, task), "replay", fit)
        lost = {
            "dataset": ["shapes"] * 4, "index": [3, 5, 8, 9], "class_name": ["class 1"] * 3 + [NASTY[0]],
            "predicted_class_name": ["class 0"] * 4, "picture": [picture(100 + place) for place in range(4)], "num_forgotten": [17] * 4,
        }  # fmt: skip
        write_diagnostics(diagnostics_file(run, "forgotten", number, task), "forgotten", lost)


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def runs_in_three_spaces(runs: Path) -> Path:
    """The same runs, of an order whose own label space is union-all, evaluated in the two others as well."""
    for number, run in enumerate(sorted(runs.iterdir())):  # gift-1, gift-2, l2
        accuracy, numbers = {}, {}
        for space, shift in (("known", 10.0), ("union-seen", 5.0)):
            accuracy[space] = {"zero_shot": [20.0 + shift] * 3, "matrix": [[60.0 + shift + number] * 3] * 3}
            numbers[space] = {"transfer": 40.0 + shift, "avg": 50.0 + shift + number, "last": 60.0 + shift + number, "forgetting": 0.0}
        _edit(run / "accuracy_matrix.json", label_space="union-all", label_spaces=accuracy)
        _edit(run / "summary.json", label_space="union-all", label_spaces=numbers)
    return runs


@pytest.fixture
def class_incremental_runs(runs: Path) -> Path:
    """The same runs, as if their tasks were steps of one dataset with 100, 200 and 300 test images."""
    for run in runs.iterdir():
        _edit(run / "accuracy_matrix.json", label_space="union-seen", protocol="class-incremental", test_images=[100, 200, 300])
        _edit(run / "summary.json", label_space="union-seen", protocol="class-incremental", transfer=None)
    _edit(runs / "l2" / "accuracy_matrix.json", matrix=[[90.0, 1.0, 2.0], [60.0, 75.0, 3.0], [30.0, 60.0, 70.0]])
    return runs


@pytest.fixture
def save_run() -> Callable[..., Path]:
    """`save_run(folder, recipe, seed, last=..., datasets=...)` makes up a finished run."""
    return _save_run


@pytest.fixture
def add_pictures() -> Callable[..., None]:
    """`add_pictures(run, shards, captions, datasets)` gives a run synthetic images and diagnostics."""
    return _add_pictures


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """l2 once and gift with two seeds, without pictures."""
    _save_run(tmp_path / "runs" / "l2", "l2", 1, last=60.0)
    _save_run(tmp_path / "runs" / "gift-1", "gift", 1, last=70.0)
    _save_run(tmp_path / "runs" / "gift-2", "gift", 2, last=74.0)
    return tmp_path / "runs"


@pytest.fixture
def runs_with_pictures(runs: Path, tmp_path: Path) -> Path:
    """The same; the first gift run replayed images whose captions try to break out."""
    _add_pictures(runs / "gift-1", tmp_path / "out", NASTY)
    return runs
