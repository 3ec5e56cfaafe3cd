"""The eleven MTIL datasets and others through torchvision's own classes, on look-alikes of the data (conftest.py)."""

import hashlib
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gift_datasets.parts import open_parts, split_indices
from gift_shared.errors import DataError, ManifestError
from gift_shared.manifests import Manifests
from gift_train.data.tasks import load_task, load_test
from gift_train.data.transforms import image_transforms

TRANSFORMS = image_transforms(8)
MTIL = Manifests().order("mtil-1").tasks


@pytest.mark.parametrize("name", [*MTIL, "cifar10"])
def test_every_image_carries_its_own_label_and_is_rgb(look_alike, label_of_pixel, name):
    built = look_alike(name)
    task = load_task(built.manifest, built.root, TRANSFORMS)
    assert len(set(task.test.labels.tolist()) | set(task.train.labels.tolist())) == len(built.manifest.class_names)
    for images in (task.train, task.train_plain, task.test):
        for index in np.linspace(0, len(images) - 1, 60, dtype=int):
            image, label = images[index]
            assert image.shape == (3, 8, 8)
            pixel = image[:, 4, 4]
            assert label == (round(float(pixel[0]) / 12) if name == "mnist" else label_of_pixel(pixel.tolist()))
    handed = pickle.loads(pickle.dumps(task.train_plain))  # as a loader process that is not forked gets it
    (image, label), (expected, expected_label) = handed[1], task.train_plain[1]
    assert torch.equal(image, expected)
    assert label == expected_label


@pytest.mark.parametrize("name", MTIL)
def test_missing_dataset_is_told_with_the_way_to_get_it(tmp_path, name):
    with pytest.raises(DataError, match=rf"^{name} is not there: no {tmp_path}.*") as error:
        load_task(Manifests().task(name), tmp_path, TRANSFORMS)
    assert ("By hand" if name == "stanford_cars" else f"gift-train data fetch {name}") in str(error.value)
    assert list(tmp_path.iterdir()) == []  # looking leaves no folder behind


@pytest.mark.parametrize("name", MTIL)
def test_partial_dataset_is_told_by_its_counts(look_alike, name):
    built = look_alike(name)
    with pytest.raises(DataError, match=rf"{name}: found \d+ train images.*\[counts\] says {Manifests().task(name).counts['train']}"):
        load_task(Manifests().task(name), built.root, TRANSFORMS)


@pytest.mark.parametrize("name", [name for name in MTIL if name not in ("cifar100", "mnist", "caltech101", "eurosat", "sun397")])
def test_missing_image_is_named(look_alike, name):
    built = look_alike(name)
    victim = sorted(built.root.rglob("*.jpg"))[-1]
    victim.unlink()
    with pytest.raises(DataError, match=rf"{name}: 1 of the \d+ images.*are missing, first {victim}"):
        load_task(built.manifest, built.root, TRANSFORMS)


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt"),
        ("cifar100", "cifar-100-python/meta"),
        ("dtd", "dtd/dtd/labels/test1.txt"),
        ("flowers", "flowers-102/imagelabels.mat"),
        ("food", "food-101/meta/test.json"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("oxford_pet", "oxford-iiit-pet/annotations/test.txt"),
        ("stanford_cars", "stanford_cars/cars_test_annos_withlabels.mat"),
        ("sun397", "SUN397/ClassName.txt"),
    ],
)
def test_missing_or_broken_list_is_told(look_alike, name, lists):
    built = look_alike(name)
    (built.root / lists).write_bytes(b"\x00broken\n")
    with pytest.raises(DataError, match=name):
        load_task(built.manifest, built.root, TRANSFORMS)
    (built.root / lists).unlink()
    with pytest.raises(DataError, match=name):
        load_task(built.manifest, built.root, TRANSFORMS)


