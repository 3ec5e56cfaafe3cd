"""What the logs of an output folder's workers tell: which shards they wrote, and how long the images took."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift_shared.event_log import read_events
from gift_shared.schema import WORKER_FOLDER

SHARD_WRITTEN = "shard"  # the event, with fields name, images, ok and seconds; reused: images that took no time, made before a stop


@dataclass(frozen=True)
class WrittenShard:
    """A shard as its worker's log tells of it: its rows, and those with a usable image."""

    images: int
    ok: int


def shards_written(out: Path, worker: str) -> list[WrittenShard]:
    """What a worker, by its id, has written so far, in that order. Events of another shape are passed over."""
    path = out / WORKER_FOLDER / f"{worker}.jsonl"
    events = [event for event in read_events(path) if event["event"] == SHARD_WRITTEN] if path.is_file() else []
    counts = [(event.get("images"), event.get("ok")) for event in events]
    return [WrittenShard(images, ok) for images, ok in counts if isinstance(images, int) and isinstance(ok, int)]


def render_times(out: Path) -> dict[str, tuple[int, float]]:
    """(images, seconds) of every worker that ever finished a shard here, by its id. Events of another shape are passed over."""
    times = {}
    for path in sorted((out / WORKER_FOLDER).glob("*.jsonl")):
        done = [event for event in read_events(path) if event["event"] == SHARD_WRITTEN]
        images = [event["images"] - _reused(event) for event in done if isinstance(event.get("images"), int)]
        seconds = [event["seconds"] for event in done if isinstance(event.get("seconds"), int | float)]
        if done and len(images) == len(seconds) == len(done):
            times[path.stem] = (sum(images), float(sum(seconds)))
    return times


def _reused(event: dict[str, Any]) -> int:
    reused = event.get("reused", 0)
    return reused if isinstance(reused, int) else 0
