"""A plan.parquet that was replaced after the folder was begun is noticed by whoever reads the folder."""

from pathlib import Path

import pytest

from gift_shared.parquet_files import read_plan, write_plan
from gift_shared.schema import PLAN_FILE

FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)


def swap_plan(out: Path) -> Path:
    """The same samples with one other caption."""
    rows, metadata = read_plan(out / PLAN_FILE)
    captions = ["another caption", *rows["caption"].to_pylist()[1:]]
    write_plan(out / PLAN_FILE, rows.set_column(rows.schema.get_field_index("caption"), rows.schema.field("caption"), [captions]), metadata)
    return out


@pytest.mark.parametrize(
    "words", [("render", *FLAT), ("status",), ("status", "--json"), ("show", "--to", "sheet.png")], ids=lambda words: words[0]
)
def test_a_swapped_plan_is_noticed(command, rendered: Path, monkeypatch, tmp_path: Path, words: tuple) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in (swap_plan(rendered) / "shards").iterdir()}
    result = command(*words, "--out", rendered)
    assert result.code == 2
    assert result.err.startswith(f"error: {rendered / PLAN_FILE} was replaced: ")
    assert "Put the plan back that this folder was begun with" in result.err
    assert {path: path.read_bytes() for path in (rendered / "shards").iterdir()} == before


def test_who_gives_the_right_plan_is_told_that_the_folders_was_replaced(command, rendered: Path, plan: Path) -> None:
    assert f"error: {swap_plan(rendered) / PLAN_FILE} was replaced" in command("render", "--out", rendered, "--plan", plan, *FLAT).err


@pytest.mark.parametrize("words", [("render", *FLAT), ("status",)], ids=["render", "status"])
def test_before_the_first_shard_the_binding_tells(command, rendered: Path, words: tuple) -> None:
    for path in (rendered / "shards").iterdir():
        path.unlink()
    result = command(*words, "--out", swap_plan(rendered))
    assert result.code == 2
    assert "render.json was written for a plan with sha256" in result.err


@pytest.mark.parametrize("words", [("render", *FLAT), ("status",)], ids=["render", "status"])
def test_in_a_folder_of_an_earlier_version_the_shards_tell(command, rendered: Path, words: tuple) -> None:
    record = rendered / "render.json"
    lines = [line for line in record.read_text().splitlines() if "plan_sha256" not in line]
    record.write_text("\n".join(lines))
    assert command(*words, "--out", rendered).code == 0
    result = command(*words, "--out", swap_plan(rendered))
    assert result.code == 2
    assert "shards/cats-00000.parquet was written for a plan with sha256" in result.err
