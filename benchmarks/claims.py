"""What a folder that many workers fill asks of the server that keeps its names, simulated: python benchmarks/claims.py [--quick]

Nothing is rendered and no file touched: workers take shards by the rules of gift_generate/pipeline.py and workers/claims.py, each shard
takes a worker between 0.8 and 1.2 of SECONDS_OF_A_SHARD, decided by a hash of both, and every question to the file system is counted.
`per shard` is how a worker did it that listed the folder before each shard, looked into every shard that others had finished, and wrote the
index if it was among the last; `share` is how it is done. Half of the shards are done at the start, as after a stop. All workers wait to
the end (--wait). What is assumed is named in capitals below.
"""

import argparse
import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from measure import Finding, report

SECONDS_OF_A_SHARD = 1000.0  # a thousand images at one a second
LOOK_AGAIN_SECONDS, CROWD, FEW_OF = 15.0, 32, 16  # of HeartbeatIntervals, pipeline.py and output/folder.py
OPERATIONS_OF_A_LOOK = 3  # into a shard: size of its tar, opening its rows, their footer
OPERATIONS_OF_ROWS = 6  # of a shard for the index: a look, and reading its rows
OPERATIONS_OF_A_CLAIM = 5  # a temporary file made, written and synced, a link, its removal
OPERATIONS_OF_A_RELEASE = 3
OPERATIONS_OF_WRITING = 12  # of a shard: two temporaries made, synced and renamed, index and card looked for, spool, heartbeat
OPERATIONS_OF_A_HOLDER = 4  # whether whoever claimed a shard is alive: claim and record
OPERATIONS_A_SECOND, ENTRIES_A_SECOND = 10_000, 500_000  # of a metadata server; those of docs/scale.md
SIZES = ((8, 10_000), (100, 10_000), (1_000, 10_000), (1_000, 100_000))  # workers, shards
QUICK_SIZES = ((8, 400), (40, 800))
RULES = ("per shard", "share")
MANY = 1_000  # shards finished since a worker's last look


@dataclass
class Asked:
    """Operations on single names, and entries of directories that were listed."""

    operations: int = 0
    entries: int = 0

    def hours(self) -> float:
        """Of a metadata server that does nothing else."""
        return (self.operations / OPERATIONS_A_SECOND + self.entries / ENTRIES_A_SECOND) / 3600


