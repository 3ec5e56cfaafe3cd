"""`gift-train data`: check, fetch and pack, through the command line."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gift_shared.errors import ConfigError, DataError
from gift_shared.manifests import Manifests
from gift_train.cli.data import data_app
from gift_train.data.pack import PackSettings, pack_dataset
from gift_train.data.tasks import load_task
from gift_train.data.transforms import image_transforms

TRANSFORMS = image_transforms(8)


def gift_train_data(*arguments):
    return CliRunner().invoke(data_app, [str(argument) for argument in arguments])


@pytest.fixture
def animals(tmp_path):
    """A user's own dataset: manifest and image folders, some pictures large, one a BMP, one greyscale."""
    tasks = tmp_path / "mine/tasks"
    tasks.mkdir(parents=True)
    (tasks / "animals.toml").write_text(
        'name = "animals"\ndisplay_name = "My \\"animals\\""\ntemplates = ["a {}."]\nclass_names = ["fox", "grey wolf"]\n'
        'data = { kind = "image_folder", train = "train", test = "test" }\ncounts = { train = 6, test = 4 }\n'
    )
    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 2)):
        for name in ("fox", "grey_wolf"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(generator.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8))
                (image.convert("L") if number == 1 else image).save(folder / f"{number}.{'bmp' if number == 0 else 'png'}")
    return tmp_path


def everything(images):
    return [images[index] for index in range(len(images))]


def test_check_tells_what_is_there_and_how_to_get_the_rest(look_alike):
    built = look_alike("dtd")
    result = gift_train_data("check", "dtd", "flowers", "stanford_cars", "--data-root", built.root)
    assert result.exit_code == 1
    assert re.search(r"dtd +wrong +141 of 1880 +94 of 1880 +47 ", result.stdout)
    assert "dtd: found 141 train images" in result.stdout
    assert re.search(r"flowers +missing +- of 1020 +- of 6149 +- of 102 ", result.stdout)
    assert f"flowers is not there: no {built.root / 'flowers-102/setid.mat'}. Run gift-train data fetch flowers" in result.stdout
    assert "stanford_cars is not there" in result.stdout
    assert "By hand" in result.stdout


def test_check_passes_on_data_as_the_manifest_says(animals):
    result = gift_train_data("check", "animals", "--data-root", animals / "data", "--manifests", animals / "mine", "--every-image")
    assert result.exit_code == 0
    assert re.search(r"animals +ok +6 +4 +2 ", result.stdout)


def test_check_of_every_image_finds_the_broken_one(animals):
    broken = animals / "data/train/fox/2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    arguments = ("check", "animals", "--data-root", animals / "data", "--manifests", animals / "mine")
    assert gift_train_data(*arguments).exit_code == 0
    result = gift_train_data(*arguments, "--every-image")
    assert result.exit_code == 1
    assert f"{broken} does not decode" in result.stdout


def test_check_names_unknown_datasets():
    assert "Did you mean 'flowers'" in str(gift_train_data("check", "flower").exception)


def test_fetch_tells_what_has_to_be_got_by_hand(tmp_path, animals):
    result = gift_train_data("fetch", "stanford_cars", "animals", "--data-root", tmp_path / "data", "--manifests", animals / "mine")
    assert isinstance(result.exception, DataError)
    assert "stanford_cars cannot be downloaded: By hand, its first address is gone" in str(result.exception)
    assert "animals cannot be downloaded: it is of kind image_folder" in str(result.exception)


def test_fetch_leaves_data_that_are_there_alone_and_checks_them(look_alike):
    built = look_alike("cifar10")
    result = gift_train_data("fetch", "cifar10", "--data-root", built.root)
    assert "cifar10: found 30 train images" in str(result.exception)


