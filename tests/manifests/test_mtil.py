"""The MTIL facts: class lists, templates and splits as in the reference, and the published captions and image seeds exactly."""

import hashlib

import pytest

from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest, Seeding
from gift_shared.manifests import Manifests
from gift_shared.schema import PlanKind

# sha256 of each published caption list, captions joined by line feeds: 10,000 per task in order 1, 1,000 in order 2.
PUBLISHED_CAPTIONS = {
    "mtil-1": {
        "aircraft": "cb4b621e11696c4422f57badbc8581235698d026e102058efdcff3b2613cf8c3",
        "caltech101": "1dd4e77b9da55f40b3142a46c3c948f0e576e0ab9f9099a7209b9ebda48830ac",
        "cifar100": "696e57060de32ef5f373d6d280ab4e829308a4200d1b6a53dce82384aed1a571",
        "dtd": "7617c1178ef8b15f1151c7d78e3885135ba25c33a852324a869a2d633c8f8e99",
        "eurosat": "d92cd430c1e5232ec76010f4eba9bfc63c240ed5239c9891a9b1e487deb44845",
        "flowers": "2b94bd280a6d20ca731779e898fd9424fb68e969fe2832c525f51f2830a4e19b",
        "food": "4fab3e92de7172d7998a84396e824dfe7d85d935bc27ad2f9d062923670270c7",
        "mnist": "60dfb4c43591380827df788da384fc9f2800fc19dff7e2a9804bbf5c35b22f8d",
        "oxford_pet": "9d57e4658582c5de513b85041d47e8e213d26e43e3e325c07294cb9a1ede2d4c",
        "stanford_cars": "3cb7d7aff8368009d1e87a38108749ecd4772b8ee727a6588eb93aaf7c1e8d22",
        "sun397": "5ecb6f3884d5ad543f8794ccc2bc1e78097084b2444da404d65d680af951b192",
    },
    "mtil-2": {
        "stanford_cars": "9a4f31978e1021a58a51de2a2283d8ead88f9549de3931c6171949c4ef3169c2",
        "food": "2a1525fc220ee8a27038c1cda945cac19518e295d9e03b66fb51cf7e9ed03b96",
        "mnist": "84118d4e15b48ca7148b3a2862f07bd59ca96b29211f23a89dabbc388a99ec8e",
        "oxford_pet": "5a05b2cf3fe42338ac4df32804207764b538bce0f3c7635d3e046b3a3b986680",
        "flowers": "292d00c0b2754f3ed629e7e3c19097bfa0f8329606e3d2fd707bd7b790150e50",
        "sun397": "ca2b8e60d2fd6a4c3695315ba4f6157a8ae9df06b601f783cbdc3c22ed0c611f",
        "aircraft": "b4fc435c8e733538a0de4e968f96fd7247e3b740bd6c7a25e837ad01038fa1c9",
        "caltech101": "ce658f0bf9ff81691a43e1dd1fd4f0e2c1070b8f63f324e24513731ec1100f1a",
        "dtd": "90fe81999083586676210c1f99e5d1823ba8047fedbb40fd2a45baee5a2c6948",
        "eurosat": "76f230393c6ef17cd5e5e16dade05a14a64d16f3a2594f0e08814ec7865ae613",
        "cifar100": "3c24e59bf1d598c9bd405c2f97a4f970c9bb83af6e9a69f8bfcfa72cbfe9c3fe",
    },
}
CAPTIONS_PER_TASK = {"mtil-1": 10_000, "mtil-2": 1_000}

# (classes, templates, training images, test images); the sizes of aircraft and others are the official ones, of 80/20 splits computed.
SIZES = {
    "aircraft": (100, 2, 3334, 3333),
    "caltech101": (101, 34, 6941, 1736),
    "cifar100": (100, 18, 50000, 10000),
    "dtd": (47, 8, 1880, 1880),
    "eurosat": (10, 3, 21600, 5400),
    "flowers": (102, 1, 1020, 6149),
    "food": (101, 1, 75750, 25250),
    "mnist": (10, 1, 60000, 10000),
    "oxford_pet": (37, 1, 3680, 3669),
    "stanford_cars": (196, 9, 8144, 8041),
    "sun397": (397, 2, 87003, 21751),
}


