"""Evaluating a checkpoint against the plain loop: python benchmarks/evaluation.py [--quick] [--device cuda]

The plain loop is the published procedure: for each class its prompts through the text tower at the full context length, then batches of
64 images that PIL decodes each time, through torchvision's transforms. Ours: prompts in large batches cut to their length, large batches
of images, and with --evaluation-cache images prepared once on disk. Same weights, images and classes; the accuracies must be equal.
A third measurement is of label spaces: all three in one pass over the images, against the known one alone.
MTIL asks 11 images a prompt (97,209 and 8,648), Aircraft 17; so does the large world here. At ViT-B/16's size on a CPU the vision tower
dominates both sides: there the gain is that of its products.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Finding, report, seconds_each
from PIL import Image
from streaming import photo

from gift_shared.keys import slug
from gift_shared.manifests import LabelSpace, Manifests, TaskManifest
from gift_train.clip.load import load_backbone
from gift_train.clip.model import Backbone
from gift_train.data.tasks import TaskImages, load_test
from gift_train.data.transforms import image_transforms
from gift_train.evaluation.cache import EvaluationCache
from gift_train.evaluation.evaluate import evaluate_readings, evaluate_spaces
from gift_train.evaluation.label_spaces import LabelSpaces
from gift_train.methods.zero_shot import ZeroShot

PLAIN_BATCH, BATCH = 64, 256
FILE_PIXELS = 256  # of the JPEGs that ViT-B/16 is asked about; shorter sides of the benchmarks' images are between 200 and 500
ROUNDS = 3
ROUNDS_OF_SPACES = 9  # what is looked for is a few percent
SLOWDOWN = 1.10  # of all label spaces against one
EVALUATIONS = 12  # of a run of eleven tasks, the zero-shot one included


@dataclass(frozen=True)
class World:
    """A model and test sets: what one checkpoint is asked about."""

    name: str
    student: Backbone
    tests: dict[str, tuple[TaskManifest, TaskImages]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and classes")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    findings: list[Finding] = []
    details: dict[str, Any] = {"device": arguments.device, "batch": {"plain": PLAIN_BATCH, "ours": BATCH}}
    with tempfile.TemporaryDirectory() as folder:
        for make in (mini_world, large_world):
            world = make(Path(folder), arguments.device, quick=arguments.quick)
            findings += compare(world, Path(folder) / "cache", details, rounds=1 if arguments.quick else ROUNDS)
        world = many_classes(Path(folder), arguments.device, quick=arguments.quick)
        findings += compare_spaces(world, Path(folder) / "cache", details, rounds=1 if arguments.quick else ROUNDS_OF_SPACES)
    report("evaluation", findings, details, is_quick=arguments.quick, device=arguments.device)


def mini_world(folder: Path, device: str, *, quick: bool) -> World:
    """The embedded CLIP on the mini world's test images, 32 x 32."""
    from gift_mini.tasks import DATASETS, export_tasks

    names = DATASETS[:2] if quick else DATASETS
    export_tasks(folder / "mini", names)
    student = load_backbone("mini", None, device)
    return World("mini world", student, opened(student, [Manifests(()).task(name) for name in names], folder / "mini"))


def large_world(folder: Path, device: str, *, quick: bool) -> World:
    """ViT-B/16 with random weights, one dataset of JPEGs with two templates. An accelerator gets more images."""
    num_classes, num_images = (2, 44) if quick else (100, 2_200) if device != "cpu" else (5, 110)
    names = tuple(f"class number {number}" for number in range(num_classes))
    for number in range(num_images):
        path = folder / "large" / "test" / slug(names[number % num_classes]) / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number, FILE_PIXELS))
    manifest = TaskManifest(
        name="photos", display_name="Photos", about="", class_names=names, templates=("a photo of a {}.", "a picture of a {}, a thing."),
        data={"kind": "image_folder", "test": "test"}, counts={},
    )  # fmt: skip
    torch.manual_seed(0)
    student = load_backbone("ViT-B-16", "random", device)
    return World("ViT-B/16", student, opened(student, [manifest], folder / "large"))


def many_classes(folder: Path, device: str, *, quick: bool) -> World:
    """The embedded CLIP on X-TAIL's ten tasks by their own names, 1,101 classes, with 11 images a prompt as in MTIL; they are noise."""
    manifests, tests = Manifests(()), {}
    student = load_backbone("mini", None, device)
    transforms = image_transforms(student.image_settings[0], student.resize_settings)
    for task in manifests.tasks_of(manifests.order("x-tail")).values():
        names = tuple(f"{number:04d}" for number in range(len(task.class_names)))
        drawn = replace(task, data={"kind": "image_folder", "test": f"{task.name}/test", "class_folders": list(names)}, counts={})
        for name in names:
            path = folder / "many" / task.name / "test" / name
            path.mkdir(parents=True)
            for number in range(1 if quick else 11):
                pixels = np.random.default_rng([int(name), number]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / f"{number}.png")
        tests[task.name] = (drawn, load_test(drawn, folder / "many", transforms, cache_bytes=0))
    return World("1,101 classes", student, tests)


def opened(student: Backbone, manifests: list[TaskManifest], data_root: Path) -> dict[str, tuple[TaskManifest, TaskImages]]:
    """Test images of which none is kept in memory: what is compared is loading, not what an earlier evaluation left behind."""
    transforms = image_transforms(student.image_settings[0], student.resize_settings)
    return {manifest.name: (manifest, load_test(manifest, data_root, transforms, cache_bytes=0)) for manifest in manifests}


