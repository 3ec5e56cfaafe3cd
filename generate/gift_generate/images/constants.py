"""What the batches of a plan will have in common: the combinations of numbers in its rows, found without reading its captions."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gift_generate.rendering.renderer import BatchConstants
from gift_shared.parquet_files import ROWS_AT_ONCE
from gift_shared.storage import NO_PARQUET

NEGATIVE_PROMPT = "negative_prompt"
COLUMNS = ("guidance_scale", "denoising_steps", "render_height", "render_width")


def batch_constants(plan_path: Path) -> list[BatchConstants]:
    """Distinct ones, in the order of the plan; none for a file that is no plan, which whoever reads it as one tells of."""
    found: dict[BatchConstants, None] = {}
    try:
        with pq.ParquetFile(plan_path) as file:
            names = file.schema_arrow.names
            if not set(COLUMNS[:2]) <= set(names):
                return []
            columns = [name for name in (*COLUMNS, NEGATIVE_PROMPT) if name in names]
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                found |= dict.fromkeys(_distinct(pa.Table.from_batches([batch])))
    except NO_PARQUET:
        return []
    return list(found)


def _distinct(rows: pa.Table) -> list[BatchConstants]:
    names = rows.column_names
    if NEGATIVE_PROMPT in names:
        has_any = pc.fill_null(pc.greater(pc.utf8_length(rows[NEGATIVE_PROMPT]), 0), False)
    else:
        has_any = pa.repeat(False, rows.num_rows)
    columns = {name: rows[name] if name in names else pa.nulls(rows.num_rows, pa.int32()) for name in COLUMNS}
    table = pa.table(columns | {"has_negative_prompt": has_any})
    distinct = table.group_by([*COLUMNS, "has_negative_prompt"], use_threads=False).aggregate([])
    return [BatchConstants(*(row[name] for name in (*COLUMNS, "has_negative_prompt"))) for row in distinct.to_pylist()]


def plan_sources(plan_path: Path) -> list[str]:
    """Where the plan's captions come from, in its order: values of its column `source`; none for a file that is no plan."""
    found: dict[str, None] = {}
    try:
        with pq.ParquetFile(plan_path) as file:
            if "source" in file.schema_arrow.names:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=["source"]):
                    found |= dict.fromkeys(map(str, batch["source"].unique().to_pylist()))
    except NO_PARQUET:
        return []
    return list(found)
