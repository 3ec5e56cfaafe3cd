"""All-black and safety-flagged images: told apart, tried again with the next seed, and at last recorded as what they are."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from gift_generate.pictures import Picture, PlanRow
from gift_generate.renderer import Rendered, Renderer, RenderJob
from gift_shared.keys import retry_seed
from gift_shared.schema import Status

Encode = Callable[[np.ndarray], tuple[bytes, str]]


def judge(rendered: Rendered) -> tuple[Status, str]:
    """Status and reason. A flagged image comes out black, so flagged is asked first; NaN pixels would be black too."""
    if not rendered.is_finite:
        return Status.FAILED, "the model's output is not finite; try --dtype float32"
    if rendered.is_flagged:
        return Status.FLAGGED, "the model's safety checker objected"
    if not rendered.pixels.any():
        return Status.BLACK, "all pixels are 0"
    return Status.OK, ""


def render_screened(
    renderer: Renderer, encode: Encode, rows: Sequence[PlanRow], max_attempts: int, on_images: Callable[[int], None]
) -> list[Picture]:
    """Pictures of one shard, in the order of its rows, each tried with at most `max_attempts` seeds.

    Batches are cut from the shard alone (first all rows, then those to try again, and so on): float results may depend on a
    batch's size, so whoever renders the shard, whenever, must cut it alike.
    """
    pictures: dict[int, Picture] = {}
    positions = list(range(len(rows)))
    for attempt in range(max_attempts):
        is_last = attempt == max_attempts - 1
        again = []
        for batch in _batches(rows, positions, renderer.batch_size):
            jobs = [_job(rows[position], attempt) for position in batch]
            for position, job, rendered in zip(batch, jobs, renderer.render(jobs), strict=True):
                picture = _picture(rendered, job.seed, attempt + 1, encode)
                if picture.status is Status.OK or is_last:
                    pictures[position] = picture
                else:
                    again.append(position)
            on_images(sum(position in pictures for position in batch))
        positions = again
    return [pictures[position] for position in range(len(rows))]


def _batches(rows: Sequence[PlanRow], positions: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    def constants(position: int) -> tuple[Any, Any]:
        return rows[position]["guidance_scale"], rows[position]["denoising_steps"]

    for _, group in groupby(sorted(positions, key=constants), key=constants):
        members = list(group)
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


def _job(row: PlanRow, attempt: int) -> RenderJob:
    seed = retry_seed(row["sample_seed"], attempt)
    return RenderJob(row["caption"], seed, row["guidance_scale"], row["denoising_steps"])


def _picture(rendered: Rendered, seed: int, attempts: int, encode: Encode) -> Picture:
    status, message = judge(rendered)
    if status is not Status.OK:
        return Picture(status=status, message=message, attempts=attempts, used_seed=seed)
    content, suffix = encode(rendered.pixels)
    height, width, _ = rendered.pixels.shape
    return Picture(status=status, message="", attempts=attempts, used_seed=seed, content=content, suffix=suffix, width=width, height=height)
