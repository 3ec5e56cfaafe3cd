"""Data as people have them: other formats, names of other systems, links, strays, tars of others. Read right, or told by name."""

import io
import logging
import shutil
import tarfile
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gift_datasets.parts import open_parts
from gift_datasets.settings import data_settings
from gift_shared.errors import DataError, ManifestError
from gift_shared.manifests import Manifests, TaskManifest
from gift_train.data.pack import PackSettings, pack_dataset
from gift_train.data.reference_images import open_reference_images
from gift_train.data.tasks import load_task, load_test
from gift_train.data.transforms import image_transforms

TRANSFORMS = image_transforms(8)
FOLDERS = {"kind": "image_folder", "train": "train", "test": "test"}
TARS = {"kind": "webdataset", "test": "test.tar"}
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def manifest(data, classes=("fox", "wolf")):
    return TaskManifest(
        name="animals", display_name="Animals", class_names=classes, templates=("a {}.",), data=data, counts={}, about=""
    )  # fmt: skip


def picture(number=0):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
    """Two classes, two pictures each for training, one for testing."""
    for part, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(("fox", "wolf")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                picture(100 * count + 10 * label + number).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def seen(root, part="train"):
    source = open_parts(manifest(FOLDERS), root, [part])[part]
    return [source.where(index).removeprefix(f"{root}/{part}/") for index in range(len(source))]


# Pictures of every kind, by every way


def kinds():
    """File name, content, and the RGB pixels that everyone should see."""
    plain = np.dstack([RAMP] * 3)
    drawn = np.zeros((8, 8, 4), dtype=np.uint8)
    drawn[2:5, 2:5, 3] = 255
    on_white = np.full((8, 8, 3), 255, dtype=np.uint8)
    on_white[2:5, 2:5] = 0
    return [
        ("16.png", encoded(Image.fromarray(RAMP.astype(np.uint16) * 257)), plain),
        ("16.tif", encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), "TIFF"), plain),
        ("float.tiff", encoded(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"), plain),
        ("alpha.png", encoded(Image.fromarray(drawn)), on_white),
    ]


@pytest.mark.parametrize(("name", "content", "expected"), kinds(), ids=[name for name, *_ in kinds()])
def test_training_evaluation_packing_tars_and_reference_images_see_the_same_picture(root, name, content, expected):
    for part in ("train", "test"):
        (root / part / "fox" / f"z{name}").write_bytes(content)
    task = load_task(manifest(FOLDERS), root, TRANSFORMS)
    index = seen(root).index(f"fox/z{name}")
    pixels = torch.from_numpy(expected).permute(2, 0, 1)
    assert torch.equal(task.train_plain[index][0], pixels)
    assert torch.equal(task.test[1][0], pixels)
    assert np.array_equal(np.asarray(task.train.source.image(index)), expected)

    packed = pack_dataset(manifest(FOLDERS), root, root / "out", PackSettings(shorter_side=None, images_per_shard=9, jpeg_quality=95))
    assert packed.is_file()
    tars = manifest({"kind": "webdataset", "test": "animals/test-000000.tar"})
    assert torch.equal(load_test(tars, root / "out", TRANSFORMS)[1][0], pixels)

    write_tar(root / "own.tar", [(f"a.{name.partition('.')[2]}", content), ("a.cls", b"0"), ("b.png", encoded(picture())), ("b.cls", b"1")])
    assert torch.equal(load_test(manifest({**TARS, "test": "own.tar"}), root, TRANSFORMS)[0][0], pixels)
    reference = open_reference_images(root / "test/fox", TRANSFORMS.evaluation)
    assert torch.equal(reference[1][0], pixels)


def test_names_that_a_benchmark_has_twice_are_packed_as_such(root):
    twice = replace(manifest(FOLDERS | {"class_folders": ["fox", "wolf"]}, ("fox", "fox")), repeated_class_names=("fox",))
    path = pack_dataset(twice, root, root / "out", PackSettings(shorter_side=None, images_per_shard=9, jpeg_quality=95))
    assert Manifests().task(str(path)).class_names == ("fox", "fox")


# Which files are read


def test_other_suffixes_of_formats_we_read_are_read(root):
    for number, suffix in enumerate((".jfif", ".jpe", ".JPEG", ".pgm", ".avif")):
        (root / f"train/fox/x{number}{suffix}").write_bytes(encoded(picture(), "AVIF" if suffix == ".avif" else "JPEG"))
    assert [name for name in seen(root) if "/x" in name] == ["fox/x0.jfif", "fox/x1.jpe", "fox/x2.JPEG", "fox/x3.pgm", "fox/x4.avif"]


def test_what_is_passed_over_is_told_once_at_the_start(root, caplog):
    for part in ("train", "test"):
        for number in range(2):
            (root / f"{part}/fox/{number}.heic").write_bytes(b"photo")
    (root / "train/list.csv").write_text("a list beside the class folders")
    with caplog.at_level(logging.WARNING):
        load_task(manifest(FOLDERS), root, TRANSFORMS)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"animals: 5 files are passed over (4 .heic, 1 .csv), first {root}/train/list.csv. Read are .jpg,"
    )


