"""All-black and safety-flagged images: told apart, tried again with the next seed, and at last recorded as what they are."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from gift_generate.images.image_source import Picture, PlanRow
from gift_generate.rendering.renderer import Rendered, Renderer, RenderJob
from gift_shared.keys import retry_seed
from gift_shared.schema import SampleStatus

Encode = Callable[[np.ndarray], tuple[bytes, str]]
ENCODING_THREADS = 2  # one encodes several hundred photographs of 512 x 512 pixels a second, more than any GPU renders


def judge(rendered: Rendered) -> tuple[SampleStatus, str]:
    """Status and reason. A flagged image comes out black, so flagged is asked first; NaN pixels would be black too."""
    if not rendered.is_finite:
        return SampleStatus.FAILED, "the model's output is not finite; try --dtype float32"
    if rendered.is_flagged:
        return SampleStatus.FLAGGED, "the model's safety checker objected"
    if not rendered.pixels.any():
        return SampleStatus.BLACK, "all pixels are 0"
    return SampleStatus.OK, ""


def render_screened(
    renderer: Renderer, encode: Encode, rows: Sequence[PlanRow], max_attempts: int, on_images: Callable[[int], None]
) -> list[Picture]:
    """Pictures of one shard, in the order of its rows, each tried with at most `max_attempts` seeds.

    Batches are cut from the shard alone (first all rows, then those to try again, and so on): float results may depend on a
    batch's size, so whoever renders the shard, whenever, must cut it alike. Threads encode a batch while the next is rendered; at most
    one batch waits for them, so memory holds the pixels of two.
    """
    encoding: dict[int, Future[Picture]] = {}
    positions = list(range(len(rows)))
    with ThreadPoolExecutor(ENCODING_THREADS, thread_name_prefix="image-encoder") as threads:
        before: list[Future[Picture]] = []
        for attempt in range(max_attempts):
            is_last = attempt == max_attempts - 1
            again = []
            for batch in _batches(rows, positions, renderer.batch_size):
                jobs = [_job(rows[position], attempt) for position in batch]
                rendered_batch = renderer.render(jobs)
                wait(before)
                before = []
                for position, job, rendered in zip(batch, jobs, rendered_batch, strict=True):
                    status, message = judge(rendered)
                    if status is SampleStatus.OK or is_last:
                        picture = Picture(status=status, message=message, attempts=attempt + 1, used_seed=job.seed)
                        encoding[position] = threads.submit(_with_content, picture, rendered.pixels, encode)
                        before.append(encoding[position])
                    else:
                        again.append(position)
                on_images(len(before))
            positions = again
    return [encoding[position].result() for position in range(len(rows))]


def _batches(rows: Sequence[PlanRow], positions: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    def constants(position: int) -> tuple[Any, ...]:
        row = rows[position]
        return row["guidance_scale"], row["denoising_steps"], row["render_height"] or 0, row["render_width"] or 0

    for _, group in groupby(sorted(positions, key=constants), key=constants):
        members = list(group)
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


def _job(row: PlanRow, attempt: int) -> RenderJob:
    seed = retry_seed(row["sample_seed"], attempt)
    return RenderJob(
        row["caption"], seed, row["guidance_scale"], row["denoising_steps"],
        row["negative_prompt"] or "", row["render_height"], row["render_width"],
    )  # fmt: skip


def _with_content(picture: Picture, pixels: np.ndarray, encode: Encode) -> Picture:
    if picture.status is not SampleStatus.OK:
        return picture
    content, suffix = encode(pixels)
    height, width, _ = pixels.shape
    return replace(picture, content=content, suffix=suffix, width=width, height=height)
