"""Rendering as a whole: what lies in the folder, the same bytes however it came about, and refusal to mix runs."""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from gift_generate.output.folder import OutputFolder
from gift_shared.parquet_files import read_output_index, read_plan
from gift_shared.schema import INDEX_SCHEMA, PLAN_SCHEMA, SINCE_VERSION_2
from gift_shared.shards import read_image_bytes

FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)


def test_plain_webdataset_reads_the_shards(rendered: Path) -> None:
    shards = sorted(str(path) for path in (rendered / "shards").glob("cats-*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    rows = [row for row in read_output_index(rendered)[0].to_pylist() if row["task"] == "cats"]
    assert [sample["__key__"] for sample in samples] == [row["sample_key"] for row in rows]
    assert [sample["txt"] for sample in samples] == [row["caption"] for row in rows]
    assert [sample["json"]["sample_seed"] for sample in samples] == [row["sample_seed"] for row in rows]
    assert {sample["jpg"].size for sample in samples} == {(16, 16)}


def test_the_index_locates_every_image(rendered: Path) -> None:
    for row in read_output_index(rendered)[0].to_pylist():
        content = read_image_bytes(rendered, row["shard"], row["byte_offset"], row["byte_size"], row["sha256"])
        assert Image.open(io.BytesIO(content)).size == (row["width"], row["height"])


def test_the_index_holds_the_plan_in_its_order(rendered: Path, plan: Path) -> None:
    index, metadata = read_output_index(rendered)
    table, plan_metadata = read_plan(plan)
    assert index.schema.names == INDEX_SCHEMA.names
    assert index.select(PLAN_SCHEMA.names).equals(table)
    assert metadata["arguments"] == plan_metadata["arguments"]
    assert metadata["kind"] == "per-task"


def test_tar_headers_say_nothing_of_when_where_or_by_whom(rendered: Path) -> None:
    for path in (rendered / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        keys = [member.name.partition(".")[0] for member in members[::3]]
        assert keys == sorted(keys)
        assert [member.name.partition(".")[2] for member in members[:3]] == ["jpg", "txt", "json"]


def test_two_renders_of_a_plan_are_the_same_bytes(command, content, plan: Path, rendered: Path, tmp_path: Path) -> None:
    assert command("render", "--plan", plan, "--out", tmp_path / "again", *FLAT).code == 0
    assert content(tmp_path / "again") == content(rendered)


def test_three_workers_give_the_bytes_of_one(command, content, plan: Path, rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "workers"
    for rank in (2, 0, 1):
        assert command("render", "--plan", plan, "--out", out, *FLAT, "--rank", rank, "--world-size", 3).code == 0
    assert content(out) == content(rendered)


def test_a_finished_folder_has_nothing_left_to_do(command, rendered: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (rendered / "shards").iterdir()}
    result = command("render", "--out", rendered, *FLAT)
    assert result.code == 0
    assert "nothing left to do" in result.out
    assert {path: path.stat().st_mtime_ns for path in (rendered / "shards").iterdir()} == before


@pytest.mark.parametrize("damage", ["tar lost", "tar cut short", "rows lost", "rows cut short", "index lost"])
def test_only_what_is_damaged_is_rendered_again(command, content, rendered: Path, damage: str) -> None:
    before = content(rendered)
    tar, rows = rendered / "shards" / "cats-00001.tar", rendered / "shards" / "cats-00001.parquet"
    if damage.endswith("lost"):
        {"tar": tar, "rows": rows, "index": rendered / "index.parquet"}[damage.split()[0]].unlink()
    else:
        os.truncate(tar if damage.startswith("tar") else rows, 700)
    untouched = rendered / "shards" / "cars-00000.tar"
    written = untouched.stat().st_mtime_ns
    assert command("render", "--out", rendered, *FLAT).code == 0
    assert content(rendered) == before
    assert untouched.stat().st_mtime_ns == written


def test_an_index_goes_before_a_shard_is_made_again(command, rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_: OutputFolder) -> None:
        raise KeyboardInterrupt

    (rendered / "shards" / "cats-00001.parquet").unlink()
    monkeypatch.setattr(OutputFolder, "write_index", die)
    with contextlib.suppress(KeyboardInterrupt):
        command("render", "--out", rendered, *FLAT)
    assert (rendered / "shards" / "cats-00001.parquet").is_file()
    assert not (rendered / "index.parquet").exists()


def test_an_index_that_is_older_than_a_shard_is_written_again(command, content, rendered: Path) -> None:
    before = content(rendered)
    (rendered / "index.parquet").write_bytes(b"of what the shards held before")
    os.utime(rendered / "index.parquet", ns=(0, 0))
    assert "nothing left to do" in command("render", "--out", rendered, *FLAT).out
    assert content(rendered) == before


def test_a_folder_with_another_plan_is_refused(command, content, manifests: Path, rendered: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    command("plan", "--out", other, "--manifests", manifests, "--order", "tiny", "--images-per-task", 10, "--seed", 7)
    before = content(rendered)
    result = command("render", "--plan", other, "--out", rendered, *FLAT)
    assert result.code == 2
    assert "holds images of another plan" in result.err
    assert content(rendered) == before
    for path in (rendered / "shards").glob("*.parquet"):
        path.unlink()
    assert "was begun with another plan" in command("render", "--plan", other, "--out", rendered, *FLAT).err


def test_a_folder_of_schema_version_1_goes_on_with_its_plan_made_again(command, content, plan: Path, rendered: Path) -> None:
    before = content(rendered)
    known = {b"gift_schema_version": b"1"}
    for path in (rendered / "plan.parquet", *sorted((rendered / "shards").glob("*.parquet"))):
        table = pq.read_table(path).drop_columns(list(SINCE_VERSION_2))
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **known}), path)
        known.setdefault(b"plan_sha256", hashlib.sha256(path.read_bytes()).hexdigest().encode())  # of the plan, which comes first
    record = json.loads((rendered / "render.json").read_text())
    (rendered / "render.json").write_text(json.dumps({name: record[name] for name in ("settings", "machine")}))
    (rendered / "shards" / "cats-00001.parquet").unlink()
    result = command("render", "--out", rendered, "--plan", plan, *FLAT)
    assert result.code == 0, result.err
    assert command("verify", "--out", rendered).code == 0
    assert read_output_index(rendered)[0].select(PLAN_SCHEMA.names).equals(read_plan(plan)[0])
    tars = {name for name in before if name.endswith(".tar")}
    assert {name: content(rendered)[name] for name in tars} == {name: before[name] for name in tars}


def test_a_folder_with_other_settings_is_refused_by_name(command, rendered: Path) -> None:
    result = command("render", "--out", rendered, *FLAT, "--jpeg-quality", 95)
    assert result.code == 2
    assert "made with quality = 75, this command says 95" in result.err


def test_a_folder_of_another_model_is_refused_by_the_model_first(command, rendered: Path) -> None:
    result = command("render", "--out", rendered, "--model", "mini-drawings", "--max-attempts", 1)
    assert "made with model = 'flat-color', this command says 'mini-drawings'" in result.err


def test_a_run_folder_of_the_trainer_is_refused(command, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    result = command("render", "--plan", plan, "--out", tmp_path, *FLAT)
    assert result.code == 2
    assert "is a run folder of gift-train" in result.err


def test_a_folder_without_a_plan_needs_one(command, tmp_path: Path) -> None:
    result = command("render", "--out", tmp_path / "empty", *FLAT)
    assert result.code == 2
    assert "has no plan.parquet to go on with: give --plan" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image-format", "jpge"), "Unknown image format 'jpge'. Did you mean 'jpg'?"),
        (("--image-format", "webp", "--width", 20_000), "--image-format webp holds at most 16383 pixels a side, found 20000. Give png."),
        (("--jpeg-quality", 0), "--jpeg-quality must be between 1 and 100"),
        (("--max-attempts", 0), "--max-attempts must be at least 1"),
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--threads", 0), "--threads must be at least 1"),
        (("--dtype", "float61"), "Unknown dtype 'float61'. Did you mean 'float16'?"),
        (("--device", "gpu"), "Unknown device 'gpu'."),
        (("--height", 12), "must be multiples of 8 pixels, found 12"),
        (("--rank", 3), "--rank and --world-size belong together"),
        (("--rank", 3, "--world-size", 3), "expected 0 to 2"),
    ],
)
def test_wrong_settings_are_one_line_and_touch_nothing(command, plan: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    result = command("render", "--plan", plan, "--out", tmp_path / "out", "--model", "flat-color", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_other_image_formats_are_read_by_webdataset_too(command, plan: Path, tmp_path: Path, image_format: str) -> None:
    out = tmp_path / "out"
    assert command("render", "--plan", plan, "--out", out, *FLAT, "--image-format", image_format).code == 0
    sample = next(iter(webdataset.WebDataset(str(out / "shards" / "cats-00000.tar"), shardshuffle=False).decode("pil")))
    assert sample[image_format].size == (16, 16)
    assert command("verify", "--out", out).code == 0


def test_a_file_or_a_folder_of_other_things_is_refused_before_a_model_is_loaded(command, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    for out in (plan, tmp_path / "thesis"):
        result = command("render", "--plan", plan, "--out", out, *FLAT)
        assert result.code == 2
        assert (
            result.err == f"error: --out {out} exists and is no output folder of gift-generate (no plan.parquet). Choose another --out.\n"
        )
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_another_plan_is_refused_before_a_model_is_loaded(command, manifests: Path, rendered: Path, tmp_path: Path) -> None:
    command("plan", "--order", "tiny", "--manifests", manifests, "--images-per-task", 3, "--out", tmp_path / "other.parquet")
    result = command("render", "--plan", tmp_path / "other.parquet", "--out", rendered, *FLAT)
    assert result.err.startswith(f"error: {rendered} holds images of another plan")  # and no "loading" before it
