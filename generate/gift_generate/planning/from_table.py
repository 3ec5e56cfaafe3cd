"""A table of rows that someone else decided -> plan rows: what is missing is filled by our rules, what is there is checked and kept."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gift_generate.planning.plan_request import PlanRequest
from gift_generate.planning.tables import read_table, typed_column
from gift_shared import keys
from gift_shared.caption_files import clean, source_stem
from gift_shared.errors import PlanError
from gift_shared.parquet_files import ROWS_AT_ONCE
from gift_shared.schema import PLAN_SCHEMA

TASK = "captions"  # of rows that name none
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class FilledTable:
    """Rows of PLAN_SCHEMA in plan order. Without shards of its own the table has tasks in their place, not cut yet."""

    rows: pa.Table
    has_shards: bool
    passed_over: tuple[str, ...]  # columns that are none of a plan


def fill_table(request: PlanRequest) -> FilledTable:
    """Read the table of --from and fill it up. Raises PlanError, naming the row, for values that no plan can have.

    Rows of a shard (without shards: of a task) are put together and sorted by sample key, as a tar needs them.
    """
    path = request.table
    assert path is not None
    table = read_table(path)
    passed_over = _passed_over(request, table)
    given = {field.name: typed_column(path, table, field.name, field.type) for field in PLAN_SCHEMA if field.name in table.column_names}
    if "caption" not in given:
        raise PlanError(f"{path}: expected a column caption, found {', '.join(table.column_names) or 'none'}.")
    if not table.num_rows:
        raise PlanError(f"{path} holds no row.")
    given["caption"] = pa.chunked_array([clean(chunk).cast(pa.string()) for chunk in given["caption"].chunks], pa.string())
    has_shards = "shard" in given and not given["shard"].null_count
    if "shard" in given and not has_shards and given["shard"].null_count < table.num_rows:
        raise PlanError(f"{path}, {_first_row(given['shard'].is_null())}: shard is missing. Give it in every row, or in none.")
    columns = _filled(request, given, table.num_rows, has_shards=has_shards)
    rows = pa.table([columns[field.name].cast(field.type) for field in PLAN_SCHEMA], schema=PLAN_SCHEMA)
    _check_values(str(path), rows)
    return FilledTable(_together(rows), has_shards, passed_over)


def _passed_over(request: PlanRequest, table: pa.Table) -> tuple[str, ...]:
    others = tuple(name for name in table.column_names if name not in PLAN_SCHEMA.names)
    for name in others:
        nearest = difflib.get_close_matches(name.strip().lower(), PLAN_SCHEMA.names, n=1, cutoff=0.8)
        if nearest and nearest[0] not in table.column_names:
            raise PlanError(f"{request.table}: column {name!r} is none of a plan. Did you mean {nearest[0]!r}? Rename it, or leave it out.")
    return others


def _filled(request: PlanRequest, given: dict[str, pa.ChunkedArray], num_rows: int, *, has_shards: bool) -> dict[str, pa.ChunkedArray]:
    """All columns of a plan; a value that is null is filled like one whose column is missing."""
    assert request.table is not None
    columns = {field.name: given.get(field.name, pa.chunked_array([pa.nulls(num_rows, field.type)])) for field in PLAN_SCHEMA}
    defaults: dict[str, Any] = {"task": TASK, "source": f"file:{source_stem(request.table)}"}
    defaults |= {"guidance_scale": request.guidance_scale, "denoising_steps": request.denoising_steps}
    for name, value in defaults.items():
        columns[name] = pc.fill_null(columns[name], pa.scalar(value, columns[name].type))
    columns["index"] = pc.coalesce(columns["index"], pa.chunked_array([_positions(columns["task"])]))

    def fill(name: str, value: Callable[..., Any], *from_columns: str) -> None:
        if not columns[name].null_count:
            return
        chunks = []
        for start in range(0, num_rows, ROWS_AT_ONCE):  # as Python objects, of which millions would be a hundred bytes each
            own, *others = (columns[other].slice(start, ROWS_AT_ONCE).to_pylist() for other in (name, *from_columns))
            values = [value(*row) if given is None else given for given, *row in zip(own, *others, strict=True)]
            chunks.append(pa.array(values, columns[name].type))
        columns[name] = pa.chunked_array(chunks)

    fill("sample_key", lambda task, index: keys.pool_sample_key(task, *divmod(index, 100_000)), "task", "index")
    fill("sample_seed", lambda sample_key: keys.hashed_seed(request.seed, sample_key), "sample_key")
    if not has_shards:
        columns["shard"] = columns["task"]
    return columns


def _positions(tasks: pa.ChunkedArray) -> pa.Array:
    """For each row how many before it have the same task."""
    codes = tasks.combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    places = np.arange(len(codes))
    begins = np.concatenate([[True], codes[order][1:] != codes[order][:-1]])
    positions = np.empty(len(codes), dtype=np.int64)
    positions[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return pa.array(positions)


def _check_values(where: str, rows: pa.Table) -> None:
    """What a plan of ours cannot have wrong; safe names, sizes and the rest are checked of every plan."""
    faults = {
        "caption is empty": pc.equal(rows["caption"], ""),
        "task is empty": pc.equal(rows["task"], ""),
        "index must be at least 0": pc.less(rows["index"], 0),
        f"sample_seed must be from 0 to {MOST_SEED}": pc.less(rows["sample_seed"], 0),
        "denoising_steps must be at least 1": pc.less(rows["denoising_steps"], 1),
        "guidance_scale must be at least 0": pc.invert(
            pc.and_(pc.is_finite(rows["guidance_scale"]), pc.greater_equal(rows["guidance_scale"], 0))
        ),
        "class_index must be at least 0": pc.less(pc.fill_null(rows["class_index"], 0), 0),
        "class_name and class_index must be given together": pc.xor(rows["class_name"].is_null(), rows["class_index"].is_null()),
        "render_height and render_width must be given together": pc.xor(rows["render_height"].is_null(), rows["render_width"].is_null()),
    }
    for fault, is_wrong in faults.items():
        if pc.any(is_wrong).as_py():
            raise PlanError(f"{where}, {_first_row(is_wrong)}: {fault}.")


def _first_row(is_wrong: pa.ChunkedArray) -> str:
    return f"row {pc.index(is_wrong, True).as_py() + 1}"


def _together(rows: pa.Table) -> pa.Table:
    """Rows of a shard (or task) together, in order of its first one, and by sample key within."""
    codes = rows["shard"].combine_chunks().dictionary_encode().indices
    order = pc.sort_indices(pa.table({"shard": codes, "key": rows["sample_key"]}), [("shard", "ascending"), ("key", "ascending")])
    return rows.take(order)