def compare(world: World, cache_folder: Path, details: dict[str, Any], rounds: int) -> Iterator[Finding]:
    """Time of a whole evaluation of all test sets, each way; the accuracies must not differ."""
    folders = iter(range(1_000))

    def ours(cache: EvaluationCache | None) -> dict[str, float]:
        with quiet():
            return evaluate_readings(ZeroShot(ZeroShot.Config()), world.student, world.tests, batch_size=BATCH, cache=cache)[""]

    filled = EvaluationCache(cache_folder / "filled")
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "plain": lambda: {name: plain_accuracy(world.student, *test) for name, test in world.tests.items()},
        "no cache": lambda: ours(None),
        "cache, first": lambda: ours(EvaluationCache(cache_folder / str(next(folders)))),
        "cache, later": lambda: ours(filled),
    }
    started = time.perf_counter()
    accuracies = {way: call() for way, call in ways.items()}
    assert all(found == accuracies["plain"] for found in accuracies.values()), accuracies
    seconds = seconds_each(ways | {"vision tower alone": lambda: vision_tower(world)}, rounds=rounds, warmup=0)
    num_images = sum(len(images) for _, images in world.tests.values())
    details[world.name] = {
        "images": num_images,
        "classes": sum(len(manifest.class_names) for manifest, _ in world.tests.values()),
        "seconds": seconds,
        "measured_for": time.perf_counter() - started,
    }
    plain = seconds["plain"]
    yield Finding(what=f"{world.name}: plain evaluation of {num_images:,} images", value=plain, unit="s")
    yield Finding(what=f"{world.name}: no cache against plain", value=plain / seconds["no cache"], unit="x", target=1)
    yield Finding(what=f"{world.name}: evaluation that fills the cache, against plain", value=plain / seconds["cache, first"], unit="x")
    yield Finding(what=f"{world.name}: later evaluations against plain", value=plain / seconds["cache, later"], unit="x", target=1)
    run = seconds["cache, first"] + (EVALUATIONS - 1) * seconds["cache, later"]
    yield Finding(
        what=f"{world.name}: {EVALUATIONS} evaluations of a run against plain", value=EVALUATIONS * plain / run, unit="x", target=1
    )


def compare_spaces(world: World, cache_folder: Path, details: dict[str, Any], rounds: int) -> Iterator[Finding]:
    """Time of an evaluation in all label spaces against that in the known one alone, whose accuracies must be the same."""
    order = {name: manifest for name, (manifest, _) in world.tests.items()}
    cache = EvaluationCache(cache_folder / "spaces")

    def seen(*asked: LabelSpace) -> dict[str, float]:
        spaces = LabelSpaces(asked, order, (len(order) // 2,))
        with quiet():
            return evaluate_spaces(ZeroShot(ZeroShot.Config()), world.student, world.tests, spaces, batch_size=BATCH, cache=cache)["known"][
                spaces.learned[0]
            ][""]

    ways = {"known": lambda: seen("known"), "all three": lambda: seen("known", "union-seen", "union-all")}
    assert ways["known"]() == ways["all three"]()  # and the cache is there
    seconds = seconds_each(ways, rounds=rounds)
    details[f"{world.name}, label spaces"] = {
        "images": sum(len(images) for _, images in world.tests.values()),
        "classes": sum(len(manifest.class_names) for manifest in order.values()),
        "seconds": seconds,
    }
    yield Finding(
        what=f"{world.name}: three label spaces against one",
        value=seconds["all three"] / seconds["known"],
        unit="of the time",
        target=SLOWDOWN,
        at_most=True,
    )


@torch.no_grad()
def plain_accuracy(student: Backbone, manifest: TaskManifest, images: TaskImages) -> float:
    """Percent, by the published procedure (METHODS 1.12)."""
    from torchvision import transforms

    pixels, mean, std = student.image_settings
    transform = transforms.Compose(
        [
            transforms.Resize(pixels, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(pixels),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    weights = []
    for class_name in manifest.class_names:
        tokens = student.tokenize([template.replace("{}", class_name) for template in manifest.templates]).to(student.device)
        features = torch.nn.functional.normalize(student.network.encode_text(tokens), dim=-1).mean(dim=0)
        weights.append(torch.nn.functional.normalize(features, dim=-1))
    classifier = torch.stack(weights, dim=1)
    loader = torch.utils.data.DataLoader(PlainImages(images, transform), batch_size=PLAIN_BATCH)
    num_correct = 0
    for batch, labels in loader:
        features = torch.nn.functional.normalize(student.network.encode_image(batch.to(student.device)), dim=-1)
        num_correct += int(((100 * features @ classifier).argmax(dim=1).cpu() == labels).sum())
    return 100 * num_correct / len(images)


class PlainImages(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The files of a test set, decoded at every look."""

    def __init__(self, images: TaskImages, transform: Callable[..., torch.Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images.source.image(index)), int(self.images.labels[index])


@torch.no_grad()
def vision_tower(world: World) -> None:
    """The vision tower alone over as many images: what no loader can save."""
    num_images = sum(len(images) for _, images in world.tests.values())
    size = world.student.image_settings[0]
    batch = torch.from_numpy(np.random.default_rng(0).standard_normal((min(BATCH, num_images), 3, size, size), dtype=np.float32))
    for start in range(0, num_images, BATCH):
        world.student.encode_images(batch[: num_images - start].to(world.student.device)).sum().item()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress lines are not part of the table."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


if __name__ == "__main__":
    main()
