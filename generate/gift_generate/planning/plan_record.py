"""What a plan records of how it was made, and what is printed of it. Digests and not paths: the same files elsewhere are the same plan."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gift_generate.planning.captions import CaptionFile
from gift_generate.planning.class_counts import file_sha256
from gift_generate.planning.from_table import FilledTable
from gift_generate.planning.plan_request import PlanRequest
from gift_generate.planning.shard_size import BATCHES_OF, busy_fraction
from gift_shared.console import some_of
from gift_shared.schema import PlanKind

NUM_SAMPLES = 3  # captions of each source that are shown
MOST_SHARDS_OF_A_HUB_FOLDER = 5_000  # of two files each: it advises fewer than 10,000 entries a folder, and slows down beyond
_LOOKED_AT = 10_000  # rows of a source among which they are


def plan_metadata(
    request: PlanRequest, kind: PlanKind, size: int | None, files: Sequence[tuple[CaptionFile, float]], filled: FilledTable | None
) -> dict[str, str]:
    """The arguments, with `size` for the images of a shard as it was chosen, and what became of the files that were read."""
    arguments: dict[str, Any] = asdict(request) | {"kind": kind, "images_per_shard": size, "datasets": list(request.datasets or ())}
    arguments["caption_files"] = [
        {"source": file.source, "sha256": file.sha256, "weight": weight, "captions": len(file), "skipped": dict(file.skipped)}
        for file, weight in files
    ]
    if request.class_counts is not None:
        arguments["class_counts"] = {"sha256": file_sha256(request.class_counts)}
    if request.table is not None and filled is not None:
        arguments["table"] = {"sha256": file_sha256(request.table), "passed_over": list(filled.passed_over)}
    return {"arguments": json.dumps(arguments, sort_keys=True), "kind": str(kind), "order": request.order or ""}


def source_lines(rows: pa.Table, metadata: dict[str, str]) -> list[str]:
    """A line for each source: how many images, what was left out of its file, and a few captions as they will be painted."""
    arguments = json.loads(metadata["arguments"])
    files = {file["source"]: file for file in arguments["caption_files"]}
    counts = {count["values"]: count["counts"] for count in pc.value_counts(rows["source"]).to_pylist()}
    lines = []
    for source in dict.fromkeys([*counts, *files]):
        first = pc.indices_nonzero(pc.equal(rows["source"], source))[:_LOOKED_AT]  # their captions alone: not a copy of all
        samples = rows["caption"].take(first).unique().to_pylist()
        told = [f"{counts.get(source, 0):,} images"]
        if source in files:
            told.append(f"{files[source]['captions']:,} captions")
            told += [f"{count:,} {reason} left out" for reason, count in sorted(files[source]["skipped"].items())]
        lines.append(f"source  {source}  {', '.join(told)}")
        lines += [f"        {some_of([sample])}" for sample in samples[:NUM_SAMPLES]]
    if passed_over := (arguments["table"] or {}).get("passed_over"):
        lines.append(f"columns {', '.join(passed_over)} passed over: a plan has none of these names")
    return lines


def shard_line(rows: pa.Table, workers: int | None) -> str:
    """How many shards there are, how busy they keep the workers they were cut for, and whether they are too many to be shared."""
    counts = [count["counts"] for count in pc.value_counts(rows["shard"]).to_pylist()]
    told = f"shards  {len(counts):,} of at most {max(counts):,} images"
    if workers is not None:
        told += f"; {workers} equal workers are busy {busy_fraction(counts, max(counts), workers):.0%} of the time"
    if len(counts) > MOST_SHARDS_OF_A_HUB_FOLDER:
        size = -(-rows.num_rows // MOST_SHARDS_OF_A_HUB_FOLDER // BATCHES_OF) * BATCHES_OF
        advice = (
            f"the Hugging Face hub advises at most {MOST_SHARDS_OF_A_HUB_FOLDER:,} in a folder: --images-per-shard {size}, to push them"
        )
        told += f"\n        {advice}"
    return told
