"""`render --retry`: rows that came out unusable are made again under other settings, recorded as such, and all else stays."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.output import shard_writer
from gift_generate.output.folder import open_output
from gift_generate.output.verify import verify
from gift_generate.pipeline import RunSummary, WorkerPolicy, run
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.rendering.renderer import Rendered, RenderJob
from gift_generate.workers.rank import Worker
from gift_shared.errors import Preempted
from gift_shared.parquet_files import read_output_index
from gift_shared.preemption import PreemptionNotice
from gift_shared.schema import SampleStatus
from gift_shared.shards import read_image_bytes

PIXELS = np.zeros((16, 16, 3), np.uint8)
NAN, FLAGGED, BLACK = Rendered(PIXELS, is_finite=False), Rendered(PIXELS, is_flagged=True), Rendered(PIXELS)
FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)
SPOILT = {"a photo of a thing 1.": NAN, "a photo of a thing 3.": FLAGGED, "a photo of a thing 5.": BLACK}
FAILED, ALL = frozenset({SampleStatus.FAILED}), frozenset(SampleStatus) - {SampleStatus.OK}


class SpoiltRenderer(FlatColorRenderer):
    """Flat colours, but for the captions in `spoilt`; it may have one of its batches followed by a signal."""

    def __init__(self, spoilt: dict[str, Rendered], precision: str, signal_after: int | None = None) -> None:
        super().__init__(batch_size=2, height=16, width=16)
        self.spoilt = spoilt
        self.precision = precision
        self.signal_after = signal_after
        self.batches: list[tuple[RenderJob, ...]] = []

    @property
    def settings(self) -> dict:
        return super().settings | {"precision": self.precision}

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        self.batches.append(tuple(jobs))
        if len(self.batches) == self.signal_after:
            os.kill(os.getpid(), signal.SIGUSR1)
        return [self.spoilt.get(job.caption) or one for job, one in zip(jobs, super().render(jobs), strict=True)]


def fill(out: Path, renderer: SpoiltRenderer, retry: frozenset[SampleStatus] = frozenset(), plan: Path | None = None) -> RunSummary:
    source = RenderedImages(renderer, ImageEncoder(), max_attempts=2)
    with PreemptionNotice() as notice:
        return run(out, plan, source, Worker(), lambda message: None, WorkerPolicy(notice=notice), retry)


def better(signal_after: int | None = None, **spoilt: Rendered) -> SpoiltRenderer:
    return SpoiltRenderer({f"a photo of a {name.replace('_', ' ')}.": one for name, one in spoilt.items()}, "float32", signal_after)


@pytest.fixture
def spoilt(plan: Path, tmp_path: Path) -> Path:
    """20 rows in 6 shards, some of them failed, flagged and black."""
    fill(tmp_path / "spoilt", SpoiltRenderer(SPOILT, "float16"), plan=plan)
    return tmp_path / "spoilt"


def rows_of(out: Path) -> list[dict]:
    return read_output_index(out)[0].to_pylist()


def image(out: Path, row: dict) -> bytes | None:
    return read_image_bytes(out, row["shard"], row["byte_offset"], row["byte_size"], row["sha256"]) if row["image_name"] else None


def test_rows_are_made_again_and_recorded_and_all_else_stays(command, spoilt: Path) -> None:
    before, settings = rows_of(spoilt), (spoilt / "render.json").read_bytes()
    images = {row["sample_key"]: image(spoilt, row) for row in before}
    untouched = {path: path.stat().st_mtime_ns for path in shards_without(spoilt, {"failed", "flagged"})}
    renderer = better(thing_3=FLAGGED)
    summary = fill(spoilt, renderer, FAILED | {SampleStatus.FLAGGED})
    chosen = [row["sample_key"] for row in before if row["status"] in ("failed", "flagged")]
    assert chosen
    assert summary.num_images == len(chosen)
    for old, new in zip(before, rows_of(spoilt), strict=True):
        if old["status"] == "failed":
            assert (new["status"], new["message"], new["used_seed"]) == ("ok", "made by retry 1", old["sample_seed"])
            assert image(spoilt, new)
        elif old["status"] == "flagged":
            assert (new["status"], new["message"]) == ("flagged", "retry 1: the model's safety checker objected")
        else:
            place = ("byte_offset",)
            assert {name: new[name] for name in new if name not in place} == {name: old[name] for name in old if name not in place}
            assert image(spoilt, new) == images[new["sample_key"]]
    assert list(verify(spoilt, lambda shard: None)) == []
    assert command("status", "--out", spoilt).code == 0
    assert (spoilt / "render.json").read_bytes() == settings
    assert json.loads((spoilt / "retries" / "1.json").read_text())["settings"]["precision"] == "float32"
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert not (spoilt / "spool").exists()


def shards_without(out: Path, statuses: set[str]) -> list[Path]:
    touched = {row["shard"] for row in rows_of(out) if row["status"] in statuses}
    return [path for path in (out / "shards").iterdir() if path.stem not in touched]


def test_a_retry_that_was_made_is_not_made_again_and_another_has_its_own_number(spoilt: Path) -> None:
    fill(spoilt, better(thing_3=FLAGGED, thing_5=BLACK), ALL)
    again = better()
    assert fill(spoilt, again, ALL).num_images == 0
    assert again.batches == []
    fill(spoilt, SpoiltRenderer({}, "bfloat16"), ALL)
    assert {row["message"] for row in rows_of(spoilt)} == {"", "made by retry 1", "made by retry 2"}
    assert {row["status"] for row in rows_of(spoilt)} == {"ok"}
    assert sorted(path.name for path in (spoilt / "retries").iterdir()) == ["1.json", "2.json"]
    assert fill(spoilt, SpoiltRenderer({}, "float64"), ALL).num_images == 0
    assert len(list((spoilt / "retries").iterdir())) == 2


def test_stopped_after_any_batch_the_same_retry_goes_on(content, spoilt: Path, copy: Callable[[str], Path]) -> None:
    whole, out = better(), copy("whole")
    fill(out, whole, ALL)
    expected = content(out)
    for number in range(1, len(whole.batches)):
        out, first, second = copy(f"stopped-{number}"), better(number), better()
        with pytest.raises(Preempted):
            fill(out, first, ALL)
        fill(out, SpoiltRenderer(SPOILT, "float16"))  # a render in between finds all there, and leaves what the retry has begun
        fill(out, second, ALL)
        assert [*first.batches, *second.batches] == whole.batches
        assert content(out) == expected


@pytest.fixture
def copy(spoilt: Path, tmp_path: Path) -> Callable[[str], Path]:

    return lambda name: Path(shutil.copytree(spoilt, tmp_path / name))


def test_killed_while_a_shard_is_replaced_it_counts_as_missing_and_never_as_another(
    content, spoilt: Path, copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new tar may well have the size of the old one: rows of one must not stand beside the other."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    fill(whole := copy("whole"), better(), ALL)
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "write_index", die)
        with pytest.raises(KeyboardInterrupt):
            fill(spoilt, better(), ALL)
    output = open_output(spoilt)
    assert len(output.remaining()) == 1
    assert not output.has_index()
    fill(spoilt, better(), ALL)
    fill(spoilt, SpoiltRenderer(SPOILT, "float16"))
    fill(spoilt, better(), ALL)
    assert content(spoilt) == content(whole)


def test_two_workers_share_a_retry(command, content, workers, spoilt: Path) -> None:
    both = [workers.start("render", "--out", spoilt, *FLAT, "--retry", "failed,flagged,black") for _ in range(2)]
    assert workers.wait(*both) == [0, 0]
    assert {row["status"] for row in rows_of(spoilt)} == {"ok"}
    assert command("verify", "--out", spoilt).code == 0
    assert [path.name for path in (spoilt / "retries").iterdir()] == ["1.json"]


@pytest.mark.parametrize(
    ("statuses", "message"),
    [
        ("ok", "--retry: Unknown status 'ok'. Valid: black, failed, flagged."),
        ("failed,flaged", "--retry: Unknown status 'flaged'. Did you mean 'flagged'? Valid: black, failed, flagged."),
        ("", "--retry: Unknown status ''"),
    ],
)
def test_what_cannot_be_retried_is_one_line(command, content, rendered: Path, statuses: str, message: str) -> None:
    before = content(rendered)
    result = command("render", "--out", rendered, *FLAT, "--retry", statuses)
    assert result.code == 2
    assert message in result.err
    assert content(rendered) == before


def test_a_folder_in_which_nothing_was_made_is_one_line(command, plan: Path, tmp_path: Path) -> None:
    result = command("render", "--plan", plan, "--out", tmp_path / "out", *FLAT, "--retry", "failed")
    assert result.code == 2
    assert "has no render.json, so there are no rows that --retry could make again." in result.err
    assert not (tmp_path / "out").exists()


def test_shards_that_are_not_finished_are_left_to_a_render_and_told(command, spoilt: Path) -> None:
    (spoilt / "shards" / "cars-00000.parquet").unlink()
    result = command("render", "--out", spoilt, *FLAT, "--retry", "failed,flagged,black")
    assert result.code == 0
    assert "warning: 1 shards are not finished: --retry is for rows of finished ones" in result.err
    assert not (spoilt / "index.parquet").exists()


def test_where_there_is_nothing_to_retry_nothing_changes(command, content, rendered: Path) -> None:
    before = content(rendered)
    result = command("render", "--out", rendered, *FLAT, "--jpeg-quality", 90, "--retry", "failed,flagged,black")
    assert result.code == 0
    assert "nothing left to do" in result.out
    assert content(rendered) == before
