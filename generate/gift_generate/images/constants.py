"""What the batches of a plan will have in common: the combinations of numbers in its rows, found without reading its captions."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gift_generate.rendering.renderer import BatchConstants
from gift_shared.storage import NO_PARQUET

NEGATIVE_PROMPT = "negative_prompt"
COLUMNS = ("guidance_scale", "denoising_steps", "render_height", "render_width")


def batch_constants(plan_path: Path) -> list[BatchConstants]:
    """Distinct ones, in the order of the plan; none for a file that is no plan, which whoever reads it as one tells of."""
    try:
        names = pq.read_schema(plan_path).names
        plan = pq.read_table(plan_path, columns=[name for name in (*COLUMNS, NEGATIVE_PROMPT) if name in names])
    except NO_PARQUET:
        return []
    if not set(COLUMNS[:2]) <= set(names):
        return []
    if NEGATIVE_PROMPT in names:
        has_any = pc.fill_null(pc.greater(pc.utf8_length(plan[NEGATIVE_PROMPT]), 0), False)
    else:
        has_any = pa.array([False] * plan.num_rows)
    columns = {name: plan[name] if name in names else pa.nulls(plan.num_rows, pa.int32()) for name in COLUMNS}
    rows = pa.table(columns | {"has_negative_prompt": has_any}).group_by([*COLUMNS, "has_negative_prompt"], use_threads=False).aggregate([])
    return [BatchConstants(*(row[name] for name in (*COLUMNS, "has_negative_prompt"))) for row in rows.to_pylist()]
