"""Parquet: plans, indexes, captions, diagnostics. Bytes, types, columns and values that nobody wrote."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import NAMES, NUMBERS, damages, fuzz, reads_or_tells
from hypothesis import given
from hypothesis import strategies as st

from gift_generate.planning.plan_check import check_plan, shard_slices
from gift_shared.caption_files import read_captions
from gift_shared.manifests import OrderManifest
from gift_shared.parquet_files import open_index, read_index, read_plan, write_index, write_plan
from gift_shared.schema import INDEX_SCHEMA, SCHEMA_VERSION, VERSION_KEY
from gift_shared.shards import require_images
from gift_train.data.selection import ReplaySelection, select_places
from gift_train.records.diagnostics.files import SCHEMAS, read_diagnostics, write_diagnostics

ROW = {
    "task": "red", "index": 0, "sample_key": "red-000000", "caption": "a fox.", "source": "words", "class_name": "fox", "class_index": 0,
    "sample_seed": 1, "guidance_scale": 7.5, "denoising_steps": 50, "shard": "red-00000",
    "negative_prompt": "blur", "render_height": 64, "render_width": 64, "status": "ok", "message": "", "attempts": 1,
    "used_seed": 1, "width": 8, "height": 8, "image_name": "red-000000.png", "byte_offset": 512, "byte_size": 4, "sha256": "0" * 64,
}  # fmt: skip
ROWS = [ROW | {"index": index, "sample_key": f"red-{index:06d}", "image_name": f"red-{index:06d}.png"} for index in range(3)]
ORDER = OrderManifest(name="o", display_name="O", pretraining_source="words", tasks=("red", "green"), recipes="mini")
TYPES = st.sampled_from(
    [pa.string(), pa.int64(), pa.int32(), pa.float32(), pa.binary(), pa.large_string(), pa.bool_(), pa.null(), pa.list_(pa.int8()),
     pa.dictionary(pa.int8(), pa.string()), pa.timestamp("us"), pa.decimal128(38, 2)]
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::gift_train.data.selection.ReplayShortage")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables")
    (path / "shards").mkdir()
    (path / "shards/red-00000.tar").write_bytes(bytes(1024))
    return path


def use_index(folder, path):
    """What training does with an index: select, then read the images."""
    with open_index(path) as index:
        chosen = select_places(index, str(path), ORDER, ReplaySelection(num_images=2, captions="all", seed=0), ORDER.tasks[:1])
        require_images(folder, [index.take(places) for places in chosen.values()])


def use_plan(path):
    rows, _ = read_plan(path)
    check_plan(rows, path)
    assert shard_slices(rows)


@fuzz(60)
@given(damage=damages(), is_plan=st.booleans())
def test_damaged_bytes_of_a_plan_or_an_index_are_told(folder, damage, is_plan):
    path = folder / "index.parquet"
    (write_plan if is_plan else write_index)(path, pa.Table.from_pylist(ROWS, schema=INDEX_SCHEMA), {})
    path.write_bytes(damage(path.read_bytes()))
    reads_or_tells(lambda: use_plan(path) if is_plan else use_index(folder, path), path, folder / "shards/red-00000.tar")


@st.composite
def tables(draw):
    """An index of three rows, some values of which are anything their column can hold, some columns of another type, or gone."""
    columns = {name: [row[name] for row in ROWS] for name in INDEX_SCHEMA.names}
    types = {field.name: field.type for field in INDEX_SCHEMA}
    for name in draw(st.lists(st.sampled_from(INDEX_SCHEMA.names), max_size=3)):
        hostile = NAMES if pa.types.is_string(types[name]) else NUMBERS.filter(lambda number: abs(number) < 2**62)
        columns[name][draw(st.integers(0, 2))] = draw(st.one_of(st.none(), hostile))
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values, types[name])
        except (pa.ArrowException, OverflowError, TypeError):
            arrays[name] = pa.array([None] * 3, types[name])
    for name in draw(st.lists(st.sampled_from(INDEX_SCHEMA.names), max_size=1)):
        if draw(st.booleans()):
            del arrays[name]
        else:
            arrays[name] = pa.nulls(3, draw(TYPES))
    rows = draw(st.sampled_from([3, 3, 3, 1, 0]))
    return pa.table(arrays).slice(0, rows).replace_schema_metadata({VERSION_KEY: str(SCHEMA_VERSION)})


@fuzz(120)
@given(table=tables(), is_plan=st.booleans())
def test_a_plan_or_an_index_that_claims_anything_is_told(folder, table, is_plan):
    path = folder / "index.parquet"
    pq.write_table(table, path)
    reads_or_tells(lambda: use_plan(path) if is_plan else use_index(folder, path), path, folder / "shards/red-00000.tar")


@fuzz(20)
@given(damage=damages(), kind=TYPES)
def test_a_damaged_caption_table_is_told(folder, damage, kind):
    path = folder / "captions.parquet"
    column = pa.nulls(2, kind) if kind != pa.string() else pa.array(["a fox.", "an ox."])
    pq.write_table(pa.table({"caption": column}), path)
    reads_or_tells(lambda: read_captions(path), path)
    path.write_bytes(damage(path.read_bytes()))
    reads_or_tells(lambda: read_captions(path), path)


@fuzz(20)
@given(damage=damages(), kind=st.sampled_from(sorted(SCHEMAS)))
def test_damaged_diagnostics_are_told(folder, damage, kind):
    path = folder / "diagnostics.parquet"
    columns = {field.name: pa.array([1, 2]).cast(field.type) for field in SCHEMAS[kind] if field.type != pa.binary()}
    columns |= {field.name: [b"x", b"y"] for field in SCHEMAS[kind] if field.type == pa.binary()}
    write_diagnostics(path, kind, columns)
    path.write_bytes(damage(path.read_bytes()))
    reads_or_tells(lambda: read_diagnostics(path, kind).to_pylist(), path)


def test_an_index_whose_shard_lies_elsewhere_is_refused(folder):
    path = folder / "index.parquet"
    write_index(path, pa.Table.from_pylist([ROW | {"shard": "../../etc/passwd"}], schema=INDEX_SCHEMA), {})
    assert not reads_or_tells(lambda: read_index(path), path)
    write_index(path, pa.Table.from_pylist([ROW | {"image_name": "../../escaped.png"}], schema=INDEX_SCHEMA), {})
    assert not reads_or_tells(lambda: read_index(path), path)