def test_gap_in_caltech101_is_named(look_alike):
    """Torchvision counts the files of a folder and numbers them from 1, so a missing one is only met when it is read."""
    built = look_alike("caltech101")
    victim = built.root / "caltech101/101_ObjectCategories/emu/image_0002.jpg"
    victim.unlink()
    with pytest.raises(DataError, match=rf"1 of the \d+ images that Caltech101 lists are missing, first {victim}"):
        load_task(built.manifest, built.root, TRANSFORMS)


def test_image_that_does_not_decode_is_named(look_alike):
    built = look_alike("dtd")
    victim = sorted(built.root.rglob("*.jpg"))[-1]
    victim.write_bytes(victim.read_bytes()[:120])
    with pytest.raises(DataError, match=rf"{victim} does not decode"):
        load_task(built.manifest, built.root, TRANSFORMS)


def test_extra_class_folder_is_told(look_alike):
    built = look_alike("eurosat")
    shutil.copytree(built.root / "eurosat/2750/River", built.root / "eurosat/2750/Volcano")
    with pytest.raises(DataError, match=r"eurosat: label 10 of .*Volcano.* outside 0\.\.9"):
        load_task(built.manifest, built.root, TRANSFORMS)


def test_other_version_of_the_class_names_is_told(look_alike):
    built = look_alike("aircraft")
    path = built.root / "fgvc-aircraft-2013b/data/variants.txt"
    names = path.read_text().splitlines()
    path.write_text("\n".join([names[1], names[0], *names[2:]]))
    with pytest.raises(DataError, match=r"aircraft: class 0 is '727-200' in the data, '707-320' in the manifest"):
        load_task(built.manifest, built.root, TRANSFORMS)


def test_flowers_labels_start_at_zero_and_are_not_shifted_again(look_alike):
    built = look_alike("flowers")
    assert np.unique(open_parts(built.manifest, built.root, ["train"])["train"].labels).tolist() == list(range(102))


def test_sun397_is_sorted_before_its_seeded_split(look_alike, monkeypatch):
    built = look_alike("sun397")
    listed_by_the_system = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: sorted(listed_by_the_system(path, pattern), reverse=True))
    parts = open_parts(built.manifest, built.root, ["train", "test"])
    files = sorted(path.relative_to(built.root).as_posix() for path in built.root.rglob("sun_*.jpg"))
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(42)).tolist()
    listed = [parts["train"].where(index) for index in range(len(parts["train"]))]
    assert listed == [str(built.root / files[index]) for index in order[: len(listed)]]


@pytest.mark.parametrize(
    ("num_images", "train_digest", "test_digest"),
    [
        (
            8677,  # Caltech101
            "5e529869d8bb5ab9fbc69653059395f7207c86d7237f8b8e2f01e93279382804",
            "e542ba1434a7ec604917f76867f6122aebda2205986f512c009f2c37f4da14a6",
        ),
        (
            27000,  # EuroSAT
            "4f8963d2e6693ace01ae27601e23200a163ace3eaf02dfc78bc711fe307d20ba",
            "151f6061fc45abf584ca7d52ee33af3f4de2c5c4caaa8e300ad9faffade34e8a",
        ),
        (
            108754,  # SUN397
            "47f2391abd083861040a7fb3e6c003519c9c8a80ab296464ddaf73cb9a635c6d",
            "8e198d70d0a346564d8d7abe7b7de70285cb2b34149be6ddf62491f15d66e2be",
        ),
    ],
)
def test_seeded_splits_are_those_of_the_reference(num_images, train_digest, test_digest):
    """Digests of the indices joined with commas, as recorded from torch's random_split with seed 42."""
    for part, expected in zip(split_indices(num_images, 0.8, 42).values(), (train_digest, test_digest), strict=True):
        assert hashlib.sha256(",".join(map(str, part.tolist())).encode()).hexdigest() == expected


