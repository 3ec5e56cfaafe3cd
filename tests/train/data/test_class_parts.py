"""The steps that a dataset's classes are cut into: each has its classes' images and no others, whatever the data lie in."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gift_datasets import parts as parts_room
from gift_datasets.few_shot import FewShot, write_few_shot
from gift_shared.class_split import SplitRule, split_classes
from gift_shared.errors import DataError, ManifestError
from gift_shared.manifests import Part, TaskManifest
from gift_train.data.tasks import load_task, load_tasks, load_tests
from gift_train.data.transforms import image_transforms

CLASSES = ("ant", "bee", "cow", "doe", "elk")
ORDER = (3, 0, 4, 2, 1)
STEPS = ((3,), (0, 4), (2, 1))  # of a first step of one class
TRANSFORMS = image_transforms(8)
SEEDED = {"train_fraction": 0.5, "seed": 0}
DATA = {
    "image_folder": {"kind": "image_folder", "train": "zoo/train", "test": "zoo/test"},
    "webdataset": {"kind": "webdataset", "train": "train.tar", "test": "test.tar"},
    "torchvision": {"kind": "torchvision", "class": "ImageFolder", "root": "zoo/train", "all_args": {}, "split": SEEDED},
    "listed": {
        "kind": "image_folder",
        "all": "zoo/train",
        "split": {"test_files": [f"{name}/{n}.png" for name in CLASSES for n in (1, 4)]},
    },
}


def picture(label, number):
    """Its red value is its class, its green one its number: what stands in an image tells which it is."""
    return Image.new("RGB", (8, 8), (40 * label, number, 0))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 6), ("test", 3)):
        with tarfile.open(root / f"{part}.tar", "w") as tar:
            for label, name in enumerate(CLASSES):
                (root / "zoo" / part / name).mkdir(parents=True)
                for number in range(count):
                    content = png(picture(label, number))
                    (root / "zoo" / part / name / f"{number}.png").write_bytes(content)
                    for suffix, data in ((".png", content), (".cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{label}-{number}{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    return root


def zoo(kind="image_folder", **counts):
    return TaskManifest(name="zoo", display_name="Zoo", class_names=CLASSES, templates=("a {}.",), data=DATA[kind], counts=counts, about="")


def steps(dataset):
    split = split_classes("here", "zoo", 5, SplitRule(num_steps=3, first_step_classes=1, class_order=ORDER))
    assert split.steps == STEPS
    return [
        replace(dataset, name=name, class_names=tuple(CLASSES[label] for label in labels), part=Part(dataset, labels))
        for name, labels in zip(split.step_names(), split.steps, strict=True)
    ]


def seen(images):
    """(class in the dataset, number) of each image, by what stands in it."""
    return [tuple(np.array(images.source.image(index))[0, 0, :2] // (40, 1)) for index in range(len(images))]


@pytest.mark.parametrize("kind", DATA)
def test_each_step_has_the_images_of_its_classes_under_labels_of_its_own(root, kind):
    dataset = zoo(kind)
    whole, found = load_task(dataset, root, TRANSFORMS), load_tasks(steps(dataset), root, TRANSFORMS)
    for part in ("train", "test"):
        for task, labels in zip(found.values(), STEPS, strict=True):
            images = getattr(task, part)
            assert [labels[label] for label in images.labels] == [label for label, _ in seen(images)]
        together = [image for task in found.values() for image in seen(getattr(task, part))]
        assert sorted(together) == sorted(seen(getattr(whole, part)))
    assert load_tests(steps(dataset), root, TRANSFORMS)["zoo-03"].labels.tolist() == found["zoo-03"].test.labels.tolist()


def test_a_dataset_is_opened_once_for_all_steps_and_its_counts_are_of_the_whole(root, monkeypatch):
    opened = []
    open_image_folder = parts_room.open_image_folder
    monkeypatch.setattr(parts_room, "open_image_folder", lambda *given: opened.append(given[2]) or open_image_folder(*given))
    load_tasks(steps(zoo(train=30, test=15)), root, TRANSFORMS)
    assert opened == ["zoo/train", "zoo/test"]
    with pytest.raises(DataError, match=r"zoo: found 30 train images.* the manifest's \[counts\] says 31"):
        load_tasks(steps(zoo(train=31)), root, TRANSFORMS)


def test_few_shots_of_a_step_are_those_of_the_whole_dataset(root, tmp_path):
    whole = load_task(zoo(), root, TRANSFORMS, shots=FewShot(2, 3))
    found = load_tasks(steps(zoo()), root, TRANSFORMS, shots_of={"zoo": FewShot(2, 3)})
    assert sorted(image for task in found.values() for image in seen(task.train)) == sorted(seen(whole.train))
    write_few_shot(tmp_path / "few.json", found["zoo-02"].manifest, found["zoo-02"].train.source)
    assert "zoo/train/elk" in (tmp_path / "few.json").read_text()
    with pytest.raises(DataError, match=r"zoo-01: class 'doe' has 6 training images, the order asks for shots = 7"):
        load_tasks(steps(zoo()), root, TRANSFORMS, shots_of={"zoo": FewShot(7, 3)})


@pytest.mark.parametrize("kind", DATA)
def test_digests_tell_steps_and_label_orders_apart(root, kind):
    dataset = zoo(kind)
    found = [task.listing_digest() for task in load_tasks(steps(dataset), root, TRANSFORMS).values()]
    assert len({*found, load_task(dataset, root, TRANSFORMS).listing_digest()}) == 4
    turned = replace(steps(dataset)[2], part=Part(dataset, STEPS[2][::-1]))
    assert load_task(turned, root, TRANSFORMS).listing_digest() != found[2]
    identity = {load_task(task, root, TRANSFORMS).test.source.identity() for task in (*steps(dataset), turned)}
    assert len(identity) == 4


def test_a_list_of_test_files_cuts_a_folder_in_two(root):
    task = load_task(zoo("listed"), root, TRANSFORMS)
    assert {number for _, number in seen(task.test)} == {1, 4}
    assert {number for _, number in seen(task.train)} == {0, 2, 3, 5}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": {"test_files": ["ant/9.png"]}}, DataError, r"zoo/train/ant/9.png, which \[data.split\] test_files names, is not there"),
        ({"split": {"test_files": []}}, ManifestError, r"test_files is a list of paths below the folder of kind image_folder"),
        ({"kind": "webdataset", "all": "train.tar"}, ManifestError, r"test_files is a list of paths below the folder of kind image_folder"),
        ({"split": {"test_files": ["ant/1.png"], "seed": 1}}, ManifestError, r"or test_files alone"),
    ],
)
def test_a_list_of_test_files_that_cannot_be_is_told(root, change, error, message):
    with pytest.raises(error, match=message):
        load_task(replace(zoo("listed"), data=DATA["listed"] | change), root, TRANSFORMS)


def test_a_step_without_test_images_is_told(root):
    listed = {"kind": "image_folder", "all": "zoo/train", "split": {"test_files": ["ant/1.png"]}}
    with pytest.raises(DataError, match=r"zoo-01: none of its 1 classes has test images in zoo"):
        load_tasks(steps(replace(zoo(), data=listed)), root, TRANSFORMS)
