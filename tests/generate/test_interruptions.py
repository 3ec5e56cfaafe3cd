"""Stopped within a shard: what was finished is not made again, the bytes stay, and a shard that is longer than a time limit gets done."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.output.verify import verify
from gift_generate.pipeline import WorkerPolicy, run
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.rendering.renderer import Rendered, RenderJob
from gift_generate.workers.rank import Worker
from gift_shared.errors import Preempted
from gift_shared.event_log import read_events
from gift_shared.preemption import PreemptionNotice
from gift_shared.worker_logs import render_times

BLACK = Rendered(np.zeros((16, 16, 3), np.uint8))
LONG = ("--model", "flat-color", "--height", 512, "--width", 512, "--batch-size", 2)


class CountingRenderer(FlatColorRenderer):
    """Flat colours, black for every third seed; counts the batches it was given and may have one of them followed by a signal."""

    def __init__(self, signal_after: int | None = None) -> None:
        super().__init__(batch_size=3, height=16, width=16)
        self.signal_after = signal_after
        self.batches: list[tuple[RenderJob, ...]] = []

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        self.batches.append(tuple(jobs))
        if len(self.batches) == self.signal_after:
            os.kill(os.getpid(), signal.SIGUSR1)
        return [BLACK if job.seed % 3 == 0 else one for job, one in zip(jobs, super().render(jobs), strict=True)]


def render(out: Path, plan: Path, renderer: FlatColorRenderer, **settings: object) -> None:
    source = RenderedImages(renderer, ImageEncoder(**settings), max_attempts=3)
    with PreemptionNotice() as notice:
        run(out, plan, source, Worker(), lambda message: None, WorkerPolicy(notice=notice))


def spooled(out: Path) -> list[Path]:
    with suppress(FileNotFoundError):  # a folder that goes meanwhile
        return sorted((out / "spool").rglob("*.batches"))
    return []


def spool_bytes(out: Path) -> int:
    sizes = 0
    for path in spooled(out):
        with suppress(FileNotFoundError):  # its shard was finished meanwhile
            sizes += path.stat().st_size
    return sizes


def reused(out: Path) -> int:
    events = [event for path in (out / "workers").glob("*.jsonl") for event in read_events(path)]
    return sum(event.get("reused", 0) for event in events if event["event"] == "shard")


def test_stopped_after_any_batch_no_batch_is_made_twice_and_the_bytes_are_the_same(content, plan: Path, tmp_path: Path) -> None:
    """Batches of a first attempt and of the next ones, at the beginning, in the middle and at the end of a shard."""
    whole = CountingRenderer()
    render(tmp_path / "whole", plan, whole)
    assert {len(batch) for batch in whole.batches} == {1, 2, 3}
    assert len(whole.batches) > 10  # which are the first attempts
    for number in range(1, len(whole.batches)):
        out = tmp_path / f"stopped-{number}"
        first, second = CountingRenderer(signal_after=number), CountingRenderer()
        with pytest.raises(Preempted):
            render(out, plan, first)
        assert list(verify(out, lambda shard: None)) == [f"{6 - done(out)} of 6 shards are not there yet; {MAKES_THEM}"]
        render(out, plan, second)
        assert [*first.batches, *second.batches] == whole.batches
        assert content(out) == content(tmp_path / "whole")
        assert not (out / "spool").exists()


MAKES_THEM = "run gift-generate render again, it makes only those"


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def done(out: Path) -> int:
    return len(list((out / "shards").glob("[!.]*.parquet"))) if (out / "shards").is_dir() else 0


def stop_after_a_batch(workers, out: Path, kill: signal.Signals, *arguments: object) -> list[int]:
    """Start a worker, end it once it has finished another batch, and say how it ended."""
    before = spool_bytes(out)
    worker = workers.start(*arguments)
    while (code := workers.poll(worker)) is None and spool_bytes(out) == before:
        time.sleep(0.002)
    if code is not None:
        return [code]
    os.kill(worker, kill)
    return workers.wait(worker)


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_time_limit_shorter_than_a_shard_ends_with_the_same_bytes(
    command, content, workers, manifests: Path, tmp_path: Path, kill: signal.Signals
) -> None:
    plan, whole, out = tmp_path / "p.parquet", tmp_path / "whole", tmp_path / "out"
    sizes = ("--images-per-task", 6, "--images-per-shard", 6)
    assert command("plan", "--out", plan, "--manifests", manifests, "--order", "tiny", *sizes).code == 0
    assert command("render", "--plan", plan, "--out", whole, *LONG).code == 0
    codes: list[int] = []
    while not (out / "index.parquet").exists():
        codes += stop_after_a_batch(workers, out, kill, "render", "--plan", plan, "--out", out, *LONG)
        assert len(codes) < 30
    stopped = 75 if kill is signal.SIGTERM else -9
    assert stopped in codes
    assert set(codes) <= {stopped, 0}
    assert len(codes) > 2 or kill is signal.SIGTERM  # in more starts than there are shards; one that is only told to leave gets further
    assert command("render", "--plan", plan, "--out", out, *LONG).code == 0
    assert content(out) == content(whole)
    assert not (out / "spool").exists()
    assert command("verify", "--out", out).code == 0


def test_whoever_takes_a_shard_over_goes_on_where_the_killed_worker_was(command, content, workers, manifests: Path, tmp_path: Path) -> None:
    plan, whole, out = tmp_path / "p.parquet", tmp_path / "whole", tmp_path / "out"
    sizes = ("--images-per-task", 10, "--images-per-shard", 10)
    assert command("plan", "--out", plan, "--manifests", manifests, "--order", "tiny", *sizes).code == 0
    assert command("render", "--plan", plan, "--out", whole, *LONG).code == 0
    killed = workers.start("render", "--plan", plan, "--out", out, *LONG, "--rank", 1, "--world-size", 2)
    wait_for(lambda: spool_bytes(out) > 0)
    workers.kill(killed)
    (torn,) = spooled(out)
    torn.write_bytes(torn.read_bytes() + torn.read_bytes()[:1000])
    assert json.loads(command("status", "--out", out, "--json").out)["shards_done"] == 0
    assert command("render", "--plan", plan, "--out", out, *LONG, "--rank", 0, "--world-size", 2).code == 0
    assert reused(out) > 0
    images, _ = next(iter(render_times(out).values()))
    assert images == 20 - reused(out)  # what took the worker's time
    assert content(out) == content(whole)


def test_batches_made_with_other_settings_or_for_another_plan_are_not_used(
    command, content, plan: Path, manifests: Path, tmp_path: Path
) -> None:
    with pytest.raises(Preempted):
        render(tmp_path / "out", plan, CountingRenderer(signal_after=1), image_format="png")
    assert len(spooled(tmp_path / "out")) == 1
    other = CountingRenderer()
    render(tmp_path / "out", plan, other, quality=90)  # no shard is finished, so the folder is not bound
    whole = CountingRenderer()
    render(tmp_path / "whole", plan, whole, quality=90)
    assert other.batches == whole.batches
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert json.loads((tmp_path / "out" / "render.json").read_text())["settings"]["image_format"] == "jpg"


def test_a_worker_that_dies_of_its_renderer_keeps_what_was_finished(content, plan: Path, tmp_path: Path) -> None:
    class Failing(CountingRenderer):
        def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
            if len(self.batches) == 1:
                raise RuntimeError("CUDA error: unspecified launch failure")
            return super().render(jobs)

    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="launch failure"):
        render(out, plan, Failing())
    rest, whole = CountingRenderer(), CountingRenderer()
    render(out, plan, rest)
    render(tmp_path / "whole", plan, whole)
    assert rest.batches == whole.batches[1:]
    assert content(out) == content(tmp_path / "whole")
