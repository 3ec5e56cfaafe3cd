"""Images that are not those a run began with are told at its next start, before any work; a copy of them elsewhere is no change."""

import json
import shutil

import pytest


@pytest.fixture
def begun(quick_run, world, tmp_path):
    """A run stopped after its first task, over images of its own. Returns a function: start it again -> Outcome."""
    shutil.copytree(world.root / "data", tmp_path / "data")

    def start(data="data", *more):
        return quick_run("finetune", tmp_path / "run", f"--data-root={tmp_path / data}", *more)

    assert start("data", "--stop-after=1").code == 0
    return start


def add_a_test_image(folder):
    shutil.copy(folder / "stripes/test/level/0.png", folder / "stripes/test/level/9.png")
    shutil.copy(folder / "stripes/test/level/0.png", folder / "stripes/test/upright/9.png")


def remove_a_pixel(folder):
    path = folder / "stripes/test/level/0.png"
    path.write_bytes(path.read_bytes() + b"\0")


def exchange_a_name(folder):
    (folder / "stripes/train/level/0.png").rename(folder / "stripes/train/level/other.png")


@pytest.mark.parametrize("change", [remove_a_pixel, exchange_a_name])
def test_changed_images_are_refused_before_work(begun, tmp_path, change):
    change(tmp_path / "data")
    log = (tmp_path / "run/log.jsonl").read_text()
    outcome = begun()
    assert outcome.code == 2
    assert "the images of stripes (how many, their names or sizes) are not those it began with" in outcome.err.splitlines()[-1]
    assert (tmp_path / "run/log.jsonl").read_text() == log


def test_added_images_are_refused_by_the_manifests_counts_or_else_by_the_run(begun, world, tmp_path):
    add_a_test_image(tmp_path / "data")
    outcome = begun()
    assert outcome.code == 2
    assert "found 12 test images" in outcome.err.splitlines()[-1]


def test_the_same_images_in_another_folder_are_the_same_run(begun, tmp_path):
    (tmp_path / "data").rename(tmp_path / "moved")
    assert begun("moved").code == 0
    assert (tmp_path / "run/summary.json").exists()


def test_a_run_from_before_images_were_recorded_goes_on(begun, tmp_path):
    record = json.loads((tmp_path / "run/run.json").read_text())
    del record["identity"]["images"]
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    remove_a_pixel(tmp_path / "data")
    assert begun().code == 0