def test_packed_dataset_reads_as_the_original(animals):
    arguments = ("pack", "animals", "--data-root", animals / "data", "--manifests", animals / "mine", "--out", animals / "out")
    assert gift_train_data(*arguments, "--images-per-shard", 4).exit_code == 0
    original = load_task(Manifests((animals / "mine",)).task("animals"), animals / "data", TRANSFORMS)
    packed_manifest = Manifests((animals / "out/manifests",)).task("animals")
    packed = load_task(packed_manifest, animals / "out", TRANSFORMS)
    assert packed_manifest.display_name == 'My "animals"'
    assert sorted(path.name for path in (animals / "out/animals").glob("*.tar")) == [
        "test-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
    ]
    for before, after in ((original.train_plain, packed.train_plain), (original.test, packed.test)):
        assert [label for _, label in everything(before)] == [label for _, label in everything(after)]
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(everything(before), everything(after), strict=True))


@pytest.mark.parametrize("name", ["caltech101", "mnist"])
def test_torchvision_datasets_can_be_packed(look_alike, tmp_path, name):
    """A seeded split and images that are no files: the packed task has the same images in the same order."""
    built = look_alike(name)
    settings = PackSettings(shorter_side=None, images_per_shard=100, jpeg_quality=95)
    path = pack_dataset(built.manifest, built.root, tmp_path / "out", settings)
    original = load_task(built.manifest, built.root, TRANSFORMS)
    packed = load_task(Manifests().task(str(path)), tmp_path / "out", TRANSFORMS)
    for before, after in ((original.train_plain, packed.train_plain), (original.test, packed.test)):
        assert before.labels.tolist() == after.labels.tolist()
        assert all(torch.equal(before[index][0], after[index][0]) for index in range(0, len(before), 17))


def test_shorter_side_reduces_large_images_only(animals):
    arguments = ("--data-root", animals / "data", "--manifests", animals / "mine", "--out", animals / "out", "--shorter-side", 21)
    assert gift_train_data("pack", "animals", *arguments).exit_code == 0
    packed = load_task(Manifests((animals / "out/manifests",)).task("animals"), animals / "out", TRANSFORMS)
    sizes = [packed.train.source.image(index).size for index in range(3)]
    assert sizes == [(30, 20), (30, 21), (29, 21)]


def test_stopped_pack_goes_on_and_gives_the_same_bytes(animals):
    arguments = ("pack", "animals", "--data-root", animals / "data", "--manifests", animals / "mine", "--out", animals / "out")
    gift_train_data(*arguments, "--images-per-shard", 2)
    tars = {path: path.read_bytes() for path in (animals / "out/animals").glob("*.tar")}
    victim, kept = sorted(tars)[1], sorted(tars)[0]
    victim.unlink()
    os.utime(kept, (1, 1))
    assert gift_train_data(*arguments, "--images-per-shard", 2).exit_code == 0
    assert victim.read_bytes() == tars[victim]
    assert kept.stat().st_mtime == 1  # not written again
    assert len(tars) == 5


def test_pack_with_other_settings_or_of_other_data_is_refused(animals):
    arguments = ("pack", "animals", "--data-root", animals / "data", "--manifests", animals / "mine", "--out", animals / "out")
    gift_train_data(*arguments)
    result = gift_train_data(*arguments, "--images-per-shard", 2)
    assert isinstance(result.exception, ConfigError)
    assert "was packed with other settings" in str(result.exception)
    shutil.move(animals / "data/train/fox/2.png", animals / "data/train/grey_wolf/9.png")
    result = gift_train_data(*arguments)
    assert "holds tars of other data. Remove the folder and pack again" in str(result.exception)
    assert not (animals / "out/manifests/tasks/animals.toml").exists()


def test_pack_into_a_folder_with_damaged_settings_is_refused(animals):
    arguments = ("pack", "animals", "--data-root", animals / "data", "--manifests", animals / "mine", "--out", animals / "out")
    gift_train_data(*arguments)
    (animals / "out/animals/pack.json").write_text("{")
    result = gift_train_data(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert re.search(r"animals/pack\.json .*Remove .*/animals and pack again\.", str(result.exception))


def test_pack_of_incomplete_data_is_refused(animals):
    (animals / "data/test/fox/1.png").unlink()
    result = gift_train_data("pack", "animals", "--data-root", animals / "data", "--manifests", animals / "mine", "--out", animals / "out")
    assert "found 3 test images" in str(result.exception)
    assert not (animals / "out/manifests").exists()