def test_imagenet_is_for_evaluation_only(tmp_path):
    with pytest.raises(DataError, match=r"imagenet has no train images"):
        load_task(Manifests().task("imagenet"), tmp_path, TRANSFORMS)
    with pytest.raises(DataError, match=r"imagenet is not there: no .*By hand, after registering"):
        load_test(Manifests().task("imagenet"), tmp_path, TRANSFORMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "Flowers"}, "Unknown torchvision dataset 'Flowers'. Did you mean 'Flowers102'"),
        ({"train_args": {"splt": "train"}}, "Unknown argument of Flowers102 'splt'. Did you mean 'split'"),
        ({"train_args": {"download": True}}, "Unknown argument of Flowers102 'download'"),
        ({"train_args": {"split": "training"}}, "cannot read what is under .*Unknown value 'training'"),
    ],
)
def test_faulty_torchvision_manifest_is_told(look_alike, change, message):
    built = look_alike("flowers")
    with pytest.raises((ManifestError, DataError), match=message):
        load_task(replace(built.manifest, data=built.manifest.data | change), built.root, TRANSFORMS)


def test_files_of_torchvisions_datasets_are_read_as_all_others(look_alike):
    """Its own loader would make the first of them white and the second black."""
    built = look_alike("dtd")
    files = sorted(built.root.rglob("*.jpg"))
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp * 1028).save(files[0], "PNG")
    hidden = np.zeros((8, 8, 4), dtype=np.uint8)
    Image.fromarray(hidden).save(files[1], "PNG")
    sources = open_parts(built.manifest, built.root, ["train", "test"]).values()
    seen = {source.where(index): source.image(index) for source in sources for index in range(len(source))}
    assert np.array_equal(np.asarray(seen[str(files[0])])[:, :, 0], ramp * 4)
    assert seen[str(files[1])].getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("stray", ["Thumbs.db", ".DS_Store", "._image_0001.jpg"])
def test_a_stray_file_that_torchvision_counts_is_named(look_alike, stray):
    built = look_alike("caltech101")
    path = built.root / "caltech101/101_ObjectCategories/emu" / stray
    path.write_bytes(b"of an operating system")
    with pytest.raises(DataError, match=rf"caltech101: 1 of the .* are missing.* It may have counted {path}, which is no part of the data"):
        load_task(built.manifest, built.root, TRANSFORMS)


def test_a_stray_file_among_class_folders_is_named(look_alike):
    built = look_alike("caltech101")
    (built.root / "caltech101/101_ObjectCategories/.DS_Store").write_bytes(b"of macOS")
    with pytest.raises(DataError, match=r"cannot read what is under .*It may have counted .*\.DS_Store, which is no part of the data"):
        load_task(built.manifest, built.root, TRANSFORMS)


def test_a_hidden_folder_is_no_class(look_alike):
    built = look_alike("eurosat")
    shutil.copytree(built.root / "eurosat/2750/River", built.root / "eurosat/2750/.ipynb_checkpoints")
    with pytest.raises(DataError, match=r"eurosat: torchvision's EuroSAT takes '\.ipynb_checkpoints' for a class\..*remove it"):
        load_task(built.manifest, built.root, TRANSFORMS)


def test_hidden_files_are_no_images(look_alike):
    built = look_alike("eurosat")
    before = [open_parts(built.manifest, built.root, [part])[part] for part in ("train", "test")]
    (built.root / "eurosat/2750/River/._River_1.jpg").write_bytes(b"of macOS")
    after = [open_parts(built.manifest, built.root, [part])[part] for part in ("train", "test")]
    assert [source.listing_digest() for source in before] == [source.listing_digest() for source in after]


@pytest.mark.parametrize("name", ["dtd", "cifar10", "mnist", "sun397"])
def test_a_listing_digest_tells_datasets_of_torchvision_apart(look_alike, name):
    built = look_alike(name)
    parts = open_parts(built.manifest, built.root, ["train", "test"])
    again = open_parts(built.manifest, built.root, ["train", "test"])
    assert parts["train"].listing_digest() == again["train"].listing_digest()
    assert parts["train"].listing_digest() != parts["test"].listing_digest()
