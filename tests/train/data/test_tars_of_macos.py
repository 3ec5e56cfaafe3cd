"""Tars packed on macOS, which puts the attributes of every file beside it as `._name`: no sample, no image, no fault."""

import io
import tarfile

import pytest
from PIL import Image

from gift_datasets.webdataset_tars import TarImages
from gift_train.data.reference_images import open_reference_images
from gift_train.data.transforms import image_transforms

ATTRIBUTES = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def packed(tmp_path):
    """Two samples; beside each member its attributes, and a folder that nobody sees."""
    members = [("a.png", png((1, 2, 3))), ("a.cls", b"1"), ("in/b.png", png((4, 5, 6))), ("in/b.cls", b"0")]
    path = tmp_path / "own.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in [*members, (".hidden/c.png", png((7, 8, 9))), ("__MACOSX/d.cls", b"0")]:
            folder, slash, file = name.rpartition("/")
            for member, data in ((f"{folder}{slash}._{file}", ATTRIBUTES), (name, content)):
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


def test_samples_of_a_tar_of_macos_are_those_that_were_packed(packed):
    images = TarImages("own", [packed])
    assert (images.keys, images.labels.tolist()) == (["a", "in/b"], [1, 0])
    assert images.image(1).getpixel((0, 0)) == (4, 5, 6)
    assert not images.passed_over


def test_reference_images_of_a_tar_of_macos_are_those_that_were_packed(packed):
    images = open_reference_images(packed, image_transforms(8).evaluation)
    assert [images[index][0][:, 0, 0].tolist() for index in range(len(images))] == [[1, 2, 3], [4, 5, 6]]
