"""Black, flagged and broken images: tried again with other seeds, bounded, then recorded; and what the user hears of it."""

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.images.screening import judge, render_screened
from gift_generate.output.status import output_status
from gift_generate.output.verify import verify
from gift_generate.pipeline import run
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.rendering.renderer import Rendered, RenderJob
from gift_generate.workers.rank import Worker
from gift_shared.keys import retry_seed
from gift_shared.parquet_files import read_output_index
from gift_shared.schema import PLAN_SCHEMA, SampleStatus

Spoil = Callable[[RenderJob], Rendered | None]
BLACK = Rendered(np.zeros((16, 16, 3), np.uint8))


class SpoiltRenderer(FlatColorRenderer):
    """Flat colours, but for the jobs that `spoil` answers; it remembers the batches it was given."""

    def __init__(self, spoil: Spoil, batch_size: int = 4) -> None:
        super().__init__(batch_size=batch_size, height=16, width=16)
        self.spoil = spoil
        self.batches: list[list[RenderJob]] = []

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        self.batches.append(list(jobs))
        return [self.spoil(job) or rendered for job, rendered in zip(jobs, super().render(jobs), strict=True)]


def plan_rows(num_rows: int) -> list[dict]:
    row = dict.fromkeys(PLAN_SCHEMA.names) | {"guidance_scale": 7.5, "denoising_steps": 10}
    return [row | {"caption": f"thing {i}", "sample_seed": 100 + i} for i in range(num_rows)]


def screened(renderer: FlatColorRenderer, rows: list[dict], max_attempts: int = 3) -> list:
    return render_screened(renderer, ImageEncoder("png"), rows, max_attempts, lambda count: None)


@pytest.mark.parametrize(
    ("rendered", "status"),
    [
        (Rendered(np.full((2, 2, 3), 1, np.uint8)), SampleStatus.OK),
        (Rendered(np.zeros((2, 2, 3), np.uint8)), SampleStatus.BLACK),
        (Rendered(np.zeros((2, 2, 3), np.uint8), is_flagged=True), SampleStatus.FLAGGED),
        (Rendered(np.zeros((2, 2, 3), np.uint8), is_flagged=True, is_finite=False), SampleStatus.FAILED),
    ],
)
def test_an_image_is_judged_by_its_worst_trait(rendered: Rendered, status: SampleStatus) -> None:
    assert judge(rendered)[0] is status


def test_a_black_image_is_tried_again_with_the_next_seed() -> None:
    renderer = SpoiltRenderer(lambda job: BLACK if job.seed == 101 else None)
    pictures = screened(renderer, plan_rows(3))
    assert [(p.status, p.attempts, p.used_seed) for p in pictures] == [
        (SampleStatus.OK, 1, 100),
        (SampleStatus.OK, 2, retry_seed(101, 1)),
        (SampleStatus.OK, 1, 102),
    ]
    assert [job.seed for job in renderer.batches[1]] == [retry_seed(101, 1)]


def test_after_the_last_attempt_an_image_is_recorded_as_what_it_is() -> None:
    renderer = SpoiltRenderer(lambda job: BLACK if job.caption == "thing 1" else None)
    picture = screened(renderer, plan_rows(2))[1]
    assert (picture.status, picture.attempts, picture.content) == (SampleStatus.BLACK, 3, None)
    assert picture.used_seed == retry_seed(101, 2)
    assert len(renderer.batches) == 3


def test_threads_encode_while_the_next_batch_renders_and_the_pictures_are_the_same() -> None:
    """The encoder of the first batch waits until the second is being rendered: one after the other, it would wait for ever."""
    renders_again = threading.Event()

    class Announcing(SpoiltRenderer):
        def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
            if self.batches:
                renders_again.set()
            return super().render(jobs)

    def late_encoder(pixels: np.ndarray) -> tuple[bytes, str]:
        assert renders_again.wait(timeout=30)
        return ImageEncoder("png")(pixels)

    rows = plan_rows(10)
    overlapped = render_screened(Announcing(lambda job: None), late_encoder, rows, 3, lambda count: None)
    assert [picture.content for picture in overlapped] == [
        ImageEncoder("png")(FlatColorRenderer(height=16, width=16).render([RenderJob(row["caption"], 0, 7.5, 10)])[0].pixels)[0]
        for row in rows
    ]


