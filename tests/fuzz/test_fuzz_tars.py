"""Tars: damaged bytes, and members that lead elsewhere, under any name and of any type, for everyone who walks one."""

import io
import tarfile

import numpy as np
import pytest
from hostile import NAMES, damages, fuzz, reads_or_tells
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gift_datasets.webdataset_tars import TarImages
from gift_shared.decoding import FILE_FORMATS, decode_rgb
from gift_shared.errors import DataError
from gift_shared.tar_members import plain_members
from gift_train.data.reference_images import open_reference_images
from gift_train.data.transforms import image_transforms

TRANSFORM = image_transforms(8).evaluation
TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE]
TYPES += [tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, b"?"]


def png(colour=(200, 10, 10)):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


MEMBERS = [("a.png", png()), ("a.cls", b"0"), ("b.png", png((1, 2, 3))), ("b.cls", b"1")]


def packed(members, form=tarfile.USTAR_FORMAT):
    """A tar of (name, content, type, link) members; those that the format cannot hold are left out."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(content)
            try:
                tar.addfile(member, io.BytesIO(content))
            except (ValueError, UnicodeError):
                continue
    return buffer.getvalue()


PLAIN = packed([(name, content, tarfile.REGTYPE, "") for name, content in MEMBERS])


def use(path):
    """What every reader of tars does with one."""
    for read in (lambda: [*plain_members(path)], lambda: read_task(path), lambda: read_reference(path)):
        reads_or_tells(read, path)


def read_task(path):
    images = TarImages("own", [path])
    return [images.image(index) for index in range(len(images.labels))]


def read_reference(path):
    images = open_reference_images(path, TRANSFORM)
    return [images[index] for index in range(len(images))]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tars") / "own-000000.tar"


@fuzz(60)
@given(damage=damages())
def test_damaged_bytes_of_a_tar_are_told(path, damage):
    path.write_bytes(damage(PLAIN))
    use(path)


@st.composite
def tars(draw):
    members = [(name, content, tarfile.REGTYPE, "") for name, content in MEMBERS]
    names = st.one_of(NAMES, st.sampled_from(["a.png", "b.cls", "x/../../a.png", "c.pkl", "c.png", "c.cls", "../a.png", "/tmp/a.png"]))
    for _ in range(draw(st.integers(1, 3))):
        strange = (draw(names), draw(st.sampled_from([b"", b"0", png(), b"x" * 700])), draw(st.sampled_from(TYPES)), draw(names))
        members.insert(draw(st.integers(0, len(members))), strange)
    return packed(members, draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))


@fuzz(80)
@given(content=tars(), damage=st.one_of(st.none(), damages()))
def test_strange_members_of_a_tar_are_told(path, content, damage):
    path.write_bytes(content if damage is None else damage(content))
    use(path)


def images():
    """One picture in every format that is read, and of every kind of values that is converted."""
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8)
    alpha = Image.fromarray(np.arange(8 * 8 * 4, dtype=np.uint8).reshape(8, 8, 4))
    own_kinds = ((Image.fromarray(grey), "PNG"), (Image.fromarray(grey.astype(np.float32)), "TIFF"), (alpha, "PNG"), (alpha, "WEBP"))
    for own, form in (*own_kinds, (Image.fromarray(grey.astype(np.int32)), "TIFF"), (alpha.convert("P"), "PNG")):
        buffer = io.BytesIO()
        own.save(buffer, format=form, **({"transparency": 3} if own.mode in ("P", "I;16") else {}))
        yield buffer.getvalue()
    picture = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "AVIF"):
        if form not in FILE_FORMATS:
            continue  # this Pillow was built without it
        buffer = io.BytesIO()
        picture.save(buffer, format=form)
        yield buffer.getvalue()


IMAGES = list(images())


@fuzz(150)
@given(content=st.sampled_from(IMAGES), damage=damages())
def test_a_damaged_image_is_told(content, damage):
    reads_or_tells(lambda: decode_rgb(damage(content), "own.png", DataError, FILE_FORMATS), "own.png")


def test_a_tiff_whose_offsets_are_fractions_is_told():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="TIFF")
    content = buffer.getvalue().replace(b"\x11\x01\x04\x00", b"\x11\x01\x05\x00")  # StripOffsets: LONG -> RATIONAL
    assert not reads_or_tells(lambda: decode_rgb(content, "own.tif", DataError, FILE_FORMATS), "own.tif")


def test_an_image_that_would_not_fit_the_memory_is_told():
    header = png()[:16] + (60_000).to_bytes(4, "big") * 2 + png()[24:]
    assert not reads_or_tells(lambda: decode_rgb(header, "bomb.png"), "bomb.png")
