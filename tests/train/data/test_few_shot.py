"""Orders with a few training images a class: which images, on record, and told where a class has too few."""

import json

import numpy as np
import pytest
from PIL import Image

from gift_datasets.few_shot import FewShot, few_shot, write_few_shot
from gift_datasets.images import ImageSource
from gift_shared.decoding import Decoded
from gift_shared.errors import DataError, ManifestError
from gift_shared.image_files import PassedOver
from gift_shared.manifests import Manifests, TaskManifest

CLASSES = ("owl", "fox", "newt")
RULE = [9, 28, 29, 43, 53, 59]  # two of each class of `source` by seed 42


class Labelled(ImageSource):
    """Images whose labels are all that matters."""

    def __init__(self, labels):
        self.labels = np.array(labels)
        self.class_names_found = None
        self.passed_over = PassedOver()

    def decoded(self, index):
        return Decoded(Image.new("RGB", (4, 4)), ())

    def encoded(self, index):
        return None

    def listing(self, index):
        return None

    def identity(self):
        return None

    def where(self, index):
        return f"image {index}"


def manifest(name="animals"):
    return TaskManifest(name=name, display_name="", class_names=CLASSES, templates=("{}",), data=None, counts={}, about="")


def source():
    return Labelled(np.random.default_rng(0).permutation(np.repeat(np.arange(3), (20, 30, 10))))


def test_every_class_has_its_shots_in_the_order_of_the_source():
    chosen = few_shot(manifest(), source(), FewShot(4, 42))
    assert np.bincount(chosen.labels).tolist() == [4, 4, 4]
    assert (np.diff(chosen.indices) > 0).all()


def test_the_rule_is_the_documented_one_and_stays():
    assert few_shot(manifest(), source(), FewShot(2, 42)).indices.tolist() == RULE


def test_fewer_shots_are_among_more_and_seeds_and_datasets_differ():
    few, more = (set(few_shot(manifest(), source(), FewShot(shots, 42)).indices.tolist()) for shots in (2, 5))
    assert few < more
    assert more != set(few_shot(manifest(), source(), FewShot(5, 43)).indices.tolist())
    assert more != set(few_shot(manifest("beasts"), source(), FewShot(5, 42)).indices.tolist())


def test_all_images_of_a_class_may_be_asked_for_and_not_one_more():
    assert len(few_shot(manifest(), source(), FewShot(10, 1))) == 30
    with pytest.raises(DataError, match="animals: class 'newt' has 10 training images, the order asks for shots = 11"):
        few_shot(manifest(), source(), FewShot(11, 1))


def test_a_class_that_may_lack_images_gives_all_it_has_and_the_others_their_shots():
    chosen = few_shot(manifest(), source(), FewShot(12, 42, may_lack=True))
    assert np.bincount(chosen.labels).tolist() == [12, 12, 10]
    assert set(few_shot(manifest(), source(), FewShot(10, 42)).indices) < set(chosen.indices)


def test_the_images_are_on_record(tmp_path):
    chosen = few_shot(manifest(), source(), FewShot(2, 42))
    write_few_shot(tmp_path / "animals.json", manifest(), chosen)
    told = json.loads((tmp_path / "animals.json").read_text())["images"]
    assert [image["index"] for image in told] == chosen.indices.tolist()
    assert told[0] == {"index": RULE[0], "class_name": CLASSES[source().labels[RULE[0]]], "image": f"image {RULE[0]}"}


def test_shots_of_an_order_are_a_number_above_none(tmp_path):
    (tmp_path / "orders").mkdir()
    text = 'name = "bad"\ndisplay_name = "Bad"\npretraining_source = "mini_base"\ntasks = ["mini_shapes"]\nrecipes = "mini"\nshots = 0\n'
    (tmp_path / "orders/bad.toml").write_text(text)
    with pytest.raises(ManifestError, match="shots must be a positive integer, found 0"):
        Manifests((tmp_path,)).order("bad")


def test_the_shipped_orders_are_those_of_the_papers():
    five, sixteen = (Manifests().order(f"mtil-few-shot-{shots}") for shots in (5, 16))
    assert (five.shots, five.tasks) == (5, Manifests().order("mtil-1").tasks)
    assert (sixteen.shots, set(five.tasks) - set(sixteen.tasks)) == (16, {"eurosat", "mnist", "oxford_pet"})


def test_no_shipped_order_asks_for_more_shots_than_a_class_can_have():
    manifests = Manifests()
    for order in map(manifests.order, manifests.names("orders")):
        for name, dataset in manifests.datasets_of(order).items() if order.shots is not None else ():
            mean = dataset.counts["train"] / len(dataset.class_names)
            assert order.shots <= mean or name in order.fewer_shots, (order.name, name)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('shots = 2\nfewer_shots = ["mini_flags"]', "Unknown task 'mini_flags'"),
        ('fewer_shots = ["mini_shapes"]', "fewer_shots means nothing without shots"),
    ],
)
def test_tasks_that_may_lack_images_are_tasks_of_an_order_with_shots(tmp_path, lines, told):
    (tmp_path / "orders").mkdir()
    text = 'name = "bad"\ndisplay_name = "Bad"\npretraining_source = "mini_base"\ntasks = ["mini_shapes"]\nrecipes = "mini"\n'
    (tmp_path / "orders/bad.toml").write_text(text + lines + "\n")
    with pytest.raises(ManifestError, match=told):
        Manifests((tmp_path,)).order("bad")
