"""All-black and safety-flagged images: told apart, tried again with the next seed, and at last recorded as what they are."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from gift_generate.images.first_images import Judgement
from gift_generate.images.image_source import KEEPS_NOTHING, BatchStore, Picture, PlanRow
from gift_generate.rendering.renderer import Rendered, RenderJob
from gift_shared.keys import retry_seed
from gift_shared.schema import SampleStatus

Encode = Callable[[np.ndarray], tuple[bytes, str]]
ENCODING_THREADS = 2  # one encodes several hundred photographs of 512 x 512 pixels a second, more than any GPU renders


def judge(rendered: Rendered) -> Judgement:
    """Status and reason. A flagged image comes out black, so flagged is asked first; NaN pixels would be black too."""
    if not rendered.is_finite:
        return SampleStatus.FAILED, "the model's output is not finite; try --dtype float32"
    if rendered.is_flagged:
        return SampleStatus.FLAGGED, "the model's safety checker objected"
    if not rendered.pixels.any():
        return SampleStatus.BLACK, "all pixels are 0"
    return SampleStatus.OK, ""


class BatchRenderer(Protocol):
    """What makes batches: a renderer, or what stands before one."""

    @property
    def batch_size(self) -> int:
        """Jobs of a batch, at most."""

    def adaptation_of(self, source: str) -> str:
        """The source whose LoRAs paint captions of this one; "" for none."""

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        """The pictures of a batch whose jobs share their constants."""


def render_screened(
    renderer: BatchRenderer,
    encode: Encode,
    rows: Sequence[PlanRow],
    max_attempts: int,
    on_images: Callable[[int], None],
    batches: BatchStore = KEEPS_NOTHING,
    on_judged: Callable[[Sequence[Judgement]], None] = lambda _: None,
) -> list[Picture]:
    """Pictures of one shard, in the order of its rows, each tried with at most `max_attempts` seeds.

    Batches are cut from the shard alone (first all rows, then those to try again, and so on): float results may depend on a
    batch's size, so whoever renders the shard, whenever, must cut it alike. A batch that `batches` knows is not made again; `on_judged`
    hears of all that are made, and may raise.
    """
    settled: dict[int, Picture] = {}
    positions = list(range(len(rows)))
    with _Encoding(encode, batches, settled) as encoding:
        for attempt in range(max_attempts):
            is_last = attempt == max_attempts - 1
            again = []
            for batch in _batches(renderer, rows, positions):
                known = batches.find(attempt, batch)
                if known is None:
                    jobs = [_job(renderer, rows[position], attempt) for position in batch]
                    rendered = renderer.render(jobs)
                    judgements = [judge(one) for one in rendered]
                    on_judged(judgements)
                    encoding.begin(attempt, batch, jobs, rendered, judgements)
                else:
                    settled.update(zip(batch, known, strict=True))
                    judgements = [(picture.status, picture.message) for picture in known]
                unusable = [position for position, (status, _) in zip(batch, judgements, strict=True) if status is not SampleStatus.OK]
                num_settled = len(batch) if is_last else len(batch) - len(unusable)
                again += [] if is_last else unusable
                (on_images if known is None else batches.on_reused)(num_settled)
            positions = again
    return [settled[position] for position in range(len(rows))]


class _Encoding:
    """Threads that encode a batch while the next is rendered. At most one batch waits for them, so memory holds the pixels of two.

    However the block ends, the batch that was begun is encoded and kept: a preempted worker loses only what it was rendering.
    """

    def __init__(self, encode: Encode, batches: BatchStore, settled: dict[int, Picture]) -> None:
        self._encode = encode
        self._batches = batches
        self._settled = settled
        self._threads = ThreadPoolExecutor(ENCODING_THREADS, thread_name_prefix="image-encoder")
        self._begun: tuple[int, Sequence[int], list[Future[Picture]]] | None = None

    def __enter__(self) -> "_Encoding":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._threads:
            self._finish()

    def begin(
        self,
        attempt: int,
        positions: Sequence[int],
        jobs: Sequence[RenderJob],
        rendered: Sequence[Rendered],
        judgements: Sequence[Judgement],
    ) -> None:
        """Encode a batch, once the one before is done with."""
        self._finish()
        futures = []
        for job, one, (status, message) in zip(jobs, rendered, judgements, strict=True):
            picture = Picture(status=status, message=message, attempts=attempt + 1, used_seed=job.seed)
            futures.append(self._threads.submit(_with_content, picture, one.pixels, self._encode))
        self._begun = attempt, positions, futures

    def _finish(self) -> None:
        if self._begun is None:
            return
        attempt, positions, futures = self._begun
        self._begun = None
        pictures = [future.result() for future in futures]
        self._settled.update(zip(positions, pictures, strict=True))
        self._batches.add(attempt, positions, pictures)


def judge_first_attempts(renderer: BatchRenderer, rows: Sequence[PlanRow]) -> Iterator[list[Judgement]]:
    """What the first attempt of each row comes out as, batch by batch; nothing is kept."""
    for batch in _batches(renderer, rows, range(len(rows))):
        yield [judge(one) for one in renderer.render([_job(renderer, rows[position], 0) for position in batch])]


def _batches(renderer: BatchRenderer, rows: Sequence[PlanRow], positions: Sequence[int]) -> Iterator[list[int]]:
    def constants(position: int) -> tuple[Any, ...]:
        row = rows[position]
        size = row["render_height"] or 0, row["render_width"] or 0
        return renderer.adaptation_of(row["source"]), row["guidance_scale"], row["denoising_steps"], *size

    for _, group in groupby(sorted(positions, key=constants), key=constants):
        members = list(group)
        for start in range(0, len(members), renderer.batch_size):
            yield members[start : start + renderer.batch_size]


def _job(renderer: BatchRenderer, row: PlanRow, attempt: int) -> RenderJob:
    seed = retry_seed(row["sample_seed"], attempt)
    return RenderJob(
        row["caption"], seed, row["guidance_scale"], row["denoising_steps"],
        row["negative_prompt"] or "", row["render_height"], row["render_width"],
        renderer.adaptation_of(row["source"]),
    )  # fmt: skip


def _with_content(picture: Picture, pixels: np.ndarray, encode: Encode) -> Picture:
    if picture.status is not SampleStatus.OK:
        return picture
    content, suffix = encode(pixels)
    height, width, _ = pixels.shape
    return replace(picture, content=content, suffix=suffix, width=width, height=height)
