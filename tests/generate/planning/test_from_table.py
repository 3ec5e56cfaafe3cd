"""plan --from: rows that another program decided are kept, what they lack is filled by our rules, what cannot be is refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_generate.planning import from_table
from gift_shared import keys
from gift_shared.parquet_files import read_plan
from gift_shared.schema import PLAN_SCHEMA


def planned(command, table: Path, *words: object) -> list[dict]:
    out = table.with_name("planned.parquet")
    result = command("plan", "--from", table, "--out", out, *words)
    assert result.code == 0, result.err
    return read_plan(out)[0].to_pylist()


def test_captions_are_all_that_is_needed(command, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text('caption\n"a dog, ""Rex"""\n a\u200b cat\n')
    rows = planned(command, tmp_path / "mine.csv", "--seed", 7, "--steps", 20, "--guidance-scale", 5)
    assert rows == [
        {
            "task": "captions", "index": index, "sample_key": key, "caption": caption, "source": "file:mine", "class_name": None,
            "class_index": None, "sample_seed": keys.hashed_seed(7, key), "guidance_scale": 5.0, "denoising_steps": 20,
            "shard": "captions-00000", "negative_prompt": None, "render_height": None, "render_width": None,
        }
        for index, (key, caption) in enumerate([("captions-0000-00000", 'a dog, "Rex"'), ("captions-0000-00001", "a cat")])
    ]  # fmt: skip


COLUMNS = {
    "task": ["cats", "cars", "cats"],
    "index": [3, None, 4],
    "sample_key": ["cats-b", None, "cats-a"],
    "caption": ["one", "two", "three"],
    "class_name": ["tabby", None, None],
    "class_index": [0, None, None],
    "sample_seed": [2**62, 5, None],
    "guidance_scale": [None, 1.5, 0.0],
    "denoising_steps": [4, None, 50],
    "negative_prompt": ["blur", None, None],
    "render_height": [512, None, 64],
    "render_width": [768, None, 64],
}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_every_column_may_be_given_and_any_value_may_be_missing(command, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"mine.{kind}"
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]
    if kind == "parquet":
        pq.write_table(pa.table(COLUMNS), path)
    elif kind == "csv":
        lines = [",".join(COLUMNS), *(",".join("" if value is None else str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    expected = [
        rows[2] | {"sample_seed": keys.hashed_seed(42, "cats-a"), "shard": "cats-00000"},  # rows of a task together, by key
        rows[0] | {"guidance_scale": 7.5, "shard": "cats-00000"},
        rows[1] | {"index": 0, "sample_key": "cars-0000-00000", "denoising_steps": 50, "shard": "cars-00000"},
    ]
    assert planned(command, path) == [{"source": "file:mine", **row} for row in expected]


def test_a_plan_of_ours_comes_back_as_it_was(command, plan: Path, tmp_path: Path) -> None:
    table = tmp_path / "ours.parquet"
    table.write_bytes(plan.read_bytes())
    assert planned(command, table) == read_plan(plan)[0].to_pylist()


def test_columns_that_are_none_of_a_plan_are_told(command, tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("caption\turl\tscore\na dog\thttp://x\t3\n")
    result = command("plan", "--from", tmp_path / "mine.tsv", "--out", tmp_path / "p.parquet")
    assert "columns url, score passed over" in result.out
    assert read_plan(tmp_path / "p.parquet")[0].schema.names == PLAN_SCHEMA.names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n1\n", "expected a column caption, found a"),
        ("caption\n", "holds no row"),
        ("caption,n\na,1\n,2\n", "row 2: caption is empty"),
        ("caption,negative_promt\na,b\n", "column 'negative_promt' is none of a plan. Did you mean 'negative_prompt'?"),
        ("caption,sample_seed\na,1\nb,-5\n", f"row 2: sample_seed must be from 0 to {2**63 - 1}"),
        ("caption,sample_seed\na,99999999999999999999\n", "column 'sample_seed' should be int64"),
        ("caption,denoising_steps\na,0\n", "row 1: denoising_steps must be at least 1"),
        ("caption,denoising_steps\na,4.5\n", "column 'denoising_steps' should be int32"),
        ("caption,guidance_scale\na,nan\n", "row 1: guidance_scale must be at least 0"),
        ("caption,render_height\na,512\n", "row 1: render_height and render_width must be given together"),
        ("caption,render_height,render_width\na,512,100\n", "render_width must be a multiple of 8 up to 65496 pixels, found 100"),
        ("caption,class_name\na,tabby\n", "row 1: class_name and class_index must be given together"),
        ("caption,sample_key\na,../x\n", "sample_key '../x' must match"),
        ("caption,sample_key\na,x\nb,x\n", "a sample key stands twice"),
        ("caption,shard\na,one\nb,\n", "row 2: shard is missing. Give it in every row, or in none"),
        ('caption\n"a\n', "line 2: no CSV: unexpected end of data"),
        ("caption,x\na\n", "line 2: expected 2 columns as in the first line, found 1"),
        ("caption,caption\na,b\n", "has two columns of one name"),
    ],
)
def test_what_no_plan_can_have_is_one_line_and_writes_nothing(command, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(content)
    result = command("plan", "--from", tmp_path / "mine.csv", "--out", tmp_path / "p.parquet")
    assert result.code == 2
    assert message in result.err
    assert "mine.csv" in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "p.parquet").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--order", "mini"], "--order does not apply with --from, whose rows say it. Leave it out."),
        (["--kind", "pool"], "--kind does not apply with --from"),
        (["--workers", 2], "--workers does not apply to a table with a column shard"),
    ],
)
def test_options_that_the_rows_decide_are_refused(command, tmp_path: Path, words: list, message: str) -> None:
    (tmp_path / "mine.csv").write_text("caption,shard\na dog,one\n")
    result = command("plan", "--from", tmp_path / "mine.csv", "--out", tmp_path / "p.parquet", *words)
    assert (result.code, message in result.err) == (2, True), result.err


def test_such_a_plan_is_rendered(command, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("task,caption\nb,one\na,two\nb,three\n")
    planned(command, tmp_path / "mine.csv", "--images-per-shard", 1)
    result = command("render", "--plan", tmp_path / "planned.parquet", "--out", tmp_path / "out", "--model", "flat-color")
    assert result.code == 0, result.err
    assert sorted(path.stem for path in (tmp_path / "out/shards").glob("*.tar")) == ["a-00000", "b-00000", "b-00001"]
    assert command("verify", "--out", tmp_path / "out").code == 0


def test_how_many_rows_are_filled_at_once_changes_nothing(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"task": ("cats", "cars", "dogs")[number % 3], "caption": f"number {number}"} for number in range(20)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = planned(command, tmp_path / "mine.jsonl")
    assert [row["index"] for row in whole if row["task"] == "cats"] == list(range(7))
    monkeypatch.setattr(from_table, "ROWS_AT_ONCE", 3)
    assert planned(command, tmp_path / "mine.jsonl") == whole
