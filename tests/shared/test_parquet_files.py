"""Parquet files of the contract: what is written is read, anything else is refused by name."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_shared.errors import PlanError, ShardError
from gift_shared.parquet_files import read_index, read_output_index, read_plan, write_index, write_plan
from gift_shared.schema import INDEX_SCHEMA, PLAN_SCHEMA, SINCE_VERSION_2


def plan_rows(num_rows: int = 3) -> pa.Table:
    row = {
        "task": "cats", "caption": 'a "cat", né', "source": "world", "class_name": None, "class_index": None, "sample_seed": 2**61,
        "guidance_scale": 7.5, "denoising_steps": 50, "shard": "cats-00000",
    }  # fmt: skip
    rows = [row | {"index": index, "sample_key": f"cats-{index:06d}"} for index in range(num_rows)]
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(), {"arguments": "{}"})
    rows, metadata = read_plan(tmp_path / "p.parquet")
    assert rows.equals(plan_rows())
    assert metadata == {"arguments": "{}"}


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_plan(tmp_path / name, plan_rows(1000), {"x": "1", "y": "2"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_columns_that_others_added_are_left_out(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(), {})
    wider = pq.read_table(tmp_path / "p.parquet").append_column("note", pa.array(["x"] * 3))
    pq.write_table(wider, tmp_path / "p.parquet")
    assert read_plan(tmp_path / "p.parquet")[0].schema.names == PLAN_SCHEMA.names


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No plan at"):
        read_plan(tmp_path / "p.parquet")


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(), {})
    os.truncate(tmp_path / "p.parquet", 100)
    with pytest.raises(PlanError, match="is not a readable Parquet file, so it is no plan"):
        read_plan(tmp_path / "p.parquet")


def test_another_schema_version_is_told(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(), {})
    table = pq.read_table(tmp_path / "p.parquet").replace_schema_metadata({b"gift_schema_version": b"3"})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(PlanError, match=r"has schema version 3, this program reads versions 1 and 2\. Make the plan again"):
        read_plan(tmp_path / "p.parquet")


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(), {})
    table = pq.read_table(tmp_path / "p.parquet")
    position = table.schema.get_field_index("sample_seed")
    pq.write_table(table.set_column(position, "sample_seed", pa.array(["1", "2", "3"])), tmp_path / "p.parquet")
    with pytest.raises(PlanError, match="column 'sample_seed' should be int64, found string"):
        read_plan(tmp_path / "p.parquet")


def test_a_plan_is_no_index(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(), {})
    with pytest.raises(ShardError, match="column 'status' should be string, found None"):
        read_index(tmp_path / "p.parquet")


def test_an_unfinished_output_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"has no index.parquet: no output folder, or not finished"):
        read_output_index(tmp_path)


def test_an_index_keeps_rows_without_an_image(tmp_path: Path) -> None:
    row = plan_rows(1).to_pylist()[0] | {"status": "black", "message": "all pixels are 0", "attempts": 3, "used_seed": 7}
    write_index(tmp_path / "index.parquet", pa.Table.from_pylist([row], schema=INDEX_SCHEMA), {})
    read = read_output_index(tmp_path)[0].to_pylist()[0]
    assert (read["status"], read["image_name"], read["byte_offset"]) == ("black", None, None)


def as_version_1(path: Path) -> None:
    """The file as the first version of the schema wrote it."""
    table = pq.read_table(path).drop_columns(list(SINCE_VERSION_2))
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"gift_schema_version": b"1"}), path)


def test_a_file_of_version_1_is_read_with_nulls_for_what_it_lacks(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(), {"arguments": "{}"})
    as_version_1(tmp_path / "p.parquet")
    rows, metadata = read_plan(tmp_path / "p.parquet")
    assert rows.equals(plan_rows())
    assert rows["negative_prompt"].null_count == 3
    assert metadata == {"arguments": "{}"}


def test_a_file_of_version_2_without_its_columns_is_told(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(), {})
    pq.write_table(pq.read_table(tmp_path / "p.parquet").drop_columns(["render_width"]), tmp_path / "p.parquet")
    with pytest.raises(PlanError, match="column 'render_width' should be int32, found None"):
        read_plan(tmp_path / "p.parquet")