def test_an_image_that_cannot_be_encoded_stops_the_render() -> None:
    def full(pixels: np.ndarray) -> tuple[bytes, str]:
        raise MemoryError("no room for this image")

    with pytest.raises(MemoryError, match="no room"):
        render_screened(SpoiltRenderer(lambda job: None), full, plan_rows(5), 1, lambda count: None)


def test_every_row_is_told_once() -> None:
    told: list[int] = []
    renderer = SpoiltRenderer(lambda job: BLACK if job.caption == "thing 1" else None)
    render_screened(renderer, ImageEncoder("png"), plan_rows(9), 2, told.append)
    assert told == [3, 4, 1, 1]


def test_batches_share_their_guidance_and_steps_and_follow_from_the_rows_alone() -> None:
    rows = plan_rows(9)
    for row in rows[::2]:
        row["denoising_steps"] = 25
    renderer = SpoiltRenderer(lambda job: None, batch_size=3)
    screened(renderer, rows)
    sizes = [len(batch) for batch in renderer.batches]
    assert sizes == [3, 1, 3, 2]
    assert all(len({job.denoising_steps for job in batch}) == 1 for batch in renderer.batches)


def render_spoilt(plan: Path, out: Path, spoil: Spoil) -> None:
    source = RenderedImages(SpoiltRenderer(spoil), ImageEncoder(), max_attempts=2)
    run(out, plan, source, Worker(), lambda message: None)


def test_unusable_images_are_rows_without_an_image_and_a_shortfall(plan: Path, tmp_path: Path, command) -> None:
    out = tmp_path / "out"
    bad = {"a photo of a thing 3."}
    render_spoilt(plan, out, lambda job: BLACK if job.caption in bad else None)
    rows = read_output_index(out)[0].to_pylist()
    spoilt = [row for row in rows if row["caption"] in bad]
    assert spoilt
    assert all(row["status"] == "black" and row["image_name"] is None and row["message"] == "all pixels are 0" for row in spoilt)
    assert list(verify(out, lambda shard: None)) == []
    status = output_status(out)
    assert status.statuses == {"ok": 20 - len(spoilt), "black": len(spoilt)}
    assert sum(task.shortfall for task in status.tasks) == len(spoilt)
    assert "shortfall  c" in command("status", "--out", out).out


def test_a_batch_shares_scale_steps_and_size_and_every_image_keeps_its_own_negative_prompt() -> None:
    rows = plan_rows(6)
    for row, (height, negative) in zip(
        rows, [(None, None), (64, "blur"), (None, "grain"), (64, None), (32, None), (None, None)], strict=True
    ):
        row |= {"render_height": height, "render_width": height, "negative_prompt": negative}
    rows[5]["denoising_steps"] = 5
    renderer = SpoiltRenderer(lambda job: None)
    pictures = screened(renderer, rows)
    told = [[(job.caption, job.negative_prompt, job.height, job.width) for job in batch] for batch in renderer.batches]
    assert told == [
        [("thing 5", "", None, None)],
        [("thing 0", "", None, None), ("thing 2", "grain", None, None)],
        [("thing 4", "", 32, 32)],
        [("thing 1", "blur", 64, 64), ("thing 3", "", 64, 64)],
    ]
    assert [picture.used_seed for picture in pictures] == [100 + number for number in range(6)]


class ShortSighted(SpoiltRenderer):
    """Flat colours that read eight characters; it remembers what it was asked about."""

    asked: list[str]

    def overlong(self, captions: Iterable[str]) -> list[str]:
        self.asked += captions
        return [caption for caption in captions if len(caption) > 8]


def test_captions_are_looked_at_once_in_a_folder_and_told_shortened(command, tmp_path: Path) -> None:
    (tmp_path / "web.txt").write_text("a dog\n" * 2 + "x" * 3_000_000 + "\na cat\n")
    command("plan", "--caption-file", tmp_path / "web.txt", "--images-per-shard", 1, "--out", tmp_path / "p.parquet")
    renderer = ShortSighted(lambda job: None)
    renderer.asked, told = [], []
    for worker in (Worker(1, 2), Worker(0, 2)):  # all captions by the first, whatever its share
        source = RenderedImages(renderer, ImageEncoder(), 1)
        run(tmp_path / "out", tmp_path / "p.parquet", source, worker, told.append)
        (tmp_path / "out/shards/file_web-00000.parquet").unlink()
    assert renderer.asked == ["a dog", "x" * 3_000_000, "a cat"]
    longer = "warning: 1 captions are longer than the tokenizer's context and will be cut: "
    assert told == [f"{longer}'{'x' * 100}'... (3,000,000 characters)"]
