"""Layout of an output folder and columns of its Parquet files. A change here is a new SCHEMA_VERSION.

OUT/plan.parquet            the plan that is rendered, as made by `gift-generate plan`
OUT/render.json             settings, which another render's must agree with; the plan's sha256; the first worker's machine
OUT/shards/<id>.tar         WebDataset shard: <key>.jpg, <key>.txt (caption), <key>.json (the row without nulls), keys ascending
OUT/shards/<id>.parquet     one row per *planned* sample of that shard; renamed last: the shard counts once this exists
OUT/index.parquet           all shards' rows in plan order; exists only when every shard does
OUT/README.md               the dataset's card; written after the index
OUT/workers/<id>.json       what a worker is at; its time of change is the worker's heartbeat
OUT/workers/<id>.jsonl      what that worker did, an event a line
OUT/claims/<id>.json        who works on that shard now
OUT/spool/<work>/           finished batches of shards that are not finished
OUT/retries/<number>.json   settings under which rows of finished shards were made again
OUT/scores/<name>.parquet   columns beside the index: how well a CLIP finds that each picture shows its caption
"""

from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, SCHEMA_VERSION)
SINCE_VERSION_2 = ("negative_prompt", "render_height", "render_width")  # columns that files of version 1 lack; null when such are read
VERSION_KEY = b"gift_schema_version"  # in the metadata of every Parquet file of ours

PLAN_FILE = "plan.parquet"
RENDER_FILE = "render.json"
INDEX_FILE = "index.parquet"
SHARD_FOLDER = "shards"
TAR_BYTES = "tar_bytes"  # metadata of a shard's Parquet: size and digest of the whole tar
TAR_SHA256 = "tar_sha256"
WORKER_FOLDER = "workers"
CLAIM_FOLDER = "claims"
SPOOL_FOLDER = "spool"
RETRY_FOLDER = "retries"
SCORE_FOLDER = "scores"


class SampleStatus(StrEnum):
    """What became of a planned sample. Only `ok` rows have an image in the tar."""

    OK = "ok"
    BLACK = "black"
    FLAGGED = "flagged"
    FAILED = "failed"


class PlanKind(StrEnum):
    """`per-task`: n images for each task of an order, as GIFT does it. `pool`: n images per class name, to select from.

    `captions`: the captions of files, without class names. `table`: rows that another program decided.
    """

    PER_TASK = "per-task"
    POOL = "pool"
    CAPTIONS = "captions"
    TABLE = "table"


PLAN_SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),  # dataset the image is for; "pool" or "captions" where it is for none
        pa.field("index", pa.int64(), nullable=False),  # position within the task
        pa.field("sample_key", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # manifest of the class name, or "file:<stem>" of captions
        pa.field("class_name", pa.string()),  # null for captions that come from a file
        pa.field("class_index", pa.int32()),  # label of class_name in its manifest; null likewise
        pa.field("sample_seed", pa.int64(), nullable=False),
        pa.field("guidance_scale", pa.float32(), nullable=False),
        pa.field("denoising_steps", pa.int32(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # shard id, the tar's file stem
        pa.field("negative_prompt", pa.string()),  # null: the one of the render's options
        pa.field("render_height", pa.int32()),  # pixels, with render_width; null: the size of the render's options
        pa.field("render_width", pa.int32()),
    ]
)

INDEX_SCHEMA = pa.schema(
    [
        *PLAN_SCHEMA,
        pa.field("status", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),  # why it is not ok, else ""
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("used_seed", pa.int64(), nullable=False),  # sample_seed, or the retry that succeeded
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("image_name", pa.string()),  # member of the tar, e.g. "aircraft-000017.jpg"; null unless ok
        pa.field("byte_offset", pa.int64()),  # of the image's bytes in the tar
        pa.field("byte_size", pa.int64()),
        pa.field("sha256", pa.string()),  # of the image's bytes
    ]
)

SCORES_SCHEMA = pa.schema(
    [
        pa.field("sample_key", pa.string(), nullable=False),  # the index's, row for row
        pa.field("similarity", pa.float32()),  # cosine of the image and its own caption, -1 to 1; null where there is no image
        pa.field("rank", pa.int32()),  # of the own caption among the plan's, 1 = best; null likewise
    ]
)
