"""Look-alikes of the MTIL datasets: the folders and lists that torchvision's classes expect, with a few tiny images of every class.

An image's colour tells its label, so that a test sees whether image and label still belong together.
"""

import hashlib
import io
import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from gift_shared.manifests import Manifests, TaskManifest

NUM_TRAIN, NUM_TEST = 3, 2  # images of each class


@dataclass(frozen=True)
class LookAlike:
    """A built dataset; `manifest` is the shipped one with the counts of the look-alike."""

    manifest: TaskManifest
    root: Path


def colour(label):
    return (label % 20 * 12, label // 20 * 12, 0)


def label_of(pixel):
    return round(pixel[0] / 12) + 20 * round(pixel[1] / 12)


def jpeg(label):
    """8 x 8 pixels; label 0, which is black, is saved as greyscale: such files are in most of the datasets."""
    buffer = io.BytesIO()
    image = Image.new("RGB", (8, 8), colour(label))
    (image if label else image.convert("L")).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def per_split(num_classes):
    """(split, label, number) of every image; numbers are unique."""
    for split, count, first in (("train", NUM_TRAIN, 0), ("test", NUM_TEST, NUM_TRAIN)):
        for label in range(num_classes):
            for copy in range(count):
                yield split, label, label * 10 + first + copy


def on_disk(names):
    return [name.replace(" ", "_") for name in names]


def aircraft(root, names, monkeypatch):
    data = root / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "".join(f"{name}\n" for name in names))
    lines = {"train": "", "test": ""}
    for split, label, number in per_split(len(names)):
        write(data / f"images/{number:07d}.jpg", jpeg(label))
        lines[split] += f"{number:07d} {names[label]}\n"
    for split, text in lines.items():
        write(data / f"images_variant_{split}.txt", text)


def caltech101(root, names, monkeypatch):
    folders = Manifests().task("caltech101").data["class_folders"]
    for label, folder in enumerate(["BACKGROUND_Google", *folders]):
        for number in range(NUM_TRAIN + NUM_TEST):
            write(root / f"caltech101/101_ObjectCategories/{folder}/image_{number + 1:04d}.jpg", jpeg(max(label - 1, 0)))


def cifar(root, names, monkeypatch, dataset_class, folder, label_key, files, meta):
    folder = root / folder
    for split, name in files.items():
        labels = [label for part, label, _ in per_split(len(names)) if part == split]
        pixels = np.array([np.full((32, 32, 3), colour(label)).transpose(2, 0, 1).reshape(-1) for label in labels], dtype=np.uint8)
        write(folder / name, pickle.dumps({"data": pixels, label_key: labels}))
    write(folder / meta["filename"], pickle.dumps({meta["key"]: on_disk(names)}))
    monkeypatch.setattr(dataset_class, "train_list", [[files["train"], md5(folder / files["train"])]])
    monkeypatch.setattr(dataset_class, "test_list", [[files["test"], md5(folder / files["test"])]])
    monkeypatch.setattr(dataset_class, "meta", meta | {"md5": md5(folder / meta["filename"])})


def cifar100(root, names, monkeypatch):
    files = {"train": "train", "test": "test"}
    cifar(root, names, monkeypatch, datasets.CIFAR100, "cifar-100-python", "fine_labels", files, datasets.CIFAR100.meta)


def cifar10(root, names, monkeypatch):
    files = {"train": "data_batch_1", "test": "test_batch"}
    cifar(root, names, monkeypatch, datasets.CIFAR10, "cifar-10-batches-py", "labels", files, datasets.CIFAR10.meta)


def dtd(root, names, monkeypatch):
    lines = {"train": "", "test": ""}
    for split, label, number in per_split(len(names)):
        file = f"{names[label]}/{names[label]}_{number:04d}.jpg"
        write(root / "dtd/dtd/images" / file, jpeg(label))
        lines[split] += f"{file}\n"
    for split, text in lines.items():
        write(root / f"dtd/dtd/labels/{split}1.txt", text)


def eurosat(root, names, monkeypatch):
    for label, folder in enumerate(Manifests().task("eurosat").data["class_folders"]):
        for number in range(NUM_TRAIN + NUM_TEST):
            write(root / f"eurosat/2750/{folder}/{folder}_{number + 1}.jpg", jpeg(label))


