"""The run, top to bottom: bind the folder, claim a shard, make its pictures, write it while the next is made, index the whole.

A retry is such a run too: it makes rows of finished shards again.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gift_generate.images.constants import batch_constants
from gift_generate.images.first_images import SPREAD_ROWS, NothingUsable
from gift_generate.images.image_source import ImageSource
from gift_generate.output.background_writer import BackgroundWriter
from gift_generate.output.binding import Bound, adopt_settings, bind_retry, bind_settings, open_to_fill, require_rendered
from gift_generate.output.dataset_card import write_card
from gift_generate.output.folder import OutputFolder, Shard
from gift_generate.output.folder_progress import FolderProgress
from gift_generate.output.retry import RetriedRows
from gift_generate.output.spool import Spool, purpose
from gift_generate.output.work import MadeShard, NewShards, Work
from gift_generate.rendering.reproducible import settings_digest
from gift_generate.workers.claims import Claims
from gift_generate.workers.heartbeat import Heartbeat, HeartbeatIntervals, Liveness, ObservedWorker
from gift_generate.workers.machines import other_machine_warning
from gift_generate.workers.rank import Worker
from gift_shared.preemption import PreemptionNotice
from gift_shared.schema import INDEX_FILE, PLAN_FILE, SampleStatus
from gift_shared.worker_logs import SHARD_WRITTEN

Tell = Callable[[str], None]
CROWD = 32  # workers that may all wait and look as often as one; more look less often, so that the storage is asked no more
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
    holders: list[str] = field(default_factory=list)  # workers that are at what is left

    @property
    def num_images(self) -> int:
        """Rows settled here, usable or not."""
        return self.statuses.total()


def run(
    out: Path,
    plan_path: Path | None,
    source: ImageSource,
    worker: Worker,
    tell: Callable[[str], None],
    policy: WorkerPolicy | None = None,
    retry: Collection[SampleStatus] = (),
) -> RunSummary:
    """Render shards that nobody else works on, this worker's share first, until none is free; write the index once all are complete.

    With statuses to `retry`, rows of finished shards that have one of these are made again by this source instead.

    Raises ConfigError if the folder belongs to another plan or other settings, ShardError if no image comes out usable, Preempted if
    the scheduler's notice came before all was done: then what was begun is kept for whoever goes on, and free for others.
    """
    policy = policy or WorkerPolicy()
    for line in source.check(batch_constants(plan_path or out / PLAN_FILE)):  # what fails here leaves no folder behind
        tell(line)
    output = _open(out, plan_path, source, is_retry=bool(retry))
    heartbeat = Heartbeat(out, worker, policy.intervals, source.machine)
    heartbeat.note(settings_sha256=settings_digest(source.settings))
    with heartbeat:
        own = worker.share(output.shards)
        work = _retry(output, source, retry, tell) if retry else _render(output, source, heartbeat, policy, tell, own)
        if (difference := other_machine_warning(output.first_machine, source.machine)) is not None:
            tell(f"warning: {difference}")
        left = work.remaining(worker.preferred(output.shards))
        source.expect(output.spread_rows(SPREAD_ROWS))
        heartbeat.tell(
            "started",
            work=work.name,
            settings=source.settings,
            machine=source.machine,
            plan_sha256=output.metadata["plan_sha256"],
            shards=len(output.shards),
            shards_left=len(left),
        )
        showing = FolderProgress(work, left, policy.intervals, heartbeat.worker)
        with Claims(out, heartbeat.worker, policy.intervals) as claims, showing as progress:
            spool = Spool(out, work.name, heartbeat.worker)
            loop = _WorkLoop(
                work=work, source=source, policy=policy, heartbeat=heartbeat, claims=claims, spool=spool, progress=progress, tell=tell,
                left=left, seconds_between_looks=_seconds_between_looks(policy, worker),
            )  # fmt: skip
            left = loop.run_to_its_end(_Ending(work=work, claims=claims, intervals=policy.intervals, own=own, tell=tell))
            summary = loop.summary
            summary.shards_left = len(left)
            if not left:
                spool.clear()
        if left:
            policy.notice.obey(f"{len(left)} of {len(output.shards)} shards are left in {out}")
            summary.holders = sorted(set(claims.holders().values()))
    return summary


def _open(out: Path, plan_path: Path | None, source: ImageSource, *, is_retry: bool) -> OutputFolder:
    """The folder with its plan; what can be refused before this worker shows itself is."""
    if is_retry:
        require_rendered(out)
    output = open_to_fill(out, plan_path)
    adopt_settings(output, source, must_agree=not is_retry)
    return output


def _render(
    output: OutputFolder, source: ImageSource, heartbeat: Heartbeat, policy: WorkerPolicy, tell: Tell, own: Sequence[Shard]
) -> Work:
    """The shards that are not there, and the folder bound to this source's settings. The heartbeat beats by now: others see this worker."""

    def others() -> Sequence[ObservedWorker]:
        seen = Liveness(output.path, policy.intervals).workers()
        return [one for one in seen if one.record.worker != heartbeat.worker]

    bound = bind_settings(output, source, others)
    if bound is Bound.REPLACED:
        Spool(output.path, NewShards.name, heartbeat.worker).clear()  # made with the settings that were replaced
    if bound is not Bound.AGREED:  # told once, by whoever is first: a million captions take a minute
        for warning in source.warnings(output.captions()):
            tell(f"warning: {warning}")
    return NewShards(output, source.settings, own)


