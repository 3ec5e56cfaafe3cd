"""RUN/diagnostics: names, columns and version of its Parquet files. Written by `record`, read by the report; no torch here.

predictions-<NN>-<name>.parquet  every test image's label and prediction after task NN; 00 is the zero-shot evaluation
replay-<NN>-<task>.parquet       every synthetic image of task NN: how well it fits its caption before and after the task
forgotten-<NN>-<task>.parquet    some test images that were right before task NN and wrong after it, as small pictures
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gift_shared.atomic import atomic_path
from gift_shared.errors import DataError

FOLDER = "diagnostics"
ZERO_SHOT = "zero_shot"
VERSIONS = {"predictions": 2, "replay": 1, "forgotten": 1}  # a change of columns or of their meaning is a new one
_VERSION_KEY = b"gift_diagnostics_version"

PREDICTIONS = pa.schema(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),  # of the test image within its dataset
        pa.field("label", pa.int32(), nullable=False),
        pa.field("predicted", pa.int32(), nullable=False),  # the own label also where the same class of another dataset was
        pa.field("predicted_dataset", pa.string(), nullable=False),  # whose label it is: in the label space `known` always the own
    ]
)
PREDICTIONS_1 = PREDICTIONS.remove(4)  # of before there were label spaces

REPLAY = pa.schema(
    [
        pa.field("sample_key", pa.string(), nullable=False),
        pa.field("similarity_before", pa.float32(), nullable=False),  # cosine of image and own caption, by the weights the task began with
        pa.field("similarity_after", pa.float32(), nullable=False),  # by the weights it handed on
        pa.field("probability_before", pa.float32(), nullable=False),  # of the own caption among the task's distinct captions, fraction
        pa.field("probability_after", pa.float32(), nullable=False),
        pa.field("rank_before", pa.int32(), nullable=False),  # of the own caption among them, 1 = the most similar one
        pa.field("rank_after", pa.int32(), nullable=False),
        pa.field("divergence", pa.float32(), nullable=False),  # KL(before || after) over those captions, nats
    ]
)

FORGOTTEN = pa.schema(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("predicted_class_name", pa.string(), nullable=False),  # what the image is taken for after the task
        pa.field("picture", pa.binary(), nullable=False),  # WebP
        pa.field("num_forgotten", pa.int32(), nullable=False),  # images of this dataset, shown here or not
    ]
)

SCHEMAS = {"predictions": PREDICTIONS, "replay": REPLAY, "forgotten": FORGOTTEN}


def diagnostics_file(run: Path, kind: str, number: int, name: str) -> Path:
    """Path of one file; `number` is the one-based task, or 0 with ZERO_SHOT as its name."""
    return run / FOLDER / f"{kind}-{number:02d}-{name}.parquet"


def write_diagnostics(path: Path, kind: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write one file, whole or not at all."""
    table = pa.table(dict(columns), schema=SCHEMAS[kind]).replace_schema_metadata({_VERSION_KEY: str(VERSIONS[kind])})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_diagnostics(path: Path, kind: str) -> pa.Table:
    """Read one file, predictions of before with the column they lack. Raises DataError if it is not of this kind and version."""
    try:
        table = pq.read_table(path)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}. Delete it; the report does without.") from error
    version, columns = (table.schema.metadata or {}).get(_VERSION_KEY), table.schema.remove_metadata()
    if kind == "predictions" and version == b"1" and columns.equals(PREDICTIONS_1):
        return table.append_column(PREDICTIONS.field("predicted_dataset"), table["dataset"])
    if version != str(VERSIONS[kind]).encode() or not columns.equals(SCHEMAS[kind]):
        raise DataError(f"{path} is of version {version!r}, this program reads {VERSIONS[kind]}. Delete it; the report does without.")
    return table
