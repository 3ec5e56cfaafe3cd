"""verify: every way in which a folder can lie is named, and a true one passes."""

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from gift_generate.output.shard_writer import TAR_BYTES, TAR_SHA256
from gift_shared.parquet_files import read_index, read_plan, write_index, write_plan
from gift_shared.schema import INDEX_SCHEMA, PLAN_SCHEMA

Members = list[tuple[tarfile.TarInfo, bytes]]


def rewrite_tar(out: Path, shard: str, change: Callable[[Members], None]) -> None:
    """Edit a tar as someone would who then puts the right size and digest into the rows' metadata."""
    path = out / "shards" / f"{shard}.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            member.size = len(content) if member.isfile() else 0
            tar.addfile(member, io.BytesIO(content) if member.isfile() else None)
    restamp(out, shard)


def restamp(out: Path, shard: str) -> None:
    content = (out / "shards" / f"{shard}.tar").read_bytes()
    rows, metadata = read_index(out / "shards" / f"{shard}.parquet")
    stamps = {TAR_BYTES: str(len(content)), TAR_SHA256: hashlib.sha256(content).hexdigest()}
    write_index(out / "shards" / f"{shard}.parquet", rows, metadata | stamps)


def rename(position: int, name: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[position][0].name = name

    return change


def replace(position: int, content: bytes) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[position] = (members[position][0], content)

    return change


def add(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        members.append((member, content))

    return change


def other_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_true_folder_passes(command, rendered: Path) -> None:
    result = command("verify", "--out", rendered)
    assert (result.code, result.out) == (0, f"{rendered}: every byte claim holds\n")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (replace(0, other_picture()), "the image's sha256 differs from its row's"),
        (replace(0, b"not a picture"), "the image does not decode"),
        (replace(1, b"a photo of another thing."), "'cats-000000.txt': the caption differs from the row's"),
        (replace(2, b"{}"), "'cats-000000.json': the JSON differs from the row"),
        (replace(2, b"\xff"), "'cats-000000.json': the JSON differs from the row"),
        (replace(1, b"x" * 2000), "lies at byte"),
        (rename(0, "../../cats-000000.jpg"), "member 0 '../../cats-000000.jpg' is refused"),
        (rename(0, "/etc/cats-000000.jpg"), "is refused: only .jpg, .png, .webp, .txt, .json beside each other are ever read"),
        (rename(0, "cats-000000.pkl"), "lacks the member 'cats-000000.jpg'"),
        (add("cats-000009.pyd", pickle.dumps({})), "'cats-000009.pyd' is refused"),
        (add("cats-000009.txt", b"more"), "is a stray or repeated member"),
        (add("cats-000000.txt", b"more"), "is a stray or repeated member"),
        (add("cats-000009.txt", kind=tarfile.SYMTYPE), "is no plain file; links, folders and devices are refused"),
        (add("cats-000009.txt", kind=tarfile.LNKTYPE), "is no plain file; links, folders and devices are refused"),
        (list.clear, "lacks the member 'cats-000000.jpg'"),
    ],
)
def test_an_edited_tar_is_told_even_under_a_right_digest(command, rendered: Path, change: Callable[[Members], None], fault: str) -> None:
    rewrite_tar(rendered, "cats-00000", change)
    result = command("verify", "--out", rendered)
    assert result.code == 1
    assert fault in result.out
    assert "fault" in result.out.splitlines()[-1]


def edit_json(**values: object) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[2] = (members[2][0], json.dumps(json.loads(members[2][1]) | values).encode())

    return change


def test_a_null_in_the_json_says_what_a_missing_key_says(command, rendered: Path) -> None:
    """Tars of earlier versions hold `"class_name": null` for a caption of a file."""
    for path in (rendered / "shards/cats-00000.parquet", rendered / "index.parquet", rendered / "plan.parquet"):
        write, read, schema = (
            (write_plan, read_plan, PLAN_SCHEMA) if path.name == "plan.parquet" else (write_index, read_index, INDEX_SCHEMA)
        )
        rows, metadata = read(path)
        nameless = [row | {"class_name": None} if row["sample_key"] == "cats-000000" else row for row in rows.to_pylist()]
        write(path, pa.Table.from_pylist(nameless, schema=schema), metadata)
    (rendered / "README.md").unlink()
    rewrite_tar(rendered, "cats-00000", edit_json(class_name=None))
    assert command("verify", "--out", rendered).out == f"{rendered}: every byte claim holds\n"


def test_a_null_in_place_of_a_value_is_told(command, rendered: Path) -> None:
    rewrite_tar(rendered, "cats-00000", edit_json(class_name=None))
    assert "'cats-000000.json': the JSON differs from the row" in command("verify", "--out", rendered).out


def test_a_changed_byte_is_told(command, rendered: Path) -> None:
    path = rendered / "shards" / "cars-00001.tar"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the padding: no member holds it
    path.write_bytes(content)
    result = command("verify", "--out", rendered)
    assert result.code == 1
    assert "cars-00001.tar was changed after it was written: other sha256" in result.out


def test_a_shard_cut_short_is_told(command, rendered: Path) -> None:
    os.truncate(rendered / "shards" / "cars-00001.tar", 1500)
    result = command("verify", "--out", rendered)
    assert result.code == 1
    assert "cars-00001.tar has 1500 bytes, its rows claim" in result.out


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("shards/cats-00000.tar", "cats-00000.tar is missing; run gift-generate render again, it redoes only this shard"),
        ("shards/cats-00000.parquet", "1 of 6 shards are not there yet"),
        ("index.parquet", "index.parquet is missing though all shards are there"),
    ],
)
def test_a_missing_file_is_told(command, rendered: Path, name: str, fault: str) -> None:
    (rendered / name).unlink()
    result = command("verify", "--out", rendered)
    assert result.code == 1
    assert fault in result.out


def test_rows_of_other_samples_are_told(command, rendered: Path) -> None:
    path = rendered / "shards" / "cats-00000.parquet"
    rows, metadata = read_index(path)
    changed = [row | {"caption": "another"} for row in rows.to_pylist()]
    write_index(path, pa.Table.from_pylist(changed, schema=INDEX_SCHEMA), metadata)
    result = command("verify", "--out", rendered)
    assert result.code == 1
    assert "cats-00000.parquet lists other samples than the plan" in result.out
    assert "index.parquet differs from the rows of its shards" in result.out


def test_a_file_of_no_shard_is_told_but_a_temporary_is_not(command, rendered: Path) -> None:
    (rendered / "shards" / ".cats-00000.tar.123.tmp").write_bytes(b"half")
    assert command("verify", "--out", rendered).code == 0
    (rendered / "shards" / "dogs-00000.tar").write_bytes(b"")
    result = command("verify", "--out", rendered)
    assert result.code == 1
    assert "dogs-00000.tar belongs to no shard of the plan" in result.out


def test_no_output_folder_is_an_error_and_not_a_fault(command, tmp_path: Path) -> None:
    result = command("verify", "--out", tmp_path)
    assert result.code == 2
    assert "has no plan.parquet, so it is no output folder of gift-generate" in result.err
