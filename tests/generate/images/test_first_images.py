"""A model that makes nothing usable is told after its first batches, and leaves a folder that may be filled with other settings."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.first_images import NothingUsable
from gift_generate.images.rendered import RenderedImages
from gift_generate.pipeline import RunSummary, run
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.rendering.renderer import Rendered, RenderJob
from gift_generate.workers.rank import Worker
from gift_shared.errors import ConfigError

PIXELS = np.zeros((16, 16, 3), np.uint8)
NAN, FLAGGED, BLACK = Rendered(PIXELS, is_finite=False), Rendered(PIXELS, is_flagged=True), Rendered(PIXELS)
ELSEWHERE = "00007-node12-0123abcd-4711-99"


class SpoiltRenderer(FlatColorRenderer):
    """Flat colours, but for the jobs that `spoil` answers; counts what it was asked for."""

    def __init__(self, spoil: Callable[[RenderJob], Rendered | None], dtype: str = "float16") -> None:
        super().__init__(batch_size=8, height=16, width=16)
        self.spoil = spoil
        self.dtype = dtype
        self.num_jobs = 0

    @property
    def settings(self) -> dict:
        return super().settings | {"dtype": self.dtype}

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        self.num_jobs += len(jobs)
        return [self.spoil(job) or one for job, one in zip(jobs, super().render(jobs), strict=True)]


@pytest.fixture
def long_plan(command, manifests: Path, tmp_path: Path) -> Path:
    """480 images in 4 shards."""
    path = tmp_path / "long.parquet"
    sizes = ("--images-per-task", 240, "--images-per-shard", 120)
    assert command("plan", "--out", path, "--manifests", manifests, "--order", "tiny", *sizes).code == 0
    return path


def fill(out: Path, plan: Path, renderer: FlatColorRenderer) -> RunSummary:
    return run(out, plan, RenderedImages(renderer, ImageEncoder(), max_attempts=3), Worker(), lambda message: None)


def files(out: Path, folder: str) -> list[str]:
    return [path.name for path in (out / folder).rglob("*") if path.is_file()] if (out / folder).is_dir() else []


@pytest.mark.parametrize(
    ("spoilt", "counts"),
    [
        (NAN, "64 failed; the model's output is not finite; try --dtype float32"),
        (FLAGGED, "64 flagged; the model's safety checker objected"),
        (BLACK, "64 black; all pixels are 0"),
    ],
)
def test_it_is_told_after_the_first_batches_and_the_advice_can_be_followed(
    command, content, long_plan: Path, tmp_path: Path, spoilt: Rendered, counts: str
) -> None:
    out, renderer = tmp_path / "out", SpoiltRenderer(lambda job: spoilt)
    for _ in range(2):  # neither time is anything kept of it
        renderer.num_jobs = 0
        with pytest.raises(NothingUsable) as told:
            fill(out, long_plan, renderer)
        assert f"None of the first 32 images is usable, nor one of 32 from all over the plan ({counts})" in str(told.value)
        assert told.value.exit_code == 2
        assert renderer.num_jobs == 64
        assert [files(out, folder) for folder in ("shards", "spool", "claims")] == [[], [], []]
    assert fill(out, long_plan, SpoiltRenderer(lambda job: None, dtype="float32")).shards_left == 0
    assert json.loads((out / "render.json").read_text())["settings"]["dtype"] == "float32"
    assert command("verify", "--out", out).code == 0
    fill(tmp_path / "whole", long_plan, SpoiltRenderer(lambda job: None, dtype="float32"))
    assert content(out) == content(tmp_path / "whole")


def test_a_plan_that_begins_with_captions_that_are_flagged_goes_on(long_plan: Path, tmp_path: Path) -> None:
    """Of what is tried from all over the plan one caption is usable; 32 images without one are then no reason to stop."""
    renderer = SpoiltRenderer(lambda job: FLAGGED if renderer.num_jobs <= 56 else None)
    summary = fill(tmp_path / "out", long_plan, renderer)
    assert (summary.shards_left, summary.statuses) == (0, {"ok": 480})  # the first 32 were tried again
    bad = SpoiltRenderer(lambda job: FLAGGED if job.caption != "a photo of a thing 3." else None)
    assert fill(tmp_path / "bad", long_plan, bad).statuses["flagged"] > 300


def test_a_plan_smaller_than_the_first_images_is_judged_too(plan: Path, tmp_path: Path) -> None:
    """20 images in shards of 4: what is tried from all over the plan is all of it."""
    with pytest.raises(NothingUsable, match=r"None of the first 12 images is usable, nor one of 20 from all over the plan \(32 black"):
        fill(tmp_path / "out", plan, SpoiltRenderer(lambda job: BLACK))
    assert files(tmp_path / "out", "shards") == []


def test_a_model_that_made_something_usable_once_is_trusted(long_plan: Path, tmp_path: Path) -> None:
    renderer = SpoiltRenderer(lambda job: FLAGGED if renderer.num_jobs > 8 else None)
    assert fill(tmp_path / "out", long_plan, renderer).statuses == {"ok": 8, "flagged": 472}


def test_a_folder_with_a_finished_shard_keeps_its_settings(plan: Path, rendered: Path) -> None:
    (rendered / "shards" / "cats-00001.parquet").unlink()
    with pytest.raises(ConfigError, match="holds images made with batch_size = 16, this command says 8"):
        fill(rendered, plan, SpoiltRenderer(lambda job: None))


@pytest.mark.parametrize("seconds_silent", [0, 130])
def test_settings_that_a_live_worker_renders_with_are_not_replaced(plan: Path, tmp_path: Path, seconds_silent: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(NothingUsable):
        fill(out, plan, SpoiltRenderer(lambda job: NAN))
    (record,) = (out / "workers").glob("*.json")
    fields = json.loads(record.read_text()) | {"worker": ELSEWHERE, "state": "running"}
    (out / "workers" / f"{ELSEWHERE}.json").write_text(json.dumps(fields))
    then = time.time() - seconds_silent
    os.utime(out / "workers" / f"{ELSEWHERE}.json", (then, then))
    other = SpoiltRenderer(lambda job: None, dtype="float32")
    if seconds_silent > 120:
        assert fill(out, plan, other).shards_left == 0
        return
    with pytest.raises(ConfigError, match=f"is filled by {ELSEWHERE} with images made with dtype = 'float16', this command says 'float32'"):
        fill(out, plan, other)
    assert other.num_jobs == 0


def test_a_worker_whose_settings_were_replaced_meanwhile_writes_no_shard(plan: Path, tmp_path: Path) -> None:
    """One that was silent for so long that it counted as dead, and wakes up."""
    out = tmp_path / "out"

    def replace(job: RenderJob) -> None:
        record = json.loads((out / "render.json").read_text())
        record["settings"]["dtype"] = "float32"
        (out / "render.json").write_text(json.dumps(record))

    with pytest.raises(ConfigError, match="is by now filled with images made with dtype = 'float32', this command says 'float16'"):
        fill(out, plan, SpoiltRenderer(replace))
    assert files(out, "shards") == []
