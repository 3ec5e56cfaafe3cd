"""`render --preview N`: pictures, rate and hours before the long run; the output folder stays as it is."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.views.preview import choose, estimate_lines
from gift_shared.parquet_files import open_plan

FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)


def test_a_preview_of_a_plan_needs_no_folder_and_makes_none(command, plan: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    result = command("render", "--plan", plan, "--out", "out", *FLAT, "--preview", 3)
    assert result.code == 0, result.err
    assert set(tmp_path.iterdir()) - before == {tmp_path / "preview.png"}
    with Image.open("preview.png") as sheet:
        assert sheet.width == 3 * 154 + 10
    lines = result.out.splitlines()
    assert lines[0] == "preview   preview.png: 6 images in 2 lines"
    assert re.fullmatch(r"rate      [\d.]+ images/s \(16 images in batches of 16, after warm-up\)", lines[1])
    assert re.fullmatch(r"estimate  20 images left: \S+ worker-hours", lines[2])
    assert [line.split()[:2] for line in lines[3:6]] == [["1", "worker"], ["8", "workers"], ["64", "workers"]]
    assert re.fullmatch(r"disk      [\d.]+ kB \(\d\.\d kB an image\)", lines[6])


def test_a_preview_of_a_begun_folder_leaves_it_alone_and_counts_what_is_left(command, rendered: Path, tmp_path: Path) -> None:
    for name in ("cats-00001", "cars-00002"):
        (rendered / "shards" / f"{name}.parquet").unlink()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in rendered.rglob("*")}
    result = command("render", "--out", rendered, *FLAT, "--preview", 1, "--preview-to", tmp_path / "few.png")
    assert "estimate  6 images left" in result.out
    assert (tmp_path / "few.png").is_file()
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in rendered.rglob("*")} == before


@pytest.mark.parametrize("usable", ["", "a"])
def test_images_that_do_not_come_out_are_told(command, plan: Path, tmp_path: Path, monkeypatch, usable: str) -> None:
    color = FlatColorRenderer._color
    black = np.zeros(3, dtype=np.uint8)
    monkeypatch.setattr(FlatColorRenderer, "_color", lambda self, job: color(self, job) if usable and "cat" in job.caption else black)
    result = command("render", "--plan", plan, "--out", tmp_path / "out", *FLAT, "--preview", 2, "--preview-to", tmp_path / "black.png")
    if usable:
        assert "black ('all pixels are 0')" in result.out
    else:
        assert result.code != 0
        assert "None of the first 32 images is usable (32 black; all pixels are 0)" in result.err
    assert not (tmp_path / "out").exists()


def test_a_task_shows_every_source_before_any_twice(plan: Path) -> None:
    rows = open_plan(plan)
    for num in (1, 2, 3, 5):
        chosen = choose(rows, num)
        assert {task: len(of_task) for task, of_task in chosen.items()} == {"cats": num, "cars": num}
        assert len({row["source"] for row in chosen["cars"]}) == min(num, 2)  # world and cats
        assert len({row["sample_key"] for row in chosen["cars"]}) == num


def test_a_pool_shows_every_source(command, manifests: Path, tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    assert command("plan", "--kind", "pool", "--order", "tiny", "--images-per-class", 4, "--out", path, "--manifests", manifests).code == 0
    chosen = choose(open_plan(path), 3)
    assert {source: len({row["class_name"] for row in rows}) for source, rows in chosen.items()} == {"world": 3, "cats": 3, "cars": 2}


def test_the_hours_are_those_of_whole_shards() -> None:
    lines = list(estimate_lines([1800] * 20, 0.5, "GPU"))
    assert lines == [
        "estimate  36,000 images left: 20 GPU-hours",
        "           1 GPU   20.0 hours",
        "           8 GPUs  3.0 hours",
        "          64 GPUs  1.0 hours; 44 without a shard, plan with fewer --images-per-shard",
    ]
    assert list(estimate_lines([], 1.0, "GPU")) == ["estimate  nothing is left to render"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preview-to", "x.jpg"), "--preview-to x.jpg should be a name that ends in .png."),
        (("--preview-to", "."), "--preview-to . is a folder"),
        (("--plan", "missing.parquet"), "No plan at missing.parquet"),
    ],
)
def test_a_preview_that_cannot_be_is_one_line(command, plan: Path, tmp_path: Path, words: tuple, message: str) -> None:
    result = command("render", "--plan", plan, "--out", tmp_path / "out", *FLAT, "--preview", 1, *words)
    assert result.code == 2
    assert message in result.err