def flowers(root, names, monkeypatch):
    folder, ids, labels = root / "flowers-102", {"train": [], "test": []}, []
    for image_id, (split, label, _) in enumerate(per_split(len(names)), start=1):
        write(folder / f"jpg/image_{image_id:05d}.jpg", jpeg(label))
        ids[split].append(image_id)
        labels.append(label + 1)  # the official labels start at 1
    savemat(folder / "setid.mat", {"trnid": ids["train"], "tstid": ids["test"], "valid": ids["test"]})
    savemat(folder / "imagelabels.mat", {"labels": labels})
    files = {"image": ("102flowers.tgz", "")} | {key: (name, md5(folder / name)) for key, name in FLOWERS_LISTS.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)


FLOWERS_LISTS = {"label": "imagelabels.mat", "setid": "setid.mat"}


def food(root, names, monkeypatch):
    meta = {"train": {}, "test": {}}
    for split, label, number in reversed(list(per_split(len(names)))):  # the file's order of classes must not matter
        name = on_disk(names)[label]
        write(root / f"food-101/images/{name}/{number}.jpg", jpeg(label))
        meta[split].setdefault(name, []).append(f"{name}/{number}")
    for split, table in meta.items():
        write(root / f"food-101/meta/{split}.json", json.dumps(table))


def mnist(root, names, monkeypatch):
    for split, stem in (("train", "train"), ("test", "t10k")):
        labels = [label for part, label, _ in per_split(len(names)) if part == split]
        pixels = np.repeat(np.array(labels, dtype=np.uint8) * 12, 28 * 28)
        header = b"".join(size.to_bytes(4, "big") for size in (0x803, len(labels), 28, 28))
        write(root / f"MNIST/raw/{stem}-images-idx3-ubyte", header + pixels.tobytes())
        write(root / f"MNIST/raw/{stem}-labels-idx1-ubyte", (0x801).to_bytes(4, "big") + len(labels).to_bytes(4, "big") + bytes(labels))


def oxford_pet(root, names, monkeypatch):
    folder, lines = root / "oxford-iiit-pet", {"train": "", "test": ""}
    for split, label, number in per_split(len(names)):
        image_id = f"{on_disk(names)[label].lower()}_{number}"
        write(folder / f"images/{image_id}.jpg", jpeg(label))
        lines[split] += f"{image_id} {label + 1} 1 1\n"
    write(folder / "annotations/trainval.txt", lines["train"])
    write(folder / "annotations/test.txt", lines["test"])


def stanford_cars(root, names, monkeypatch):
    folder, rows = root / "stanford_cars", {"train": [], "test": []}
    for split, label, number in per_split(len(names)):
        write(folder / f"cars_{split}/{number:05d}.jpg", jpeg(label))
        rows[split].append((f"{number:05d}.jpg", label + 1))
    (folder / "devkit").mkdir()
    lists = {"train": folder / "devkit/cars_train_annos.mat", "test": folder / "cars_test_annos_withlabels.mat"}
    for split, path in lists.items():
        savemat(path, {"annotations": np.array(rows[split], dtype=[("fname", object), ("class", np.int64)])})
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(names, dtype=object)})


def sun397(root, names, monkeypatch):
    folders = [f"{name[0]}/{name}" for name in on_disk(names)]
    write(root / "SUN397/ClassName.txt", "".join(f"/{folder}\n" for folder in folders))
    for label, folder in enumerate(folders):
        for number in range(NUM_TRAIN + NUM_TEST):
            write(root / f"SUN397/{folder}/sun_{label:03d}{number}.jpg", jpeg(label))


BUILDERS = {
    builder.__name__: builder
    for builder in (
        aircraft, caltech101, cifar10, cifar100, dtd, eurosat, flowers, food, mnist, oxford_pet, stanford_cars, sun397,
    )
}  # fmt: skip


@pytest.fixture
def look_alike(tmp_path, monkeypatch):
    """A function: dataset name -> LookAlike, built in this test's folder."""

    def build(name):
        manifest = Manifests().task(name)
        num_classes = len(manifest.class_names)
        if "split" in manifest.data:
            total = (NUM_TRAIN + NUM_TEST) * num_classes
            counts = {"train": int(0.8 * total), "test": total - int(0.8 * total)}
        else:
            counts = {"train": NUM_TRAIN * num_classes, "test": NUM_TEST * num_classes}
        BUILDERS[name](tmp_path, manifest.class_names, monkeypatch)
        return LookAlike(replace(manifest, counts=counts), tmp_path)

    return build


@pytest.fixture
def label_of_pixel():
    """A function: RGB pixel of a look-alike's image -> its label."""
    return label_of
