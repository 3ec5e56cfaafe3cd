"""Tasks from image folders and WebDataset tars, and what is told when the data are not what the manifest says."""

import io
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from gift_datasets.parts import open_parts, split_indices
from gift_shared.errors import DataError, ManifestError
from gift_shared.manifests import TaskManifest
from gift_train.data.check import check_dataset
from gift_train.data.tasks import load_task, load_test
from gift_train.data.transforms import image_transforms

TRANSFORMS = image_transforms(16)
CLASSES = ("red fox", "Grey Wolf", "owl")


def manifest(data, classes=CLASSES, **counts):
    return TaskManifest(
        name="animals",
        display_name="Animals",
        class_names=tuple(classes),
        templates=("a photo of a {}.",),
        data=data,
        counts=counts,
        about="",
    )


FOLDERS = {"kind": "image_folder", "train": "animals/train", "test": "animals/test"}


def picture(number, size=16):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def folders(tmp_path):
    """Three classes, 2 training and 1 test picture each."""
    for part, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(("Red_Fox", "grey-wolf", "owl")):
            folder = tmp_path / "animals" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(10 * label + number).save(folder / f"{number}.png")
    return tmp_path


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(number):
    buffer = io.BytesIO()
    picture(number).save(buffer, format="PNG")
    return buffer.getvalue()


def sample(key, number, label):
    return [(f"{key}.png", png(number)), (f"{key}.cls", str(label).encode())]


TARS = {"kind": "webdataset", "train": "animals/train-{00..01}.tar", "test": "animals/test.tar"}


@pytest.fixture
def tars(tmp_path):
    """Labels in an order of their own; one sample carries a member that is not ours to read."""
    extra = [("a/5.meta.json", b"{}"), ("README", b"")]
    write_tar(tmp_path / "animals/train-00.tar", [*sample("a/5", 0, 2), *extra, *sample("b", 1, 0)])
    write_tar(tmp_path / "animals/train-01.tar", sample("a", 2, 1))
    write_tar(tmp_path / "animals/test.tar", [member for label in range(3) for member in sample(f"t{label}", label, label)])
    return tmp_path


def test_folders_are_matched_to_class_names_in_label_order(folders):
    task = load_task(manifest(FOLDERS, train=6, test=3), folders, TRANSFORMS)
    assert task.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(task.test) == 3
    image, label = task.test[1]
    assert label == 1
    assert torch.equal(image, TRANSFORMS.evaluation(picture(10)))


