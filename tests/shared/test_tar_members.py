"""Members that could lead a reader astray refuse their tar, and malformed headers are errors of ours."""

import io
import random
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from gift_shared.errors import DataError, ShardError
from gift_shared.tar_members import MOST_HEADER_BYTES, plain_members, read_range

Member = tuple[str, bytes]


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = kind
    for field, value in fields.items():
        setattr(header, field, value)
    return header


def write(path: Path, headers: Iterable[tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for header in headers:
            header.size = 5 if header.isreg() else 0
            tar.addfile(header, io.BytesIO(b"12345"))
    return path


def test_plain_files_come_in_their_order_with_their_place(tmp_path: Path) -> None:
    names = ["./train/b.jpg", "train/a.cls", "a.npy", "deep/er/a.jpg", "..a.txt", "a.tar.gz"]
    path = write(tmp_path / "a.tar", [member("train", tarfile.DIRTYPE), *map(member, names)])
    found = list(plain_members(path))
    assert [one.name for one in found] == names
    content = path.read_bytes()
    assert {content[one.offset_data : one.offset_data + one.size] for one in found} == {b"12345"}


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ([member("/etc/passwd.jpg")], "'/etc/passwd.jpg' has an absolute path"),
        ([member("C:\\a.jpg")], "has an absolute path"),
        ([member("a/../../b.jpg")], "leads out of its folder"),
        ([member("a\\..\\b.jpg")], "leads out of its folder"),
        ([member("../up", tarfile.DIRTYPE)], "leads out of its folder"),
        ([member("a.jpg", tarfile.SYMTYPE, linkname="/etc/passwd")], "'a.jpg' is no plain file"),
        ([member("a.jpg", tarfile.LNKTYPE, linkname="b.jpg")], "is no plain file"),
        ([member("a.jpg", tarfile.CHRTYPE)], "is no plain file"),
        ([member("a.jpg", tarfile.FIFOTYPE)], "is no plain file"),
        ([member("a.jpg", tarfile.GNUTYPE_SPARSE)], "is no plain file"),
        ([member("a.jpg", b"?")], "is no plain file"),
        ([member("a.jpg"), member("a.pickle")], "'a.pickle' is a pickle"),
        ([member("a.meta.PKL")], "is a pickle"),
        ([member("a.pth")], "is a pickle"),
        ([member("a.pyd.gz")], "is a pickle"),
        ([member("a.jpg"), member("a.cls"), member("./a.jpg")], "stands twice"),
    ],
)
def test_a_member_that_leads_astray_refuses_its_tar(tmp_path: Path, headers: list[tarfile.TarInfo], fault: str) -> None:
    path = write(tmp_path / "bad.tar", headers)
    with pytest.raises(ShardError) as caught:
        list(plain_members(path, ShardError))
    assert fault in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_tar_cut_short_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [member("a.jpg"), member("b.jpg")])
    whole = path.read_bytes()
    for length in (0, 100, 514, 1024, 1030, 1538, 2048):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tar is no readable, uncompressed tar"):
            list(plain_members(path))


def header_with_size(size: int, kind: bytes, name: str = "a.jpg") -> bytes:
    """A header whose size field holds a number that Python's writer refuses to write: base 256, signed."""
    block = bytearray(member(name, kind).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (size & (2**96 - 1) | (1 << 95)).to_bytes(12) if size >= 0 else (size + 2**96).to_bytes(12)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [-512, -1024, -(2**40), 2**40, MOST_HEADER_BYTES + 1])
def test_a_size_that_is_none_neither_hangs_nor_allocates(tmp_path: Path, kind: bytes, size: int) -> None:
    path = tmp_path / "size.tar"
    path.write_bytes(header_with_size(size, kind) + bytes(2048))
    with pytest.raises(DataError, match="is no readable, uncompressed tar"):
        list(plain_members(path))


def test_a_long_chain_of_long_names_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "chain.tar"
    path.write_bytes(header_with_size(0, tarfile.GNUTYPE_LONGNAME) * 5000)
    with pytest.raises(DataError, match="is no readable, uncompressed tar"):
        list(plain_members(path))


def test_random_damage_is_never_another_error_than_ours(tmp_path: Path) -> None:
    long_name = "n" * 150
    headers = [member("a.jpg"), member(long_name + ".jpg"), member("é.cls", pax_headers={"GNU.sparse.map": "0,5"})]
    path = write(tmp_path / "a.tar", headers)
    whole, generator = path.read_bytes(), random.Random(5)
    for _ in range(500):
        damaged = bytearray(whole[: generator.choice([len(whole), generator.randrange(len(whole))])])
        for _ in range(generator.randrange(1, 8) if damaged else 0):
            damaged[generator.randrange(len(damaged))] = generator.choice([0, 0x80, 0xFF, 0x31, 0x4C, 0x78, generator.randrange(256)])
        for start in range(0, len(damaged) - 511, 512):  # right checksums, so that the fields behind them are looked at
            block = damaged[start : start + 512]
            damaged[start + 148 : start + 156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
        path.write_bytes(damaged)
        with suppress(DataError):
            list(plain_members(path))


def test_a_range_that_its_file_no_longer_holds_is_told(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    path.write_bytes(b"0123456789")
    assert read_range(path, 2, 3, "a.jpg") == b"234"
    assert read_range(path, 4, -1, "a.jpg") == b"456789"
    with pytest.raises(DataError, match=r"a.jpg: the file was cut short while it was in use"):
        read_range(path, 8, 3, "a.jpg")
    path.unlink()
    with pytest.raises(DataError, match=r"images.tar cannot be read \(No such file or directory\)"):
        read_range(path, 0, 1, "a.jpg")