def test_of_a_seeded_split_what_is_passed_over_is_counted_once(root, caplog):
    (root / "train/fox/0.heic").write_bytes(b"photo")
    data = {"kind": "image_folder", "all": "train", "split": {"train_fraction": 0.5, "seed": 1}}
    with caplog.at_level(logging.WARNING):
        load_task(manifest(data), root, TRANSFORMS)
    assert "animals: 1 file is passed over (1 .heic)" in caplog.text


def test_a_class_folder_of_unreadable_formats_names_them(root):
    for number in range(2):
        (root / f"train/fox/{number}.png").rename(root / f"train/fox/{number}.heic")
    with pytest.raises(DataError, match=r"train/fox holds no image .*; 2 files are passed over \(2 \.heic\), first .*fox/0\.heic"):
        seen(root)


def test_hidden_folders_and_circles_of_links_add_no_image(root):
    before = seen(root)
    shutil.copytree(root / "train/fox", root / "train/fox/.ipynb_checkpoints")
    shutil.copytree(root / "train/fox", root / "train/.trash")
    (root / "train/fox/loop").symlink_to(".")
    (root / "train/fox/all").symlink_to("..")
    (root / "train/wolf/other").symlink_to("../fox")
    (root / "train/fox/._0.png").write_bytes(b"of macOS")
    assert seen(root) == before


def test_reference_images_are_found_by_the_same_walk(root, caplog):
    (root / "train/fox/.ipynb_checkpoints").mkdir()
    picture().save(root / "train/fox/.ipynb_checkpoints/0.png")
    (root / "train/loop").symlink_to(".")
    (root / "train/fox/9.heic").write_bytes(b"photo")
    with caplog.at_level(logging.WARNING):
        assert len(open_reference_images(root / "train", TRANSFORMS.evaluation)) == 4
    assert "Reference images: 2 files are passed over" in caplog.text


def test_reference_tars_take_every_suffix_and_count_the_rest(root, caplog):
    write_tar(root / "own.tar", [("a.jfif", encoded(picture(), "JPEG")), ("a.cls", b"0"), ("b.heic", b"x")])
    with caplog.at_level(logging.WARNING):
        assert len(open_reference_images(root / "own.tar", TRANSFORMS.evaluation)) == 1
    assert "1 file is passed over (1 .heic)" in caplog.text


def test_two_classes_that_are_one_folder_are_refused(root):
    shutil.rmtree(root / "train/wolf")
    (root / "train/wolf").symlink_to("fox")
    with pytest.raises(DataError, match=r"animals: class folders .*train/fox and wolf are one folder by a link"):
        seen(root)


@pytest.mark.parametrize("is_link", [False, True])
def test_test_images_that_are_the_training_images_are_refused(root, is_link):
    data = FOLDERS | {"test": "train"}
    if is_link:
        (root / "again").symlink_to("train")
        data = FOLDERS | {"test": "again"}
    with pytest.raises(ManifestError, match=r"animals: \[data\] train and test are the same images, 'train' and '(train|again)'"):
        load_task(manifest(data), root, TRANSFORMS)


# Names as other systems write them


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms_of_class_and_folder_may_differ(tmp_path, forms):
    of_class, of_folder = (unicodedata.normalize(form, "Café crème") for form in forms)
    assert of_class != of_folder
    for name in (of_folder, "wolf"):
        (tmp_path / "test" / name).mkdir(parents=True)
        picture().save(tmp_path / "test" / name / "0.png")
    data = {"kind": "image_folder", "test": "test"}
    assert load_test(manifest(data, (of_class, "wolf")), tmp_path, TRANSFORMS).labels.tolist() == [0, 1]
    given = data | {"class_folders": [of_class, "wolf"]}
    assert load_test(manifest(given, ("coffee", "wolf")), tmp_path, TRANSFORMS).labels.tolist() == [0, 1]


