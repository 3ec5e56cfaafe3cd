"""An output folder: the plan it renders, the settings it is bound to, and which of its shards are complete."""

import filecmp
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gift_generate.images.image_source import PlanRow
from gift_generate.output.dataset_card import remove_card
from gift_generate.planning.plan import IMPORTED
from gift_generate.planning.plan_check import check_plan, shard_slices
from gift_generate.workers.claims import remove_claims_of_the_dead
from gift_generate.workers.heartbeat import Liveness
from gift_shared.atomic import TEMPORARY_SUFFIX
from gift_shared.documents import read_json_object
from gift_shared.errors import ConfigError, PlanError
from gift_shared.parquet_files import ROWS_AT_ONCE, RowFile, open_plan, read_index, write_index_parts
from gift_shared.schema import CLAIM_FOLDER, INDEX_FILE, PLAN_FILE, RENDER_FILE, SHARD_FOLDER, TAR_BYTES, WORKER_FOLDER
from gift_shared.shards import shard_rows, shard_tar
from gift_shared.storage import NO_PARQUET

PLAN_SHA256 = "plan_sha256"  # in the metadata of every index file and in render.json
RECORD = {"settings": {}, "machine?": {str: str}, f"{PLAN_SHA256}?": str}  # render.json; folders of earlier versions lack the plan's
NO_RECORD = "Choose another --out."
FEW_OF = 16  # shards that are less than one in so many are looked for one by one
MOST_CAPTIONS_KNOWN = 1_000_000  # in memory, to tell repeated ones


