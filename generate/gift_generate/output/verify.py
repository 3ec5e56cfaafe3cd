"""Checks every byte claim of an output folder: plan, index, scores, shards, members, digests, captions. Repairs nothing."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gift_generate.output.dataset_card import card_fault
from gift_generate.output.folder import OutputFolder, Shard, open_output
from gift_generate.output.shard_writer import sample_json
from gift_shared.decoding import SHARD_FORMATS, UNDECODABLE
from gift_shared.errors import GiftError, first_line
from gift_shared.parquet_files import RowFile, open_index, read_index
from gift_shared.schema import INDEX_FILE, PLAN_SCHEMA, SHARD_FOLDER, TAR_BYTES, TAR_SHA256, SampleStatus
from gift_shared.scores import score_faults
from gift_shared.shards import IMAGE_SUFFIXES, shard_rows, shard_tar
from gift_shared.tar_members import tar_headers

MEMBER_SUFFIXES = (*IMAGE_SUFFIXES, ".txt", ".json")  # nothing else is ever opened
MOST_MEMBER_BYTES = 256 * 1024**2  # a larger member is none of ours and is not read into memory


def verify(out: Path, on_shard: Callable[[str], Any]) -> Iterator[str]:
    """Yield one line for every fault found. Raises PlanError if the folder holds no plan to hold it against."""
    output = open_output(out)
    index = _IndexCheck(output)
    num_missing = num_unreadable = 0
    for shard in output.shards:
        if shard_rows(out, shard.name).is_file():
            rows, faults = _shard_faults(output, shard)
            yield from faults
            num_unreadable += rows is None
            if rows is not None:
                index.compare(shard, rows)
        else:
            num_missing += 1
        on_shard(shard.name)
    if num_missing:
        yield f"{num_missing} of {len(output.shards)} shards are not there yet; run gift-generate render again, it makes only those"
    yield from _stray_files(output)
    yield from index.faults(is_whole=num_missing + num_unreadable == 0)


class _IndexCheck:
    """Holds the rows of one shard after the other against the folder's index, so that they are never in memory together."""

    def __init__(self, output: OutputFolder) -> None:
        self._path = output.path / INDEX_FILE
        self._index: RowFile | None = None
        self._error = ""
        self._agrees = True
        if self._path.is_file():
            try:
                self._index = open_index(self._path)
            except GiftError as error:
                self._error = str(error)
            else:
                self._agrees = self._index.num_rows == output.plan.num_rows

    def compare(self, shard: Shard, rows: pa.Table) -> None:
        """The rows of a shard stand in the index where they stand in the plan."""
        if self._index is not None and self._agrees and not self._error:
            try:
                self._agrees = self._index.slice(shard.first_row, shard.num_rows).equals(rows)
            except GiftError as error:
                self._error = str(error)

    def faults(self, *, is_whole: bool) -> Iterator[str]:
        """What is wrong with the index, `is_whole` saying whether every shard is there and readable."""
        if self._error:
            yield self._error
        elif self._index is None and is_whole:
            yield f"{self._path} is missing though all shards are there; run gift-generate render again, it writes only the index"
        elif self._index is not None and not is_whole:
            yield f"{self._path} exists though not all shards do"
        elif not self._agrees:
            yield f"{self._path} differs from the rows of its shards; delete it and run gift-generate render again"
        elif self._index is not None:
            if (fault := card_fault(self._path.parent)) is not None:
                yield fault
            yield from score_faults(self._path.parent)


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
    except tarfile.TarError as error:
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
        if row["status"] == SampleStatus.OK
        for name, suffix in ((row["image_name"], "image"), (f"{row['sample_key']}.txt", "txt"), (f"{row['sample_key']}.json", "json"))
    }
    with tar_path.open("rb") as tar:
        for position, member in enumerate(tar_headers(tar_path)):
            where = f"{tar_path}, member {position} {member.name!r}"
            if not member.isreg() or member.issparse():
                yield f"{where} is no plain file; links, folders and devices are refused"
            elif "/" in member.name or not member.name.endswith(MEMBER_SUFFIXES):
                yield f"{where} is refused: only {', '.join(MEMBER_SUFFIXES)} beside each other are ever read"
            elif member.name not in expected:
                yield f"{where} is a stray or repeated member: no row of the shard claims it"
            else:
                yield from (f"{where}: {fault}" for fault in _content_faults(tar, member, *expected.pop(member.name)))
    for name in expected:
        yield f"{tar_path} lacks the member {name!r}"


def _content_faults(tar: BinaryIO, member: tarfile.TarInfo, row: dict[str, Any], suffix: str) -> Iterator[str]:
    if member.size > MOST_MEMBER_BYTES:
        yield f"{member.size} bytes are too many for a sample"
        return
    tar.seek(member.offset_data)
    content = tar.read(member.size)
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
    """Shards that were made before nulls were left out hold them: `"class_name": null` says what a missing key says."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    return bool({name: value for name, value in found.items() if value is not None} == json.loads(sample_json(row)))


def _picture_faults(content: bytes, row: dict[str, Any]) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(content), formats=SHARD_FORMATS) as image:
            image.load()
            if image.size != (row["width"], row["height"]):
                yield f"the image is {image.size[0]} x {image.size[1]}, its row claims {row['width']} x {row['height']}"
    except UNDECODABLE as error:
        yield f"the image does not decode: {first_line(error)}"


def _stray_files(output: OutputFolder) -> Iterator[str]:
    known = {f"{shard.name}{suffix}" for shard in output.shards for suffix in (".tar", ".parquet")}
    folder = output.path / SHARD_FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in known and not path.name.startswith("."):  # hidden: a temporary of a running or killed worker
            yield f"{path} belongs to no shard of the plan"