def _retry(output: OutputFolder, source: ImageSource, statuses: Collection[SampleStatus], tell: Tell) -> Work:
    """The rows to make again; a record of the settings only if there are any."""
    unfinished = len(output.remaining())
    if unfinished:
        tell(f"warning: {unfinished} shards are not finished: --retry is for rows of finished ones, render without it makes the others")
    any_such = RetriedRows(output, source.settings, 0, statuses)
    if not any_such.remaining():
        return any_such
    number = bind_retry(output, source)
    return RetriedRows(output, source.settings, number, statuses)


@dataclass(kw_only=True)
class _Ending:
    """What is to do once every shard is there: index and card, by one of all workers, and nothing left behind.

    The claim on the index, which is no shard's name, parts them: to write it is to read a file for each shard.
    """

    work: Work
    claims: Claims
    intervals: HeartbeatIntervals
    own: Sequence[Shard]  # this worker's share, whose age it holds against the index's
    tell: Tell

    def damaged(self, made_here: Sequence[Shard]) -> list[Shard] | None:
        """End the folder. Returns shards that turn out damaged, which are still to be made; None if another worker is at it."""
        if self.claims.take_one([INDEX_FILE]) is None:
            return None
        try:
            return self._end({*self.own, *made_here})
        finally:
            self.claims.release(INDEX_FILE)

    def _end(self, known: Collection[Shard]) -> list[Shard]:
        output = self.work.output
        if not output.has_index(known):
            if damaged := output.remaining():
                return damaged
            output.write_index()
        if (note := write_card(output.path)) is not None:
            self.tell(note)
        output.tidy(Liveness(output.path, self.intervals))
        return []


def _seconds_between_looks(policy: WorkerPolicy, worker: Worker) -> float:
    return policy.intervals.look_again_seconds * max(1.0, worker.world_size / CROWD)


class _Preempted(Exception):
    """The scheduler wants the machine back: unwinds the rendering of a shard, whose finished batches are kept."""