def test_plain_view_shows_the_training_images_through_the_evaluation_transform(folders):
    task = load_task(manifest(FOLDERS), folders, TRANSFORMS)
    for index in range(len(task.train)):
        assert torch.equal(task.train_plain[index][0], TRANSFORMS.evaluation(picture(10 * (index // 2) + index % 2)))
    torch.manual_seed(1)
    cropped, _ = task.train[0]
    torch.manual_seed(1)
    assert torch.equal(task.train[0][0], cropped)
    assert not torch.equal(task.train_plain[0][0], cropped)


def test_small_splits_are_read_once(folders):
    task = load_task(manifest(FOLDERS), folders, TRANSFORMS)
    shutil.rmtree(folders / "animals")
    assert task.train[5][1] == 2


def test_greyscale_and_palette_images_become_rgb(folders):
    picture(0).convert("L").save(folders / "animals/train/owl/0.png")
    picture(0).convert("P").save(folders / "animals/train/owl/1.png")
    assert load_task(manifest(FOLDERS), folders, TRANSFORMS).train[4][0].shape == (3, 16, 16)


def test_class_folders_can_be_given_in_label_order(folders):
    given = FOLDERS | {"class_folders": ["owl", "Red_Fox", "grey-wolf"]}
    assert open_parts(manifest(given, classes=("A", "a", "+")), folders, ["train"])["train"].where(0).endswith("owl/0.png")
    with pytest.raises(ManifestError, match=r"class_folders must name 3 different folders"):
        open_parts(manifest(FOLDERS | {"class_folders": ["owl", "owl", "Red_Fox"]}), folders, ["train"])


def test_class_names_that_read_alike_need_class_folders(folders):
    with pytest.raises(ManifestError, match=r"'A' has no folder name of its own.*give .data. class_folders"):
        open_parts(manifest(FOLDERS, classes=("A", "a", "owl")), folders, ["train"])


def test_missing_data_root_is_told(tmp_path):
    with pytest.raises(DataError, match=r"animals: no image folder at .*animals/train, expected there: 3 class folders"):
        load_task(manifest(FOLDERS), tmp_path, TRANSFORMS)


def test_missing_class_folder_is_told_with_the_one_that_fits_nothing(folders):
    (folders / "animals/train/owl").rename(folders / "animals/train/eagle")
    with pytest.raises(DataError, match=r"no folder for class 'owl' .*'eagle' fits no class.*3 class folders"):
        load_task(manifest(FOLDERS), folders, TRANSFORMS)


def test_class_count_of_data_and_manifest_differ(folders):
    with pytest.raises(DataError, match=r"'owl' fits no class name.*holds 3 class folders, the manifest names 2 classes"):
        load_task(manifest(FOLDERS, classes=CLASSES[:2]), folders, TRANSFORMS)
    with pytest.raises(DataError, match=r"no folder for class 'lynx'.*holds 3 class folders, the manifest names 4 classes"):
        load_task(manifest(FOLDERS, classes=(*CLASSES, "lynx")), folders, TRANSFORMS)


def test_empty_class_folder_is_told(folders):
    for file in (folders / "animals/train/owl").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(DataError, match=r"train/owl holds no image"):
        load_task(manifest(FOLDERS), folders, TRANSFORMS)


def test_image_count_other_than_the_manifests_is_told(folders):
    with pytest.raises(DataError, match=r"found 6 train images.*\[counts\] says 7"):
        load_task(manifest(FOLDERS, train=7), folders, TRANSFORMS)


def test_image_that_does_not_decode_is_named_before_training(folders):
    broken = folders / "animals/train/owl/1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r"train/owl/1\.png does not decode as an image"):
        load_task(manifest(FOLDERS), folders, TRANSFORMS)


def test_split_rule_cuts_one_folder_in_two_repeatably(folders):
    data = {"kind": "image_folder", "all": "animals/train", "split": {"train_fraction": 0.8, "seed": 42}}
    task = load_task(manifest(data, train=4, test=2), folders, TRANSFORMS)
    seen = [task.train.source.where(index) for index in range(4)] + [task.test.source.where(index) for index in range(2)]
    assert len(set(seen)) == 6
    order = torch.utils.data.random_split(range(6), [4, 2], generator=torch.Generator().manual_seed(42))
    assert [part.tolist() for part in split_indices(6, 0.8, 42).values()] == [list(order[0]), list(order[1])]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"no \[data\] table"),
        (FOLDERS | {"tset": "x"}, "Unknown key 'tset'. Did you mean 'test'"),
        (FOLDERS | {"train": 3}, "train must be of type str, found 3"),
        (FOLDERS | {"split": {"train_fraction": 0.8, "seed": 1}}, "test does not go with a .data.split. table"),
        ({"kind": "image_folder", "all": "x"}, "all does not go without a .data.split. table"),
        ({"kind": "image_folder"}, "must give train and test"),
        (FOLDERS | {"split": {"train_fraction": 1.8, "seed": 1}}, "train_fraction between 0 and 1"),
    ],
)
def test_faulty_data_table_is_told(tmp_path, data, message):
    with pytest.raises(ManifestError, match=message):
        load_task(manifest(data), tmp_path, TRANSFORMS)


def test_evaluation_needs_no_training_images(folders):
    only_test = {"kind": "image_folder", "test": "animals/test"}
    assert len(load_test(manifest(only_test), folders, TRANSFORMS)) == 3
    with pytest.raises(DataError, match=r"animals has no train images"):
        load_task(manifest(only_test), folders, TRANSFORMS)


def test_tars_give_images_and_labels_in_their_order(tars):
    task = load_task(manifest(TARS, train=3, test=3), tars, TRANSFORMS)
    assert task.train.labels.tolist() == [2, 0, 1]
    for index in range(3):
        assert torch.equal(task.train_plain[index][0], TRANSFORMS.evaluation(picture(index)))


def test_plain_webdataset_reads_the_same_samples(tars):
    import webdataset

    urls = [str(tars / f"animals/train-0{number}.tar") for number in range(2)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil", only=["png", "cls"]).to_tuple("png", "cls"))
    task = load_task(manifest(TARS), tars, TRANSFORMS)
    assert [int(label) for _, label in samples] == task.train.labels.tolist()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", png(0))], "sample 'a' of .* lacks its image or its .cls; 1 are incomplete"),
        ([*sample("a", 0, 0), *sample("a", 1, 1)], r"member 'a\.png' stands twice"),
        ([*sample("a", 0, 0), ("a.jpg", png(1))], "sample 'a' stands twice"),
        ([("a.png", png(0)), ("a.cls", b"owl")], "'a.cls' of .* must hold a label index such as 17, found 'owl'"),
        ([("a.png", png(0)), ("a.cls", b"9" * 20)], "'a.cls' of .* must hold a label index such as 17, found '99999999999999999999'"),
        ([("readme.txt", b"")], "holds no sample"),
        ([*sample("a", 0, 0), *sample("b", 1, 1), *sample("c", 1, 3)], r"label 3 of .*\(c\) is outside 0\.\.2"),
        ([*sample("a", 0, 0), *sample("b", 1, 1)], "no image of class 'owl' .label 2.; 1 of 3 classes have none"),
        ([*sample("a", 0, 0), *sample("b", 1, 1), ("c.png", b"x"), ("c.cls", b"2")], r"test\.tar \(c\) does not decode"),
    ],
)
def test_faulty_tar_is_told(tars, members, message):
    write_tar(tars / "animals/test.tar", members)
    with pytest.raises(DataError, match=message):
        load_task(manifest(TARS), tars, TRANSFORMS)


