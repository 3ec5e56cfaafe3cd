"""Who works on which shard: a claim is a file that one process alone can create. No locks, so any shared storage will do.

A claim spares work and nothing else: what a shard holds follows from the plan, and its files are renamed into place when whole. Should
two workers ever make the same shard, because one was silent for so long that it counted as dead, nothing is harmed.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from gift_generate.workers.heartbeat import HeartbeatIntervals, Liveness
from gift_shared.atomic import json_text, temporary_for, write_once
from gift_shared.documents import FILE_NAME, read_json_object
from gift_shared.errors import DataError
from gift_shared.schema import CLAIM_FOLDER

SUFFIX = ".json"


@dataclass(frozen=True)
class ClaimedShard:
    """A shard that is now this worker's, and the dead worker it was taken from, if any."""

    shard: str
    taken_from: str | None = None


@dataclass(frozen=True)
class Claim:
    """What a claim's file says: whose it is (empty if it is damaged) and when it was made, by the storage's clock."""

    worker: str
    since: float


class Claims:
    """The claims on an output folder's shards, as one worker sees and makes them."""

    def __init__(self, out: Path, worker: str, intervals: HeartbeatIntervals) -> None:
        self._out = out
        self._folder = out / CLAIM_FOLDER
        self._worker = worker
        self._intervals = intervals
        self._mine: set[str] = set()
        self._folder.mkdir(exist_ok=True)

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give up what is still held, however the work ended."""
        for shard in sorted(self._mine):
            self.release(shard)

    def take_one(self, shards: Iterable[str]) -> ClaimedShard | None:
        """Claim the first shard that nobody has; if there is none, the first whose worker is dead. None: all are being worked on."""
        claimed = set(self._names())
        held = []
        for shard in shards:
            if shard in claimed:
                held.append(shard)
            elif self._create(shard):
                return ClaimedShard(shard)
        liveness = Liveness(self._out, self._intervals) if held else None
        for shard in held:
            assert liveness is not None
            taken = self._take_over(shard, liveness)
            if taken is not None:
                return taken
        return None

    def release(self, shard: str) -> None:
        """Give a claim up, unless it was taken over meanwhile."""
        self._mine.discard(shard)
        claim = read_claim(self._path(shard))
        if claim is not None and claim.worker == self._worker:
            self._path(shard).unlink(missing_ok=True)

    def holders(self) -> dict[str, str]:
        """The worker at every shard that another one has claimed."""
        claims = {shard: read_claim(self._path(shard)) for shard in self._names()}
        return {shard: claim.worker for shard, claim in claims.items() if claim is not None and shard not in self._mine}

    def _names(self) -> list[str]:
        """Shards with a claim, from one listing: cheaper than a look for each, and a listing is fresh on a network file system."""
        return [name.removesuffix(SUFFIX) for name in os.listdir(self._folder) if name.endswith(SUFFIX) and not name.startswith(".")]

    def _path(self, shard: str) -> Path:
        return self._folder / f"{shard}{SUFFIX}"

    def _create(self, shard: str) -> bool:
        if not write_once(self._path(shard), json_text({"worker": self._worker}).encode()):
            return False
        self._mine.add(shard)
        return True

    def _take_over(self, shard: str, liveness: Liveness) -> ClaimedShard | None:
        seen = read_claim(self._path(shard))
        if seen is None:
            return ClaimedShard(shard) if self._create(shard) else None
        if shard in self._mine:
            return None
        # A claim of this very id that is not held is what an earlier run of this process left.
        if seen.worker != self._worker and not liveness.is_dead(seen.worker, seen.since):
            return None
        aside = temporary_for(self._path(shard))
        try:
            self._path(shard).rename(aside)  # of several that take over at once, one finds it
        except FileNotFoundError:
            return None
        moved = read_claim(aside)
        if moved is not None and moved.worker != seen.worker:
            # Another one took over in between, and this is its new claim: put back, unless the shard was claimed again meanwhile.
            if not self._path(shard).exists():
                aside.rename(self._path(shard))
            aside.unlink(missing_ok=True)
            return None
        aside.unlink(missing_ok=True)
        return ClaimedShard(shard, seen.worker) if self._create(shard) else None


def read_claim(path: Path) -> Claim | None:
    """A claim's file; None if it is not there any more."""
    try:
        since = path.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        return Claim(read_json_object(path, {"worker": FILE_NAME}, DataError)["worker"], since)
    except DataError:  # given up in between, or damaged
        return Claim("", since)


def remove_claims_of_the_dead(out: Path, liveness: Liveness) -> None:
    """Remove what dead workers left claimed; for a folder whose shards are all complete."""
    for path in (out / CLAIM_FOLDER).glob(f"*{SUFFIX}"):
        claim = None if path.name.startswith(".") else read_claim(path)
        if claim is not None and liveness.is_dead(claim.worker, claim.since):
            path.unlink(missing_ok=True)
