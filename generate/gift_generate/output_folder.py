"""An output folder: the plan it renders, the settings it is bound to, and which of its shards are complete."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gift_generate.pictures import PlanRow
from gift_generate.plan import check_plan, shard_slices
from gift_generate.workers import Worker
from gift_generate.writer import TAR_BYTES
from gift_shared.atomic import TEMPORARY_SUFFIX, atomic_path, write_json
from gift_shared.errors import ConfigError, PlanError
from gift_shared.locks import only_writer
from gift_shared.schema import INDEX_FILE, PLAN_FILE, RENDER_FILE, SHARD_FOLDER
from gift_shared.shards import shard_rows, shard_tar
from gift_shared.tables import read_index, read_plan, write_index

LOCK_SUFFIX = ".lock"


@dataclass(frozen=True)
class Shard:
    """A shard's place in the plan."""

    name: str
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class OutputFolder:
    """The plan of a folder and what is done of it. Make one with `bind_output` (to write) or `open_output` (to read)."""

    path: Path
    plan: pa.Table
    metadata: dict[str, str]  # of every index file: the plan's own, and the plan's sha256

    @cached_property
    def shards(self) -> list[Shard]:
        """All shards, in plan order."""
        return [Shard(*place) for place in shard_slices(self.plan)]

    def rows(self, shard: Shard) -> list[PlanRow]:
        """The plan rows of one shard."""
        return self.plan.slice(shard.first_row, shard.num_rows).to_pylist()

    def is_complete(self, shard: Shard) -> bool:
        """Whether the shard counts: its rows exist and its tar has the size they claim (a tar cut short is made again)."""
        rows, tar = shard_rows(self.path, shard.name), shard_tar(self.path, shard.name)
        if not rows.is_file() or not tar.is_file():
            return False
        try:
            schema_metadata = pq.read_schema(rows).metadata or {}
        except pa.ArrowInvalid:
            return False
        return schema_metadata.get(TAR_BYTES.encode()) == str(tar.stat().st_size).encode()

    def remaining(self) -> list[Shard]:
        """Shards that are still to be rendered, in plan order."""
        return [shard for shard in self.shards if not self.is_complete(shard)]

    def complete_rows(self) -> Iterator[tuple[Shard, pa.Table]]:
        """The index rows of every complete shard, in plan order."""
        for shard in self.shards:
            if self.is_complete(shard):
                yield shard, read_index(shard_rows(self.path, shard.name))[0]

    def write_index(self) -> None:
        """Join the rows of all shards, which must be complete, to the index of the folder."""
        tables = [table for _, table in self.complete_rows()]
        assert len(tables) == len(self.shards)
        write_index(self.path / INDEX_FILE, pa.concat_tables(tables), self.metadata)

    def lock(self, worker: Worker) -> AbstractContextManager[None]:
        """Let nobody else work on this worker's share meanwhile."""
        share = f"{self.path} (share {worker.rank} of {worker.world_size})"
        return only_writer(self.path / f".worker-{worker.rank:05d}{LOCK_SUFFIX}", share)

    def tidy(self) -> None:
        """Remove what killed workers left, and the locks; only once every shard is complete, when nobody writes shards any more."""
        for path in (*(self.path / SHARD_FOLDER).glob(f".*{TEMPORARY_SUFFIX}"), *self.path.glob(f".worker-*{LOCK_SUFFIX}")):
            path.unlink(missing_ok=True)


def bind_output(path: Path, plan_path: Path | None, settings: dict[str, Any], machine: dict[str, str]) -> OutputFolder:
    """Put plan and settings into a folder, or check that those it has are the same. Raises ConfigError, PlanError.

    `plan_path` None goes on with the plan that the folder has. Settings decide bytes and must agree; the machine is recorded.
    """
    check_place(path, plan_path)
    if plan_path is not None and not (path / PLAN_FILE).is_file():
        with atomic_path(path / PLAN_FILE) as temporary:
            temporary.write_bytes(plan_path.read_bytes())
    output = open_output(path)
    record = path / RENDER_FILE
    if record.is_file():
        _require_same_settings(path, json.loads(record.read_text(encoding="utf-8"))["settings"], settings)
    else:
        write_json(record, {"settings": settings, "machine": machine})
    return output


def check_place(path: Path, plan_path: Path | None) -> None:
    """Whether the folder and the plan fit; touches nothing. Raises ConfigError, PlanError: before a model is loaded for minutes."""
    if plan_path is not None:
        check_plan(read_plan(plan_path)[0], plan_path)
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if "run.json" in names:
        raise ConfigError(f"{path} is a run folder of gift-train. Choose another --out.")
    if PLAN_FILE in names:
        if plan_path is not None and (path / PLAN_FILE).read_bytes() != plan_path.read_bytes():
            raise ConfigError(f"{path} holds images of another plan than {plan_path}. Choose another --out, or leave --plan out to go on.")
    elif path.exists() and (not path.is_dir() or any(not name.startswith(".") for name in names)):
        raise ConfigError(f"--out {path} exists and is no output folder of gift-generate (no {PLAN_FILE}). Choose another --out.")
    elif plan_path is None:
        raise ConfigError(f"{path} has no {PLAN_FILE} to go on with: give --plan.")


def _require_same_settings(path: Path, recorded: dict[str, Any], asked: dict[str, Any]) -> None:
    for name in sorted(recorded.keys() | asked.keys()):
        if recorded.get(name) != asked.get(name):
            raise ConfigError(
                f"{path} holds images made with {name} = {recorded.get(name)!r}, this command says {asked.get(name)!r}. "
                "Give the same settings to go on, or choose another --out."
            )


def open_output(path: Path) -> OutputFolder:
    """Read the plan of an output folder. Raises PlanError if it has none or not a sound one."""
    plan_path = path / PLAN_FILE
    if not plan_path.is_file():
        raise PlanError(f"{path} has no {PLAN_FILE}, so it is no output folder of gift-generate.")
    plan, metadata = read_plan(plan_path)
    check_plan(plan, plan_path)
    digest = hashlib.sha256(plan_path.read_bytes()).hexdigest()
    return OutputFolder(path, plan.combine_chunks(), metadata | {"plan_sha256": digest})