def plan(order, images_per_task, seeding=Seeding.PUBLISHED):
    request = PlanRequest(kind=PlanKind.PER_TASK, order=order, images_per_task=images_per_task, seed=42, seeding=seeding)
    rows, _ = make_plan(request, Manifests())
    by_task = {}
    for row in rows.select(["task", "index", "caption", "sample_seed"]).to_pylist():
        by_task.setdefault(row["task"], []).append(row)
    return by_task


def digest(rows):
    return hashlib.sha256("\n".join(row["caption"] for row in rows).encode()).hexdigest()


@pytest.fixture(scope="module")
def first_order():
    return plan("mtil-1", 10_000)


def test_all_110000_published_captions_of_order_1_come_out(first_order):
    assert {task: digest(rows) for task, rows in first_order.items()} == PUBLISHED_CAPTIONS["mtil-1"]


def test_all_11000_published_captions_of_order_2_come_out():
    assert {task: digest(rows) for task, rows in plan("mtil-2", 1_000).items()} == PUBLISHED_CAPTIONS["mtil-2"]


def test_a_thousand_images_per_task_are_the_first_of_each_list_of_order_1(first_order):
    for task, rows in plan("mtil-1", 1_000).items():
        assert rows == first_order[task][:1_000]


def test_published_seeds_follow_position_and_index(first_order):
    for position, task in enumerate(Manifests().order("mtil-1").tasks, start=1):
        seeds = [row["sample_seed"] for row in first_order[task]]
        assert seeds == list(range(419_900_000 + 100_000 * (position - 1), 419_900_000 + 100_000 * (position - 1) + 10_000))


def test_orders_hold_the_same_eleven_tasks_and_start_from_imagenet():
    orders = [Manifests().order(name) for name in ("mtil-1", "mtil-2")]
    assert set(orders[0].tasks) == set(orders[1].tasks) == set(SIZES)
    assert list(orders[0].tasks) == sorted(SIZES)
    assert [order.pretraining_source for order in orders] == ["imagenet", "imagenet"]
    assert [order.captions_drawn for order in orders] == [10_000, 1_000]
    assert [order.recipes for order in orders] == ["mtil", "mtil"]


@pytest.mark.parametrize("name", SIZES)
def test_classes_templates_and_counts_are_those_of_the_benchmark(name):
    manifest = Manifests().task(name)
    found = (len(manifest.class_names), len(manifest.templates), manifest.counts["train"], manifest.counts["test"])
    assert found == SIZES[name]
    assert manifest.templates[0].startswith("a ")


def test_imagenet_names_and_templates_are_open_clips():
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    manifest = Manifests().task("imagenet")
    assert list(manifest.class_names) == list(IMAGENET_CLASSNAMES)
    assert manifest.templates[0] == "a photo of a {}."
    assert sorted(manifest.templates) == sorted(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def test_duplicate_names_stay_entries_of_their_own():
    names = Manifests().task("imagenet").class_names
    assert [index for index, name in enumerate(names) if name in ("missile", "sunglasses")] == [657, 744, 836, 837]
    sources = ("imagenet", *Manifests().order("mtil-1").tasks)
    pool = [caption for name in sources for caption in Manifests().task(name).first_template_captions]
    assert (len(pool), len(set(pool))) == (2_201, 2_115)


def test_names_that_invite_cleaning_are_as_published():
    names = {name: Manifests().task(name).class_names for name in SIZES}
    assert names["caltech101"][29] == "head of a  crocodile"  # two spaces
    assert names["caltech101"][95] == "water lilly"
    assert names["flowers"][59] == "pink-yellow dahlia"
    assert names["mnist"][0] == "0 - zero"
    assert sum("/" in name for name in names["sun397"]) == 126
    assert names["sun397"][206:208] == ("jail/indoor", "jail cell")