@dataclass
class Folder:
    """Which shards are done and which are at work, and who asked what for. Half of them are done when it begins, as after a stop."""

    num_workers: int
    num_shards: int
    rule: str
    done: dict[int, int] = field(default_factory=dict)  # shard: how many were done before it
    order: list[int] = field(default_factory=list)
    undone: set[int] = field(default_factory=set)
    claimed: set[int] = field(default_factory=set)
    asked: dict[str, Asked] = field(default_factory=lambda: defaultdict(Asked))

    def __post_init__(self) -> None:
        self.undone = set(range(self.num_shards))
        for shard in range(self.num_shards // 2):
            self.finish(shard)

    def finish(self, shard: int) -> None:
        """A shard is there."""
        self.done[shard] = len(self.order)
        self.order.append(shard)
        self.undone.discard(shard)
        self.claimed.discard(shard)

    def ask(self, what: str, operations: int = 0, entries: int = 0) -> None:
        """Count."""
        self.asked[what].operations += operations
        self.asked[what].entries += entries

    def list_shards(self, what: str) -> None:
        """A tar and its rows for each."""
        self.ask(what, 1, 2 * len(self.done))


class Worker:
    """What a worker does to the folder, and what it knows: the shards that were done when it last looked."""

    def __init__(self, rank: int, folder: Folder) -> None:
        self.rank, self.folder = rank, folder
        self.own = range(rank, folder.num_shards, folder.num_workers)
        self.at = 0  # in its own share
        self.num_known = len(folder.order)
        folder.list_shards("start")
        is_each = folder.rule == "per shard"
        folder.ask("start", OPERATIONS_OF_A_LOOK * (len(folder.order) if is_each else sum(shard in folder.done for shard in self.own)))

    def take(self) -> int | None:
        """The next shard, claimed; None if all that is left is claimed."""
        folder = self.folder
        while True:
            if folder.rule == "per shard":
                self.look("before each shard")
            folder.ask("claims", 1, len(folder.claimed))
            shard = self._next()
            if shard is None:
                folder.ask("waiting", 3 + OPERATIONS_OF_A_HOLDER * len(folder.claimed))
                return None
            folder.ask("claims", OPERATIONS_OF_A_CLAIM + OPERATIONS_OF_A_LOOK)
            if shard not in folder.done:
                folder.claimed.add(shard)
                return shard
            folder.ask("claims", OPERATIONS_OF_A_RELEASE)
            self.look("when others were met")

    def look(self, what: str) -> None:
        """Find out what is done: of a few among many shards by their names. `per shard`: into each that others have finished since, too."""
        folder = self.folder
        num_left = folder.num_shards - self.num_known  # as far as it knew
        if folder.rule == "share" and num_left * FEW_OF < folder.num_shards:
            folder.ask(what, num_left)
        else:
            folder.list_shards(what)
        if folder.rule == "per shard":
            folder.ask(what, OPERATIONS_OF_A_LOOK * (len(folder.order) - self.num_known))
        self.num_known = len(folder.order)

    def wait(self) -> float:
        """Look whether anything has become free; seconds to the next look."""
        self.look("waiting")
        return LOOK_AGAIN_SECONDS * (max(1.0, self.folder.num_workers / CROWD) if self.folder.rule == "share" else 1.0)

    def end(self, is_first: bool) -> None:
        """All shards are there: by the rule `per shard` each worker looks into all, twice, and writes the index."""
        folder = self.folder
        folder.list_shards("end")
        if folder.rule == "per shard":
            folder.list_shards("end")
            folder.ask("end", (2 * OPERATIONS_OF_A_LOOK + OPERATIONS_OF_ROWS) * folder.num_shards)
        else:
            folder.ask("end", 1 + OPERATIONS_OF_A_CLAIM + OPERATIONS_OF_A_RELEASE + len(self.own))
            folder.ask("end", (OPERATIONS_OF_A_LOOK + OPERATIONS_OF_ROWS) * folder.num_shards * is_first)

    def _next(self) -> int | None:
        while self.at < len(self.own):
            if self._may_be_free(self.own[self.at]):
                self.at += 1
                return self.own[self.at - 1]
            self.at += 1
        folder = self.folder
        if len(folder.order) - self.num_known > MANY:  # one of the first will do
            return next(filter(self._may_be_free, self._others()), None)
        among = folder.undone.union(folder.order[self.num_known :]) - folder.claimed
        return min(among, key=self._preference, default=None)

    def _may_be_free(self, shard: int) -> bool:
        return shard not in self.folder.claimed and self.folder.done.get(shard, self.num_known) >= self.num_known

    def _others(self) -> Iterator[int]:
        workers = self.folder.num_workers
        for further in range(1, workers):
            yield from range((self.rank + further) % workers, self.folder.num_shards, workers)[::-1]

    def _preference(self, shard: int) -> tuple[int, int]:
        further = (shard - self.rank) % self.folder.num_workers
        return further, -shard if further else shard


def simulate(num_workers: int, num_shards: int, rule: str) -> dict[str, Any]:
    """Fill the folder; what was asked, by occasion, and how long it took."""
    folder = Folder(num_workers, num_shards, rule)
    workers = [Worker(rank, folder) for rank in range(num_workers)]
    events: list[tuple[float, int, int]] = [(0.0, rank, -1) for rank in range(num_workers)]  # when, who, the shard that is done then
    now = 0.0
    while events:
        now, rank, finished = heapq.heappop(events)
        if finished >= 0:
            folder.finish(finished)
            folder.ask("shards", OPERATIONS_OF_WRITING + OPERATIONS_OF_A_RELEASE)
        shard = workers[rank].take()
        if shard is not None:
            heapq.heappush(events, (now + seconds(rank, shard), rank, shard))
        elif folder.undone:
            heapq.heappush(events, (now + workers[rank].wait(), rank, -1))
    for worker in workers:
        worker.end(worker.rank == 0)
    return {
        "hours": now / 3600,
        "operations": sum(asked.operations for asked in folder.asked.values()),
        "entries": sum(asked.entries for asked in folder.asked.values()),
        "server_hours": sum(asked.hours() for asked in folder.asked.values()),
        "asked": {what: vars(asked) | {"server_hours": asked.hours()} for what, asked in folder.asked.items()},
    }


def seconds(rank: int, shard: int) -> float:
    """How long a worker takes for a shard."""
    digest = blake2b(f"{rank}/{shard}".encode(), digest_size=4).digest()
    return SECONDS_OF_A_SHARD * (0.8 + 0.4 * int.from_bytes(digest, "big") / 2**32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few workers and shards")
    arguments = parser.parse_args()
    details, findings = {}, []
    for num_workers, num_shards in QUICK_SIZES if arguments.quick else SIZES:
        for rule in RULES:
            what = f"{num_workers:,} workers, {num_shards:,} shards, {rule}"
            found = details[what] = simulate(num_workers, num_shards, rule)
            bound = found["hours"] / 10 if rule == "share" else None  # of the time the work takes: others use the server too
            findings.append(Finding(what=f"{what}: metadata server", value=found["server_hours"], unit="h", target=bound, at_most=True))
            findings.append(Finding(what=f"{what}: operations", value=found["operations"] / 1e6, unit="million"))
            findings.append(Finding(what=f"{what}: entries listed", value=found["entries"] / 1e6, unit="million"))
    report("claims", findings, details, is_quick=arguments.quick)


if __name__ == "__main__":
    main()
