"""What `gift-train data check` tells of images that are there and in the right number, and may still not be what was meant."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gift_train.cli.data import data_app


def picture(number=0):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path):
    """A manifest and two classes with four pictures for training and two for testing each."""
    (tmp_path / "mine/tasks").mkdir(parents=True)
    (tmp_path / "mine/tasks/animals.toml").write_text(
        'name = "animals"\ndisplay_name = "Animals"\ntemplates = ["a {}."]\nclass_names = ["fox", "wolf"]\n'
        'data = { kind = "image_folder", train = "train", test = "test" }\n'
    )
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("fox", "wolf")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(count):
                picture(100 * count + 10 * label + number).save(tmp_path / "data" / part / name / f"{number}.png")
    return tmp_path


def check(root):
    result = CliRunner().invoke(data_app, ["check", "animals", "--data-root", str(root / "data"), "--manifests", str(root / "mine")])
    assert result.exit_code == 0, result.output
    return [line for line in result.stdout.splitlines() if line.startswith("animals: ")]


def test_data_as_they_should_be_are_told_nothing_of(root):
    assert check(root) == []


def test_images_of_one_colour_are_told(root):
    Image.new("RGB", (8, 8), "white").save(root / "data/train/wolf/0.png")
    assert check(root) == [f"animals: 1 of 8 sampled images: of one colour, first {root}/data/train/wolf/0.png."]


def test_what_was_scaled_laid_on_white_or_not_turned_is_told(root):
    fox = root / "data/train/fox"
    for number in (0, 2):
        Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(fox / f"{number}.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)).save(root / "data/test/fox/0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(root / "data/test/wolf/0.jpg", exif=exif)
    (root / "data/test/wolf/0.png").unlink()
    assert sorted(check(root)) == [
        f"animals: 1 of 8 sampled images: its EXIF orientation not applied, first {root}/data/test/wolf/0.jpg.",
        f"animals: 1 of 8 sampled images: transparent, laid on white, first {root}/data/test/fox/0.png.",
        f"animals: 2 of 8 sampled images: scaled from 16 bits, first {fox}/0.png.",
    ]


def test_what_is_passed_over_is_told(root):
    (root / "data/train/fox/9.heic").write_bytes(b"photo")
    assert check(root) == [f"animals: 1 file is passed over (1 .heic), first {root}/data/train/fox/9.heic."]


def test_test_images_that_are_training_images_are_told_whatever_they_are_called(root):
    shutil.copy(root / "data/train/fox/1.png", root / "data/test/wolf/other.png")
    assert check(root) == [
        f"animals: 1 of 5 test images are training images too: {root}/data/test/wolf/other.png = {root}/data/train/fox/1.png."
    ]


def test_test_images_that_only_have_the_size_of_training_images_are_not(root):
    buffer = io.BytesIO()
    picture(1).save(buffer, "BMP")
    (root / "data/train/fox/a.bmp").write_bytes(buffer.getvalue())
    picture(2).save(root / "data/test/fox/b.bmp")
    assert (root / "data/test/fox/b.bmp").stat().st_size == len(buffer.getvalue())
    assert check(root) == []


def test_one_folder_for_training_and_testing_is_wrong(root):
    shutil.rmtree(root / "data/test")
    (root / "data/test").symlink_to("train")
    command = ["check", "animals", "--data-root", str(root / "data"), "--manifests", str(root / "mine")]
    result = CliRunner().invoke(data_app, command)
    assert result.exit_code == 1
    assert "animals: [data] train and test are the same images, 'train' and 'test'" in result.stdout
