"""Parquet files of the contract: what is written is read, anything else is refused by name."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_shared import parquet_files
from gift_shared.errors import PlanError, ShardError
from gift_shared.parquet_files import open_plan, read_index, read_output_index, read_plan, write_index, write_index_parts, write_plan
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


@pytest.fixture
def in_groups_of_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of few rows in many groups, as those of millions are."""
    monkeypatch.setattr(parquet_files, "ROWS_AT_ONCE", 4)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...]]]:
    """Every row group that is read, with the columns that are."""
    found: list[tuple[int, tuple[str, ...]]] = []
    read = pq.ParquetFile.read_row_group

    def noted(file: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        found.append((group, tuple(columns)))
        return read(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    return found


@pytest.mark.usefixtures("in_groups_of_4")
def test_an_index_written_in_parts_is_the_same_file(tmp_path: Path) -> None:
    rows = [row | {"status": "black", "message": "", "attempts": 1, "used_seed": 7} for row in plan_rows(23).to_pylist()]
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    write_index(tmp_path / "whole", table, {"x": "1"})
    write_index_parts(tmp_path / "parts", (table.slice(start, 5) for start in range(0, 23, 5)), {"x": "1"})
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert pq.read_metadata(tmp_path / "parts").num_row_groups == 6
    assert read_index(tmp_path / "parts")[0].equals(table)


@pytest.mark.usefixtures("in_groups_of_4")
def test_rows_by_number_are_read_from_their_groups_alone(tmp_path: Path, reads: list[tuple[int, tuple[str, ...]]]) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(23), {})
    with open_plan(tmp_path / "p.parquet") as file:
        assert file.take([21, 2, 21, 0])["index"].to_pylist() == [21, 2, 21, 0]
        assert [group for group, _ in reads] == [0, 5]
        assert file.slice(6, 3).equals(plan_rows(23).slice(6, 3))
        assert file.slice(9, 2).equals(plan_rows(23).slice(9, 2))
        assert [group for group, _ in reads] == [0, 5, 1, 2]  # rows that follow lie in what was read last
        assert file.slice(20, 99).equals(plan_rows(23).slice(20))
        assert file.slice(23, 1).equals(plan_rows(0))


@pytest.mark.usefixtures("in_groups_of_4")
def test_columns_that_are_not_wanted_are_not_read(tmp_path: Path, reads: list[tuple[int, tuple[str, ...]]]) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(9), {})
    as_version_1(tmp_path / "p.parquet")
    with open_plan(tmp_path / "p.parquet") as file:
        batches = list(file.batches(["task", "render_width"]))
    assert pa.concat_tables(batches).equals(plan_rows(9).select(["task", "render_width"]))
    assert [len(batch) for batch in batches] == [4, 4, 1]  # of the one group that another program wrote
    assert reads == [(0, ("task",))]


@pytest.mark.parametrize(
    ("name", "told"), [("MOST_ROWS", "claims 9 rows, at most 8 are read"), ("MOST_ROWS_OF_A_GROUP", "has a row group of 9 rows, at most 8")]
)
def test_more_rows_than_can_be_are_told_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(9), {})
    monkeypatch.setattr(parquet_files, name, 8)
    with pytest.raises(PlanError, match=told):
        open_plan(tmp_path / "p.parquet")


def test_a_file_that_is_open_stays_what_it_was(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.parquet", plan_rows(9), {})
    with open_plan(tmp_path / "p.parquet") as file:
        write_plan(tmp_path / "p.parquet", plan_rows(3), {})
        assert file.read().equals(plan_rows(9))
