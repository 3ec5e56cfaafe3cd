"""The run, top to bottom: bind the folder, skip what is done, make each shard's pictures, write it, and index the whole."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gift_generate.output_folder import OutputFolder, Shard, bind_output
from gift_generate.pictures import ImageEncoder, Picture, PictureSource, PlanRow
from gift_generate.renderer import Renderer
from gift_generate.screen import render_screened
from gift_generate.workers import Worker
from gift_generate.writer import write_shard
from gift_shared.console import some_of
from gift_shared.errors import ConfigError, ShardError
from gift_shared.progress import Progress
from gift_shared.schema import Status

MOST_UNUSABLE_AT_START = 100  # images without a usable one among them: then the model is at fault and not the captions


class RenderedPictures:
    """Pictures that a renderer makes: rendered, screened, tried again, encoded."""

    def __init__(self, renderer: Renderer, encoder: ImageEncoder, max_attempts: int) -> None:
        if max_attempts < 1:
            raise ConfigError(f"--max-attempts must be at least 1, found {max_attempts}.")
        self._renderer = renderer
        self._encoder = encoder
        self._max_attempts = max_attempts

    @property
    def settings(self) -> dict[str, Any]:
        """The renderer's, and how batches, retries and files are made: each of them can change bytes."""
        return {
            **self._renderer.settings,
            "batch_size": self._renderer.batch_size,
            "max_attempts": self._max_attempts,
            "image_format": self._encoder.image_format,
            "quality": self._encoder.quality,
        }

    @property
    def machine(self) -> dict[str, str]:
        """The renderer's hardware and versions."""
        return self._renderer.machine

    def warnings(self, captions: Sequence[str]) -> list[str]:
        """Which captions the text encoder will cut."""
        overlong = self._renderer.overlong(captions)
        if not overlong:
            return []
        return [f"{len(overlong)} captions are longer than the tokenizer's context and will be cut: {some_of(overlong)}"]

    def pictures(self, rows: Sequence[PlanRow], on_images: Callable[[int], None]) -> list[Picture]:
        """The pictures of one shard, in row order."""
        return render_screened(self._renderer, self._encoder, rows, self._max_attempts, on_images)


@dataclass
class RunSummary:
    """What one worker did and what the folder now holds."""

    shards_done_here: int = 0
    shards_left: int = 0  # of the whole folder, other workers' included
    statuses: Counter[str] = field(default_factory=Counter)  # of the rows done here

    @property
    def num_images(self) -> int:
        """Rows settled here, usable or not."""
        return self.statuses.total()


def run(out: Path, plan_path: Path | None, source: PictureSource, worker: Worker, tell: Callable[[str], None]) -> RunSummary:
    """Render this worker's share of the shards that are not complete; write the index once all are.

    Raises ConfigError if the folder belongs to another plan or other settings, ShardError if no image comes out usable.
    """
    output = bind_output(out, plan_path, source.settings, source.machine)
    mine = set(output.shards[worker.rank :: worker.world_size])
    todo = [shard for shard in output.remaining() if shard in mine]
    for warning in source.warnings(_distinct_captions(output, todo)):
        tell(f"warning: {warning}")
    summary = RunSummary()
    num_images = sum(shard.num_rows for shard in todo)
    with output.lock(worker), Progress("images", num_images, "image") as progress:
        for shard in todo:
            started = time.monotonic()
            _make_shard(output, shard, source, summary, progress.advance)
            _log_time(output, shard, worker, time.monotonic() - started)
            progress.note(f"{summary.shards_done_here}/{len(todo)} shards")
    summary.shards_left = len(output.remaining())
    if summary.shards_left == 0:
        output.write_index()
        output.tidy()
    return summary


def _distinct_captions(output: OutputFolder, shards: Sequence[Shard]) -> list[str]:
    captions: dict[str, None] = {}
    for shard in shards:
        captions.update(dict.fromkeys(output.plan["caption"].slice(shard.first_row, shard.num_rows).to_pylist()))
    return list(captions)


def _make_shard(output: OutputFolder, shard: Shard, source: PictureSource, summary: RunSummary, on_images: Callable[[int], Any]) -> None:
    rows = output.rows(shard)
    pictures = source.pictures(rows, on_images)
    write_shard(output.path, shard.name, rows, pictures, output.metadata)
    summary.shards_done_here += 1
    summary.statuses.update(str(picture.status) for picture in pictures)
    if summary.num_images >= MOST_UNUSABLE_AT_START and not summary.statuses[Status.OK]:
        counts = ", ".join(f"{count} {status}" for status, count in summary.statuses.items())
        raise ShardError(
            f"None of the first {summary.num_images} images is usable ({counts}; {pictures[0].message}). "
            f"The model is at fault, not the captions; what was recorded is in {output.path}."
        )


def _log_time(output: OutputFolder, shard: Shard, worker: Worker, seconds: float) -> None:
    """One line a shard in this worker's own file; the shards themselves hold no time, their bytes must not depend on it."""
    path = output.path / f"timings-{worker.rank:05d}.jsonl"
    line = {"shard": shard.name, "images": shard.num_rows, "seconds": round(seconds, 3), "at": round(time.time())}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