@dataclass(frozen=True)
class Shard:
    """A shard's place in the plan."""

    name: str
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class OutputFolder:
    """The plan of a folder and what is done of it. Make one with `open_to_fill` (to write) or `open_output` (to read).

    Of the plan no more is in memory than the names of its shards and the rows that were asked for last: there is one of these objects in
    every worker.
    """

    path: Path
    plan: RowFile
    shards: Sequence[Shard]  # all, in plan order
    metadata: dict[str, str]  # of every index file: the plan's own, and the plan's sha256

    def rows(self, shard: Shard) -> list[PlanRow]:
        """The plan rows of one shard."""
        rows: list[PlanRow] = self.plan.slice(shard.first_row, shard.num_rows).to_pylist()
        return rows

    def is_complete(self, shard: Shard) -> bool:
        """Whether the shard counts: its rows exist and its tar has the size they claim (a tar cut short is made again).

        Raises PlanError if it was made by another plan: made again, it would be lost.
        """
        rows, tar = shard_rows(self.path, shard.name), shard_tar(self.path, shard.name)
        try:
            tar_bytes = tar.stat().st_size
            schema_metadata = pq.read_schema(rows).metadata or {}
        except (OSError, pa.ArrowInvalid):  # a damaged footer is either, a missing file the former
            return False
        self._require_plan(schema_metadata.get(PLAN_SHA256.encode(), b"").decode(), f"{SHARD_FOLDER}/{rows.name}")
        return schema_metadata.get(TAR_BYTES.encode()) == str(tar_bytes).encode()

    def require_own_plan(self) -> None:
        """Raises PlanError if the plan is another one than the folder was begun with, as far as that is known without every shard."""
        self._require_plan(self._record().get(PLAN_SHA256, ""), RENDER_FILE)

    def _require_plan(self, recorded: str, where: str) -> None:
        found = self.metadata[PLAN_SHA256]
        if recorded and recorded != found:
            raise PlanError(
                f"{self.path / PLAN_FILE} was replaced: {where} was written for a plan with sha256 {recorded[:12]}..., it now has "
                f"{found[:12]}.... Put the plan back that this folder was begun with, or choose another --out."
            )

    def _record(self) -> dict[str, Any]:
        """What render.json says; nothing before the folder is bound."""
        path = self.path / RENDER_FILE
        return read_json_object(path, RECORD, ConfigError, NO_RECORD) if path.is_file() else {}

    @property
    def first_machine(self) -> dict[str, str]:
        """Hardware and versions of the worker that bound the folder, as far as they are known."""
        machine: dict[str, str] = self._record().get("machine", {})
        return machine

    def remaining(self, among: Sequence[Shard] | None = None) -> list[Shard]:
        """Shards that are still to be rendered, in the order given, which is the plan's if none is. Looks into all that are there."""
        shards = self.shards if among is None else among
        absent = {shard.name for shard in self.absent(shards)}
        return [shard for shard in shards if shard.name in absent or not self.is_complete(shard)]

    def absent(self, among: Sequence[Shard] | None = None) -> list[Shard]:
        """Shards whose files are not both there, in the order given, which is the plan's if none is; none is looked into.

        From one listing, which on a network file system is fresh. Of a few among many shards each is looked for by its name: a listing of
        a hundred thousand files costs a server more, and that a name may be a minute late harms nobody.
        """
        shards = self.shards if among is None else among
        folder = self.path / SHARD_FOLDER
        if len(shards) * FEW_OF < len(self.shards):
            return [
                shard for shard in shards if not (shard_rows(self.path, shard.name).exists() and shard_tar(self.path, shard.name).exists())
            ]
        there = set(os.listdir(folder)) if folder.is_dir() else set()
        return [shard for shard in shards if not {f"{shard.name}.parquet", f"{shard.name}.tar"} <= there]

    def has_shards(self) -> bool:
        """Whether any shard is complete: then the folder is bound to the settings it was made with."""
        absent = {shard.name for shard in self.absent()}
        return any(shard.name not in absent and self.is_complete(shard) for shard in self.shards)

    def spread_rows(self, count: int) -> list[PlanRow]:
        """So many rows from all over the plan, at equal distances; all of a plan that has no more."""
        num_rows = self.plan.num_rows
        places = sorted({position * num_rows // count for position in range(count)})
        rows: list[PlanRow] = self.plan.take(places).to_pylist()
        return rows

    def captions(self) -> Iterator[str]:
        """The captions of the plan, in order; of those that stand in many rows most repetitions are left out."""
        known: set[str] = set()
        for batch in self.plan.batches(["caption"]):
            new = [caption for caption in pc.unique(batch["caption"]).to_pylist() if caption not in known]
            known.update(new[: MOST_CAPTIONS_KNOWN - len(known)])
            yield from new

    def complete_rows(self) -> Iterator[tuple[Shard, pa.Table]]:
        """The index rows of every complete shard, in plan order."""
        for shard in self.shards:
            if self.is_complete(shard):
                yield shard, read_index(shard_rows(self.path, shard.name))[0]

    def has_index(self, among: Iterable[Shard] | None = None) -> bool:
        """Whether the index was written, and after each of these shards, which are all if none are given.

        One that is older than a shard may list what the shard held before.
        """
        rows = (shard_rows(self.path, shard.name) for shard in (self.shards if among is None else among))
        try:
            written = (self.path / INDEX_FILE).stat().st_mtime_ns
            return all(path.stat().st_mtime_ns <= written for path in rows)
        except FileNotFoundError:
            return False

    def remove_index(self) -> None:
        """Before a shard is made: an index, and its card, exist only while all shards do, however this process ends."""
        remove_card(self.path)
        (self.path / INDEX_FILE).unlink(missing_ok=True)

    def write_index(self) -> None:
        """Join the rows of all shards, which must be complete, to the index of the folder."""
        write_index_parts(self.path / INDEX_FILE, self._all_rows(), self.metadata)

    def _all_rows(self) -> Iterator[pa.Table]:
        num_shards = 0
        for _, rows in self.complete_rows():
            num_shards += 1
            yield rows
        assert num_shards == len(self.shards)

    def tidy(self, liveness: Liveness) -> None:
        """Remove temporaries and claims that dead workers left; once every shard is complete. What a living one writes stays."""
        for folder in (self.path, *(self.path / name for name in (SHARD_FOLDER, CLAIM_FOLDER, WORKER_FOLDER))):
            for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
                if liveness.is_abandoned(path):
                    path.unlink(missing_ok=True)
        remove_claims_of_the_dead(self.path, liveness)


def check_place(path: Path, plan_path: Path | None) -> RowFile:
    """Whether render may fill the folder by the plan; touches nothing. Raises ConfigError, PlanError: before minutes of loading a model.

    Returns: the plan, the folder's own if none is given.
    """
    if _is_import(path / PLAN_FILE):
        raise ConfigError(f"{path} holds imported images: run gift-generate import again to go on, or choose another --out.")
    plan = None
    if plan_path is not None:
        plan = open_plan(plan_path)
        check_plan(plan, plan_path)
    check_folder(path, plan_path)
    if (path / PLAN_FILE).is_file():
        output = open_output(path)
        output.require_own_plan()
        plan = output.plan
    assert plan is not None
    return plan


def planned_left(path: Path, plan: RowFile) -> list[Shard]:
    """The shards of a plan that a folder still lacks: all of them while it has none."""
    if (path / PLAN_FILE).is_file():
        return open_output(path).remaining()
    return [Shard(*place) for place in shard_slices(plan)]


def check_folder(path: Path, plan_path: Path | None) -> None:
    """Whether the folder is free, or holds this plan already (None: any). Raises ConfigError."""
    begun = has_begun(path)  # asked before the plan, which is put there first: other workers may begin between the two looks
    if (path / "run.json").is_file():
        raise ConfigError(f"{path} is a run folder of gift-train. Choose another --out.")
    if (path / PLAN_FILE).is_file():
        if plan_path is not None and not _is_same_plan(path / PLAN_FILE, plan_path):
            if _is_import(plan_path):  # of which the user knows no plan
                held = "another import: other images, captions or options" if _is_import(path / PLAN_FILE) else "rendered images"
                raise ConfigError(f"{path} holds {held}. Choose another --out.")
            held_output = open_output(path)
            held_output.require_own_plan()  # the folder's own may be the one that is wrong
            what = "holds images of" if held_output.has_shards() else "was begun with"
            raise ConfigError(f"{path} {what} another plan than {plan_path}. Choose another --out, or leave --plan out to go on.")
    elif begun:
        raise ConfigError(f"--out {path} exists and is no output folder of gift-generate (no {PLAN_FILE}). Choose another --out.")
    elif plan_path is None:
        raise ConfigError(f"{path} has no {PLAN_FILE} to go on with: give --plan.")


def _is_same_plan(held: Path, given: Path) -> bool:
    """Whether two plans ask for the same images; the version of the program that wrote them, and its arguments, may differ."""
    if filecmp.cmp(held, given, shallow=False):
        return True
    if _is_import(held) != _is_import(given):
        return False
    with open_plan(held) as one, open_plan(given) as other:
        starts = range(0, one.num_rows, ROWS_AT_ONCE)
        return one.num_rows == other.num_rows and all(one.slice(at, ROWS_AT_ONCE).equals(other.slice(at, ROWS_AT_ONCE)) for at in starts)


def _is_import(plan_path: Path) -> bool:
    try:
        return IMPORTED.encode() in (pq.read_schema(plan_path).metadata or {})
    except NO_PARQUET:
        return False


def has_begun(path: Path) -> bool:
    """False for a folder that a render may still begin in: not there, or nothing in it."""
    return path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir()))


def open_output(path: Path) -> OutputFolder:
    """Read the plan of an output folder. Raises PlanError if it has none or not a sound one."""
    plan_path = path / PLAN_FILE
    if not plan_path.is_file():
        raise PlanError(f"{path} has no {PLAN_FILE}, so it is no output folder of gift-generate.")
    plan = open_plan(plan_path)
    shards = [Shard(*place) for place in check_plan(plan, plan_path)]
    with plan_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return OutputFolder(path, plan, shards, plan.metadata | {PLAN_SHA256: digest})
