"""The run, top to bottom: bind the folder, claim a shard, make its pictures, write it while the next is made, index the whole."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gift_generate.images.constants import batch_constants
from gift_generate.images.image_source import ImageSource
from gift_generate.output.background_writer import BackgroundWriter, MadeShard
from gift_generate.output.folder import OutputFolder, Shard, bind_output
from gift_generate.workers.claims import Claims
from gift_generate.workers.heartbeat import Heartbeat, HeartbeatIntervals, Liveness
from gift_generate.workers.rank import Worker
from gift_shared.console import some_of
from gift_shared.errors import ShardError
from gift_shared.preemption import PreemptionNotice
from gift_shared.progress import Progress
from gift_shared.schema import PLAN_FILE, SampleStatus
from gift_shared.worker_logs import SHARD_WRITTEN

MOST_UNUSABLE_AT_START = 100  # images without a usable one among them: then the model is at fault and not the captions
LONGEST_PAUSE = 0.5  # seconds between two looks at whether the scheduler wants the machine back


@dataclass(frozen=True, kw_only=True)
class WorkerPolicy:
    """How a worker gets on with other workers and with the scheduler. Nothing here can change a byte of a shard."""

    waits: bool = False  # stays while others are at work, to take over the shards of those that die
    intervals: HeartbeatIntervals = field(default_factory=HeartbeatIntervals)
    notice: PreemptionNotice = field(default_factory=PreemptionNotice)  # opened by whoever owns the process


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


def run(
    out: Path, plan_path: Path | None, source: ImageSource, worker: Worker, tell: Callable[[str], None], policy: WorkerPolicy | None = None
) -> RunSummary:
    """Render shards that nobody else works on, this worker's share first, until none is free; write the index once all are complete.

    Raises ConfigError if the folder belongs to another plan or other settings, ShardError if no image comes out usable, Preempted if
    the scheduler's notice came before all was done: then what was begun is dropped, and free for others.
    """
    policy = policy or WorkerPolicy()
    for line in source.check(batch_constants(plan_path or out / PLAN_FILE)):  # what fails here leaves no folder behind
        tell(line)
    output = bind_output(out, plan_path, source)
    left = output.remaining(worker.preferred(output.shards))
    share = set(worker.share(output.shards))
    for warning in source.warnings(_distinct_captions(output, [shard for shard in left if shard in share])):
        tell(f"warning: {warning}")
    with Heartbeat(out, worker, policy.intervals) as heartbeat:
        heartbeat.tell(
            "started",
            settings=source.settings,
            machine=source.machine,
            plan_sha256=output.metadata["plan_sha256"],
            shards=len(output.shards),
            shards_left=len(left),
        )
        num_images = sum(shard.num_rows for shard in left)
        with Claims(out, heartbeat.worker, policy.intervals) as claims, Progress("images", num_images, "image") as progress:
            loop = _WorkLoop(output=output, source=source, policy=policy, heartbeat=heartbeat, claims=claims, progress=progress, left=left)
            with BackgroundWriter(output) as writer:
                loop.run(writer)
            summary = loop.summary
            left = output.remaining()
            summary.shards_left = len(left)
            if not left:
                if summary.shards_done_here or not output.has_index():
                    output.write_index()
                output.tidy(Liveness(out, policy.intervals))
        if left:
            policy.notice.obey(f"{len(left)} of {len(output.shards)} shards are left in {out}")
            holders = sorted(set(claims.holders().values()))
            if holders:
                count = f"{len(left)} of {len(output.shards)} shards"
                tell(f"{count} are left to workers at it: {some_of(holders)}. With --wait this one would stay.")
    return summary


def _distinct_captions(output: OutputFolder, shards: Sequence[Shard]) -> list[str]:
    captions: dict[str, None] = {}
    for shard in shards:
        captions.update(dict.fromkeys(output.plan["caption"].slice(shard.first_row, shard.num_rows).to_pylist()))
    return list(captions)


class _Preempted(Exception):
    """The scheduler wants the machine back: unwinds the rendering of a shard, of which nothing is on disk."""


@dataclass(kw_only=True)
class _WorkLoop:
    """What a worker does from its first shard to its last, told to the other workers (heartbeat, claims) and on the terminal."""

    output: OutputFolder
    source: ImageSource
    policy: WorkerPolicy
    heartbeat: Heartbeat
    claims: Claims
    progress: Progress
    left: list[Shard]  # as far as is known, in the order they are taken
    summary: RunSummary = field(default_factory=RunSummary)
    made: set[str] = field(default_factory=set)  # shards whose images were counted here

    def run(self, writer: BackgroundWriter) -> None:
        """Make shard after shard until no more can be had or the notice has come; what was handed to the writer is then written."""
        try:
            while (shard := self._next_shard(writer)) is not None:
                self._make(shard, writer)
        except _Preempted:
            pass
        self._settle(writer, wait=True)

    def _next_shard(self, writer: BackgroundWriter) -> Shard | None:
        """A shard that was claimed; None if there is nothing more to do here."""
        while not self.policy.notice.has_come:
            self._look_again()
            taken = self.claims.take_one([shard.name for shard in self.left])
            if taken is not None:
                if taken.taken_from is not None:
                    self.heartbeat.tell("took over", shard=taken.shard, from_worker=taken.taken_from)
                shard = next(shard for shard in self.left if shard.name == taken.shard)
                if not self.output.is_complete(shard):
                    return shard
                self.claims.release(shard.name)  # completed between the look and the claim
            elif not self._settle(writer, wait=True):
                if not (self.policy.waits and self.left):
                    return None
                self._pause()
        return None

    def _make(self, shard: Shard, writer: BackgroundWriter) -> None:
        self.output.remove_index()  # here and not sooner: with the claim held, nobody else can have completed the folder meanwhile
        started = time.monotonic()
        self.heartbeat.note(shard=shard.name)
        self.made.add(shard.name)

        def on_images(count: int) -> None:
            self.progress.advance(count)
            self.heartbeat.images(made=count)
            self._settle(writer, wait=False)  # an error of the writer, such as a full disk, ends the run here and not a shard later
            if self.policy.notice.has_come:
                raise _Preempted

        rows = self.output.rows(shard)
        pictures = self.source.pictures(rows, on_images)
        self._settle(writer, wait=True)
        writer.begin(MadeShard(shard, rows, pictures, time.monotonic() - started))
        self.heartbeat.note(shard=None)

    def _settle(self, writer: BackgroundWriter, *, wait: bool) -> bool:
        """Count a shard that has been written and give its claim up; whether there was one."""
        made = writer.finished(wait=wait)
        if made is None:
            return False
        name, statuses = made.shard.name, made.statuses
        self.claims.release(name)
        self.left = [shard for shard in self.left if shard.name != name]
        self.summary.shards_done_here += 1
        self.summary.statuses.update(statuses)
        self.heartbeat.images(done=made.shard.num_rows)
        self.heartbeat.tell(
            SHARD_WRITTEN, name=name, images=made.shard.num_rows, ok=statuses[SampleStatus.OK], seconds=round(made.seconds, 3)
        )
        self._note_shards()
        self._require_some_usable(made)
        return True

    def _require_some_usable(self, last: MadeShard) -> None:
        summary = self.summary
        if summary.num_images >= MOST_UNUSABLE_AT_START and not summary.statuses[SampleStatus.OK]:
            counts = ", ".join(f"{count} {status}" for status, count in summary.statuses.items())
            raise ShardError(
                f"None of the first {summary.num_images} images is usable ({counts}; {last.pictures[0].message}). "
                f"The model is at fault, not the captions; what was recorded is in {self.output.path}."
            )

    def _look_again(self) -> None:
        """Find out what others have completed since the last look."""
        left = self.output.remaining(self.left)
        for shard in set(self.left) - set(left):
            if shard.name not in self.made:
                self.progress.advance(shard.num_rows)
        self.left = left
        self._note_shards()

    def _note_shards(self) -> None:
        num_shards = len(self.output.shards)
        self.progress.note(f"{num_shards - len(self.left)}/{num_shards} shards")

    def _pause(self) -> None:
        """Sleep until the next look, or until the notice comes."""
        self.heartbeat.wait(True)
        ends = time.monotonic() + self.policy.intervals.look_again_seconds
        while time.monotonic() < ends and not self.policy.notice.has_come:
            time.sleep(min(LONGEST_PAUSE, self.policy.intervals.look_again_seconds))
        self.heartbeat.wait(False)
