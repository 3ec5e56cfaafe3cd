"""Checks every byte claim of an output folder: plan, index, shards, members, digests, captions. Repairs nothing."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from gift_generate.output_folder import OutputFolder, Shard, open_output
from gift_generate.writer import TAR_BYTES, TAR_SHA256, sample_json
from gift_shared.errors import GiftError
from gift_shared.schema import INDEX_FILE, PLAN_SCHEMA, SHARD_FOLDER, Status
from gift_shared.shards import IMAGE_SUFFIXES, shard_rows, shard_tar
from gift_shared.tables import read_index

MEMBER_SUFFIXES = (*IMAGE_SUFFIXES, ".txt", ".json")  # nothing else is ever opened
MOST_MEMBER_BYTES = 256 * 1024**2  # a larger member is none of ours and is not read into memory


def verify(out: Path, on_shard: Callable[[str], Any]) -> Iterator[str]:
    """Yield one line for every fault found. Raises PlanError if the folder holds no plan to hold it against."""
    output = open_output(out)
    tables: list[pa.Table] = []
    num_missing = 0
    for shard in output.shards:
        if shard_rows(out, shard.name).is_file():
            rows, faults = _shard_faults(output, shard)
            yield from faults
            if rows is not None:
                tables.append(rows)
        else:
            num_missing += 1
        on_shard(shard.name)
    if num_missing:
        yield f"{num_missing} of {len(output.shards)} shards are not there yet; run gift-generate render again, it makes only those"
    yield from _stray_files(output)
    yield from _index_faults(output, tables, is_whole=len(tables) == len(output.shards))


def _shard_faults(output: OutputFolder, shard: Shard) -> tuple[pa.Table | None, list[str]]:
    rows_path, tar_path = shard_rows(output.path, shard.name), shard_tar(output.path, shard.name)
    try:
        rows, _ = read_index(rows_path)
    except GiftError as error:
        return None, [str(error)]
    if not rows.select(PLAN_SCHEMA.names).equals(output.plan.slice(shard.first_row, shard.num_rows)):
        return rows, [f"{rows_path} lists other samples than the plan; delete it and run gift-generate render again"]
    if not tar_path.is_file():
        return rows, [f"{tar_path} is missing; run gift-generate render again, it redoes only this shard"]
    faults = list(_tar_file_faults(tar_path, pq.read_schema(rows_path).metadata or {}))
    try:
        faults += _member_faults(tar_path, rows.to_pylist())
    except (tarfile.TarError, EOFError) as error:
        faults.append(f"{tar_path} cannot be read to its end: {error}")
    return rows, faults


def _tar_file_faults(tar_path: Path, metadata: dict[bytes, bytes]) -> Iterator[str]:
    claimed_bytes = metadata.get(TAR_BYTES.encode(), b"?").decode()
    found_bytes = str(tar_path.stat().st_size)
    if claimed_bytes != found_bytes:
        yield f"{tar_path} has {found_bytes} bytes, its rows claim {claimed_bytes}; run gift-generate render again"
        return
    with tar_path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != metadata.get(TAR_SHA256.encode(), b"?").decode():
            yield f"{tar_path} was changed after it was written: other sha256; delete {tar_path.stem}.parquet and render again"


def _member_faults(tar_path: Path, rows: list[dict[str, Any]]) -> Iterator[str]:
    expected = {
        name: (row, suffix)
        for row in rows
        if row["status"] == Status.OK
        for name, suffix in ((row["image_name"], "image"), (f"{row['sample_key']}.txt", "txt"), (f"{row['sample_key']}.json", "json"))
    }
    with tarfile.open(tar_path, mode="r:") as tar:
        for position, member in enumerate(tar):
            where = f"{tar_path}, member {position} {member.name!r}"
            if not member.isfile():
                yield f"{where} is no plain file; links, folders and devices are refused"
            elif "/" in member.name or not member.name.endswith(MEMBER_SUFFIXES):
                yield f"{where} is refused: only {', '.join(MEMBER_SUFFIXES)} beside each other are ever read"
            elif member.name not in expected:
                yield f"{where} is a stray or repeated member: no row of the shard claims it"
            else:
                yield from (f"{where}: {fault}" for fault in _content_faults(tar, member, *expected.pop(member.name)))
    for name in expected:
        yield f"{tar_path} lacks the member {name!r}"


def _content_faults(tar: tarfile.TarFile, member: tarfile.TarInfo, row: dict[str, Any], suffix: str) -> Iterator[str]:
    if member.size > MOST_MEMBER_BYTES:
        yield f"{member.size} bytes are too many for a sample"
        return
    file = tar.extractfile(member)
    assert file is not None
    content = file.read()
    if suffix == "txt" and content != row["caption"].encode():
        yield "the caption differs from the row's"
    elif suffix == "json" and not _is_same_json(content, row):
        yield "the JSON differs from the row"
    elif suffix == "image":
        if (member.offset_data, member.size) != (row["byte_offset"], row["byte_size"]):
            yield f"lies at byte {member.offset_data} with {member.size} bytes, its row claims {row['byte_offset']} and {row['byte_size']}"
        if hashlib.sha256(content).hexdigest() != row["sha256"]:
            yield "the image's sha256 differs from its row's"
        yield from _picture_faults(content, row)


def _is_same_json(content: bytes, row: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(content) == json.loads(sample_json(row)))
    except ValueError:
        return False


def _picture_faults(content: bytes, row: dict[str, Any]) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
            image.load()
            if image.size != (row["width"], row["height"]):
                yield f"the image is {image.size[0]} x {image.size[1]}, its row claims {row['width']} x {row['height']}"
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        yield f"the image does not decode: {error}"


def _stray_files(output: OutputFolder) -> Iterator[str]:
    known = {f"{shard.name}{suffix}" for shard in output.shards for suffix in (".tar", ".parquet")}
    folder = output.path / SHARD_FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in known and not path.name.startswith("."):  # hidden: a temporary of a running or killed worker
            yield f"{path} belongs to no shard of the plan"


def _index_faults(output: OutputFolder, tables: list[pa.Table], *, is_whole: bool) -> Iterator[str]:
    path = output.path / INDEX_FILE
    if not path.is_file():
        if is_whole:
            yield f"{path} is missing though all shards are there; run gift-generate render again, it writes only the index"
        return
    try:
        index, _ = read_index(path)
    except GiftError as error:
        yield str(error)
        return
    if not is_whole:
        yield f"{path} exists though not all shards do"
    elif not index.equals(pa.concat_tables(tables)):
        yield f"{path} differs from the rows of its shards; delete it and run gift-generate render again"