def test_missing_truncated_and_other_tars_are_told(tars):
    path = tars / "animals/train-01.tar"
    content = path.read_bytes()
    path.write_bytes(content[:700])
    with pytest.raises(DataError, match=r"train-01\.tar is (truncated|no readable)"):
        load_task(manifest(TARS), tars, TRANSFORMS)
    path.write_bytes(b"x" * 4000)
    with pytest.raises(DataError, match=r"train-01\.tar is no readable, uncompressed tar"):
        load_task(manifest(TARS), tars, TRANSFORMS)
    path.unlink()
    with pytest.raises(DataError, match=r"1 of 2 tars of .* are missing, first .*train-01\.tar"):
        load_task(manifest(TARS), tars, TRANSFORMS)
    with pytest.raises(ManifestError, match=r"whose braces do not close"):
        load_task(manifest(TARS | {"train": "train-{00..01.tar"}), tars, TRANSFORMS)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("train-{000..003.tar", r"\[data\] names 'train-\{000\.\.003\.tar', whose braces do not close"),
        ("train-{0..99999999}.tar", "stands for more than 1000000 tars. Correct its ranges"),
        ("{0..999999}-{0..999999}.tar", "stands for more than 1000000 tars"),
        (11 * "{a,b}" + ".tar", "stands for more than 1000 tars"),
        (40 * "{a,b}" + ".tar", "stands for more than 1000000 tars"),
        (400 * "{" + "a" + 400 * "}", "stands for more than 1000000 tars"),
    ],
)
def test_a_tar_pattern_that_cannot_be_meant_is_told_by_load_and_check(tars, pattern, message, monkeypatch):
    if "1000 " in message:
        monkeypatch.setattr("gift_datasets.webdataset_tars.MOST_TARS", 1000)  # a million names take a while
    described = manifest(TARS | {"train": pattern})
    with pytest.raises(ManifestError, match=message):
        load_task(described, tars, TRANSFORMS)
    assert re.search(message, check_dataset(described, tars).problem)


def test_links_in_a_tar_are_refused(tars):
    path = tars / "animals/test.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, os.fspath(path)
        tar.addfile(link)
    with pytest.raises(DataError, match=r"test\.tar: member 'a\.png' is no plain file"):
        load_task(manifest(TARS), tars, TRANSFORMS)