@dataclass(kw_only=True)
class _WorkLoop:
    """What a worker does from its first shard to its last, told to the other workers (heartbeat, claims) and on the terminal."""

    work: Work
    source: ImageSource
    policy: WorkerPolicy
    heartbeat: Heartbeat
    claims: Claims
    spool: Spool
    progress: FolderProgress
    tell: Tell
    left: list[Shard]  # as far as is known, in the order they are taken
    seconds_between_looks: float  # while there is only waiting to do
    made_here: list[Shard] = field(default_factory=list)
    is_late: bool = False  # whether others have done more than is known here
    summary: RunSummary = field(default_factory=RunSummary)
    split_batch: int | None = None  # as it was last told

    def run_to_its_end(self, ending: _Ending) -> list[Shard]:
        """Make shards, and end the folder once all are there. Returns those that are left to others or to another start."""
        while True:
            with BackgroundWriter(self.work.write) as writer:
                self.run(writer)
            if left := self.work.remaining():
                return left
            damaged = ending.damaged(self.made_here)
            while damaged is None and self._waits_for_the_index():
                self._pause()
                damaged = ending.damaged(self.made_here)
            self.left = self.work.still_to_make(damaged or [])
            if not self.left:
                return []

    def _waits_for_the_index(self) -> bool:
        return self.policy.waits and not self.policy.notice.has_come and not (self.work.output.path / INDEX_FILE).is_file()

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
                if not self.work.is_done(shard):
                    return shard
                self.claims.release(shard.name)  # completed since the last look
                self._forget(shard)
                self.is_late = True
            elif not self._settle(writer, wait=True):
                if not (self.policy.waits and self.left):
                    return None
                self._pause()
                self.is_late = True
        return None

    def _make(self, shard: Shard, writer: BackgroundWriter) -> None:
        # Here and not sooner: with the claim held, nobody else can have completed the folder meanwhile.
        self.work.output.remove_index()
        started = time.monotonic()
        self.heartbeat.note(shard=shard.name)

        def on_images(count: int) -> None:
            self.progress.advance(count)
            self.heartbeat.images(made=count)
            self._tell_split()
            self._settle(writer, wait=False)  # an error of the writer, such as a full disk, ends the run here and not a shard later
            if self.policy.notice.has_come:
                raise _Preempted

        rows = self.work.rows(shard)
        made_for = purpose(self.work.output.metadata["plan_sha256"], self.work.settings, [row["sample_key"] for row in rows])
        batches = self.spool.of_shard(shard.name, made_for, self.progress.advance)
        try:
            pictures = self.source.pictures(rows, on_images, batches)
        except NothingUsable:
            self.spool.forget(shard.name)
            raise
        self._settle(writer, wait=True)
        writer.begin(MadeShard(shard, rows, pictures, time.monotonic() - started, batches.num_reused))
        self.heartbeat.note(shard=None)

    def _tell_split(self) -> None:
        """Once for every size that turned out too large."""
        if self.source.split_batch != self.split_batch:
            self.split_batch = self.source.split_batch
            self.tell(
                f"warning: a batch does not fit in this device's memory: from here on {self.split_batch} images are made at once. "
                "Images may differ in their last bits from those of a device that holds whole batches."
            )
            self.heartbeat.tell("batch split", images_at_once=self.split_batch)

    def _settle(self, writer: BackgroundWriter, *, wait: bool) -> bool:
        """Count a shard that has been written and give its claim up; whether there was one."""
        made = writer.finished(wait=wait)
        if made is None:
            return False
        self.spool.forget(made.shard.name)
        self.progress.settled(len(made.rows))
        self.claims.release(made.shard.name)
        self._forget(made.shard)
        self.made_here.append(made.shard)
        self.summary.shards_done_here += 1
        self.summary.statuses.update(made.statuses)
        self.heartbeat.images(done=len(made.rows))
        self.heartbeat.tell(
            SHARD_WRITTEN,
            name=made.shard.name,
            images=len(made.rows),
            ok=made.statuses[SampleStatus.OK],
            seconds=round(made.seconds, 3),
            **({"reused": made.num_reused} if made.num_reused else {}),
        )
        return True

    def _forget(self, shard: Shard) -> None:
        self.left = [other for other in self.left if other != shard]
        self.progress.forget(shard)

    def _look_again(self) -> None:
        """Find out what others have completed, once there is a sign that they have.

        A worker goes through its own share first, where nobody else is: it needs no look at the folder for each of its shards.
        """
        if self.is_late:
            self.left = self.work.look_again(self.left)
            self.is_late = False
        self.progress.look_if_due()

    def _pause(self) -> None:
        """Sleep until the next look, or until the notice comes."""
        self.heartbeat.wait(True)
        ends = time.monotonic() + self.seconds_between_looks
        while time.monotonic() < ends and not self.policy.notice.has_come:
            time.sleep(min(LONGEST_PAUSE, self.seconds_between_looks))
        self.heartbeat.wait(False)
