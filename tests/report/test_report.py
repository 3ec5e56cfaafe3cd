"""The report reads run folders and nothing else; malicious captions are shown, never run."""

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gift_shared.errors import ConfigError
from gift_shared.schema import INDEX_SCHEMA
from gift_shared.tables import write_index
from gift_train.report.command import report_command
from gift_train.report.runs import load_runs
from gift_train.report.tables import summary_rows

DATASETS = ["shapes", "digits", "flags"]


def make_run(folder: Path, recipe: str, seed: int, last: float) -> Path:
    matrix = np.full((3, 3), 40.0)
    matrix[2] = last
    folder.mkdir(parents=True)
    summary = {
        "method": recipe,
        "recipe": recipe,
        "order": "mini",
        "seed": seed,
        "transfer": 40.0,
        "avg": 50.0,
        "last": last,
        "forgetting": -5.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    accuracy = {"order": "mini", "datasets": DATASETS, "zero_shot": [30.0, 35.0, 40.0], "matrix": matrix.tolist()}
    (folder / "accuracy_matrix.json").write_text(json.dumps(accuracy))
    (folder / "run.json").write_text(json.dumps({"shards": None, "command": "gift-train run"}))
    lines = [
        {"task": task, "task_index": place, "step": step, "learning_rate": 1e-4, "terms": {"cross_entropy": 2.0 / (step + 1)}, "loss": 2.0}
        for place, task in enumerate(DATASETS)
        for step in range(0, 30, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "l2", "l2", 1, last=60.0)
    make_run(tmp_path / "runs" / "gift-1", "gift", 1, last=70.0)
    make_run(tmp_path / "runs" / "gift-2", "gift", 2, last=74.0)
    return tmp_path / "runs"


def test_seeds_are_averaged_and_compared_to_the_l2_baseline(runs: Path) -> None:
    gift, l2 = summary_rows(load_runs([runs]))
    assert (gift.recipe, gift.seeds, gift.mean["last"]) == ("gift", (1, 2), 72.0)
    assert gift.deviation["last"] == pytest.approx(np.sqrt(8.0))
    assert gift.difference["last"] == 12.0
    assert l2.deviation["last"] is None
    assert l2.difference["last"] == 0.0


def test_report_writes_table_pictures_and_page(runs: Path, tmp_path: Path) -> None:
    text = report_command([runs], tmp_path / "report", as_json=False)
    assert "72.0 ± 2.8 (+12.0)" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report" / "table.csv").read_text())))
    assert [row["recipe"] for row in rows] == ["gift", "l2"]
    assert float(rows[0]["last_minus_l2"]) == 12.0
    folder = tmp_path / "report" / "mini"
    for name in ("stability_plasticity", "forgetting_curves", "accuracy_matrices", "training_curves"):
        assert Image.open(folder / f"{name}.png").width > 200
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
    assert (folder / "index.html").read_text().count("data:image/png;base64,") == 4


def test_json_report_holds_every_run(runs: Path) -> None:
    report = json.loads(report_command([runs], None, as_json=True))
    assert [(run["recipe"], run["seed"]) for run in report["runs"]] == [("gift", 1), ("gift", 2), ("l2", 1)]


def test_a_caption_is_shown_and_never_run(runs: Path, tmp_path: Path) -> None:
    shards = tmp_path / "out"
    (shards / "shards").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    content = buffer.getvalue()
    (shards / "shards" / "shapes-00000.tar").write_bytes(b"x" * 512 + content)
    row = dict.fromkeys(INDEX_SCHEMA.names) | {
        "task": "shapes", "index": 0, "sample_key": "shapes-000000", "caption": "<script>alert(1)</script>", "source": "file:web",
        "sample_seed": 1, "guidance_scale": 7.5, "denoising_steps": 5, "shard": "shapes-00000", "status": "ok",
        "message": "", "attempts": 1,
        "used_seed": 1, "byte_offset": 512, "byte_size": len(content), "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    gift = runs / "gift-1"
    write_index(gift / "replay" / "shapes.parquet", pa.Table.from_pylist([row], INDEX_SCHEMA), {})
    (gift / "run.json").write_text(json.dumps({"shards": {"path": str(shards)}}))
    report_command([runs], tmp_path / "report", as_json=False)
    page = (tmp_path / "report" / "mini" / "index.html").read_text()
    assert "&lt;script&gt;alert" in page
    assert "<script>alert" not in page
    assert "data:image/webp;base64," in page


def test_a_folder_without_runs_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder and holds none"):
        load_runs([tmp_path])


def test_an_unfinished_run_is_named_with_what_is_missing(runs: Path) -> None:
    (runs / "l2" / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"l2 is not finished \(summary.json is missing\)"):
        load_runs([runs])
