"""Walks the members of a tar that others may have made, and reads ranges of it. Nothing is unpacked or followed."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from gift_shared.errors import DataError, GiftError

# Decoded by unpickling, in WebDataset's defaults or by torch.load: they run what they say.
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".ckpt", ".joblib", ".dill")
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")  # WebDataset looks behind them
MOST_HEADER_BYTES = 2**16  # of one extended header; Python's parser takes quadratic time, and a claimed size is allocated at once
# What tarfile raises on malformed headers: its own errors, and those of the int(), seek() and indexing it does on their fields.
_MALFORMED = (tarfile.TarError, OSError, ValueError, LookupError, ArithmeticError, EOFError, RecursionError)


def plain_members(path: Path, error_class: type[GiftError] = DataError) -> Iterator[tarfile.TarInfo]:
    """The files of an uncompressed tar, in its order; folders are passed over.

    Raises: `error_class`, naming tar and member, if the tar does not read to its end, or if a member is anything but a plain file
    under a relative name of its own: an absolute path, `..`, a link, a device, a sparse file, a pickle, a name that stands twice.
    """
    names: set[str] = set()
    try:
        for member in tar_headers(path):
            fault = member_fault(member, names)
            if fault is not None:
                raise error_class(f"{path}: member {member.name!r} {fault}, so the tar is refused. Pack it again without.")
            if not member.isdir():
                yield member
    except tarfile.TarError as error:
        raise error_class(f"{path} is no readable, uncompressed tar ({error}). Copy it again.") from error


def member_fault(member: tarfile.TarInfo, names: set[str]) -> str | None:
    """Why a member must not be read, None if it may; `names` are those met so far, and this one's is added."""
    name = PureWindowsPath(member.name)  # knows both slashes, and drives
    if name.drive or name.root:
        return "has an absolute path"
    if ".." in name.parts:
        return "leads out of its folder"
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return "is no plain file (a link, device or sparse file)"
    stem, suffix = os.path.splitext(name.name.lower())
    if suffix in COMPRESSION_SUFFIXES:
        suffix = os.path.splitext(stem)[1]
    if suffix in PICKLE_SUFFIXES:
        return "is a pickle, which can run any program"
    if str(name) in names:
        return "stands twice"
    names.add(str(name))
    return None


def tar_headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """Every header of an uncompressed tar as it is, its claimed range being inside the file. Raises tarfile.ReadError for any fault."""
    try:
        size = path.stat().st_size
        with _Headers(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0 or member.offset_data + (member.size if member.isreg() else 0) > size:
                    raise tarfile.ReadError(f"truncated: {member.name!r} ends at byte {member.offset_data + member.size} of {size}")
                yield member
            file.seek(tar.offset)  # tarfile takes any block that is no header for the end, a missing one too
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no header and no end of the archive at byte {tar.offset}: cut short or damaged")
    except tarfile.ReadError:
        raise
    except _MALFORMED as error:
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from error


class _Headers(io.BufferedReader):
    """A file that tarfile reads headers from: a size that no header has is an error instead of an allocation, or of a step backwards."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size)


def read_range(path: Path, offset: int, size: int, where: str) -> bytes:
    """So many bytes of a file, or from there to its end if `size` is -1; `where` names them in messages.

    Raises: DataError if the file cannot be read or ends before them.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Put the file back.") from error
    if len(content) < size:
        raise DataError(f"{where}: the file was cut short while it was in use. Copy it again.")
    return content