def test_backslashes_of_windows_separate_folders(root):
    (root / "deep").mkdir()
    (root / "test").rename(root / "deep/test")
    assert len(load_test(manifest({"kind": "image_folder", "test": "deep\\test"}), root, TRANSFORMS)) == 2
    assert data_settings(manifest({"kind": "webdataset", "test": "a\\b-{0..1}.tar"})).parts == {"test": "a/b-{0..1}.tar"}
    assert data_settings(manifest({"kind": "webdataset", "test": "a\\{0.tar"})).parts == {"test": "a\\{0.tar"}  # an escaped brace


# Tars of others


def labelled(key, suffix=".png", label=0):
    return [(f"{key}{suffix}", encoded(picture(), "JPEG" if suffix == ".jpeg" else "PNG")), (f"{key}.cls", str(label).encode())]


def test_keys_with_dots_are_read(root):
    write_tar(root / "test.tar", [member for number in range(10) for member in labelled(f"22.{number:02d}", label=number % 2)])
    images = load_test(manifest(TARS), root, TRANSFORMS)
    assert images.labels.tolist() == [0, 1] * 5
    assert images.source.where(4).endswith("test.tar (22.04)")


def test_more_members_of_a_sample_are_no_samples_and_are_counted(root, caplog):
    more = [("a.mask.png", encoded(picture())), ("a.coarse.cls", b"1"), ("a.json", b"{}")]
    write_tar(root / "test.tar", [*labelled("a"), *more, *labelled("b", label=1)])
    with caplog.at_level(logging.WARNING):
        assert load_test(manifest(TARS), root, TRANSFORMS).labels.tolist() == [0, 1]
    assert "animals: 3 files are passed over (1 .json, " in caplog.text


def test_keys_that_webdataset_takes_for_one_sample_are_refused_by_name(root):
    write_tar(root / "test.tar", [*labelled("a"), *labelled("a.flipped"), *labelled("b", label=1)])
    with pytest.raises(DataError, match=r"holds 'a' and 'a\.flipped', each with image and \.cls: to WebDataset.*without a dot"):
        load_test(manifest(TARS), root, TRANSFORMS)


def test_samples_that_do_not_come_whole_are_named(root):
    lone = [(f"x.{number}.png", encoded(picture())) for number in range(5)]
    write_tar(root / "test.tar", [*labelled("a"), *lone, *labelled("b", label=1)])
    with pytest.raises(
        DataError, match=r"sample 'x\.0', 'x\.1', 'x\.2', \.\.\. of .*test\.tar lacks its image or its \.cls; 5 are incomplete"
    ):
        load_test(manifest(TARS), root, TRANSFORMS)


def test_jpeg_spelt_out_is_an_image_of_a_tar(root):
    write_tar(root / "test.tar", [*labelled("a", ".jpeg"), *labelled("b", ".JPEG", 1)])
    assert load_test(manifest(TARS), root, TRANSFORMS).labels.tolist() == [0, 1]


# What a run is told by


def digests(root, data=None):
    task = load_task(manifest(data or FOLDERS), root, TRANSFORMS)
    return task.listing_digest(), task.test.listing_digest()


def test_the_listing_digest_is_that_of_a_copy_elsewhere(root, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)  # other times
    assert digests(copy) == digests(root)


def test_the_listing_digest_changes_with_names_sizes_labels_and_counts(root):
    found = [digests(root)]
    (root / "test/fox/0.png").rename(root / "test/fox/1.png")
    found.append(digests(root))
    Image.new("RGB", (9, 9)).save(root / "test/fox/1.png")
    found.append(digests(root))
    shutil.copy(root / "test/fox/1.png", root / "test/fox/2.png")
    found.append(digests(root))
    (root / "test/fox/2.png").rename(root / "test/wolf/2.png")
    found.append(digests(root))
    assert len({whole for whole, _ in found}) == len({test for _, test in found}) == 5


def test_tars_and_seeded_splits_have_a_listing_digest_too(root, tmp_path_factory):
    write_tar(root / "test.tar", [*labelled("a"), *labelled("b", label=1)])
    before = load_test(manifest(TARS), root, TRANSFORMS).listing_digest()
    copy = tmp_path_factory.mktemp("copy")
    shutil.copyfile(root / "test.tar", copy / "test.tar")
    assert load_test(manifest(TARS), copy, TRANSFORMS).listing_digest() == before
    write_tar(root / "test.tar", [*labelled("a"), *labelled("c", label=1)])
    assert load_test(manifest(TARS), root, TRANSFORMS).listing_digest() != before
    split = {"kind": "image_folder", "all": "train", "split": {"train_fraction": 0.5, "seed": 1}}
    assert digests(root, split) != digests(root, split | {"split": {"train_fraction": 0.5, "seed": 2}})
