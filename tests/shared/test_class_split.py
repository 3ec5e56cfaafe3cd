"""One dataset cut into steps by its classes: which classes, in which order, and every split that cannot be in one line."""

import json
from pathlib import Path

import pytest

from gift_shared.class_split import SplitRule, split_classes
from gift_shared.errors import ManifestError
from gift_shared.manifests import Manifests

NAMES = ["ant", "bee", "cow", "doe", "elk", "fox"]
TASK = f'name = "zoo"\ndisplay_name = "Zoo"\nclass_names = {json.dumps(NAMES)}\ntemplates = ["a {{}}.", "the {{}}."]\n'
ORDER = 'name = "cut"\ndisplay_name = "Cut"\npretraining_source = "imagenet"\ntasks = ["zoo"]\nrecipes = "cil"\n'


@pytest.fixture
def cut(tmp_path: Path):
    """A function: more of an order's manifest -> (manifests, the order)."""
    for kind in ("tasks", "orders"):
        (tmp_path / kind).mkdir()
    (tmp_path / "tasks/zoo.toml").write_text(TASK)

    def read(more: str, order: str = ORDER):
        (tmp_path / "orders/cut.toml").write_text(order + more)
        manifests = Manifests((tmp_path,))
        return manifests, manifests.order("cut")

    return read


def test_a_dataset_is_cut_into_steps_of_equal_size_in_label_order(cut) -> None:
    manifests, order = cut("steps = 3")
    assert order.tasks == ("zoo-01", "zoo-02", "zoo-03")
    assert order.split.steps == ((0, 1), (2, 3), (4, 5))
    assert (order.protocol, order.label_space) == ("class-incremental", "union-seen")
    last = manifests.tasks_of(order)["zoo-03"]
    assert (last.name, last.display_name, last.class_names) == ("zoo-03", "Zoo 3/3", ("elk", "fox"))
    assert last.first_template_captions == ("a elk.", "a fox.")
    assert (last.dataset.name, last.dataset_labels) == ("zoo", (4, 5))


def test_a_first_step_of_its_own_size_an_order_of_classes_and_templates(cut) -> None:
    manifests, order = cut('steps = 3\nfirst_step_classes = 4\nclass_order = [5, 0, 3, 1, 2, 4]\ntemplates = ["a bad photo of a {}."]')
    assert order.split.steps == ((5, 0, 3, 1), (2,), (4,))
    first = manifests.tasks_of(order)["zoo-01"]
    assert first.class_names == ("fox", "ant", "doe", "bee")
    assert first.prompts == tuple(f"a bad photo of a {name}." for name in first.class_names)
    assert manifests.task("zoo").templates == ("a {}.", "the {}.")


def test_templates_are_of_any_order_and_label_spaces_of_a_split_can_be_others(cut) -> None:
    manifests, order = cut('templates = ["one {}."]\nlabel_space = "known"')
    assert (order.tasks, order.split, order.protocol) == (("zoo",), None, "mtil")
    assert manifests.tasks_of(order)["zoo"].prompts[0] == "one ant."
    assert cut('steps = 2\nlabel_space = "known"')[1].label_space == "known"
    assert cut("")[1].label_space == "known"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("steps = 4", "steps = 4 does not divide the 6 classes of zoo. Possible are 1, 2, 3, 6"),
        (
            "steps = 3\nfirst_step_classes = 3",
            "leaves 3 of the 6 classes of zoo, which the other 2 of steps = 3 do not divide. .* may be 2, 4",
        ),
        ("steps = 2\nfirst_step_classes = 9", "leaves 0 of the 6 classes of zoo, which the other 1 of steps = 2 do not divide"),
        ("steps = 3\nclass_order = [0, 1, 2, 3, 4, 4]", "no order of the labels 0 to 5 of zoo: 4 stands twice"),
        ("steps = 3\nclass_order = [0, 1, 2, 3, 4]", "no order of the labels 0 to 5 of zoo: 5 is missing, 1 in all"),
        ("steps = 3\nclass_order = [0, 1, 2, 3, 4, 6]", "there is no label 6"),
        ('steps = 3\nclass_order = ["ant"]', "class_order must hold labels, whole numbers from 0 on, found 'ant'"),
        ("steps = 0", "steps must be a positive integer, found 0"),
        ("steps = true", "steps must be a positive integer, found True"),
        ("class_order = [0]", "class_order goes with steps"),
        ("first_step_classes = 2", "first_step_classes goes with steps"),
        ('templates = ["a photo."]', "templates: template 'a photo.' must hold"),
    ],
)
def test_a_split_that_cannot_be_is_one_line(cut, more: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        cut(more)


def test_steps_cut_one_dataset_and_no_more(cut) -> None:
    with pytest.raises(ManifestError, match=r"steps cuts one dataset by its classes, the order names 2: zoo, mnist"):
        cut("steps = 3", ORDER.replace('["zoo"]', '["zoo", "mnist"]'))


def test_step_numbers_sort_however_many_there_are() -> None:
    names = split_classes("here", "d", 120, SplitRule(num_steps=120)).step_names()
    assert names[0] == "d-001"
    assert list(names) == sorted(names)


def test_shipped_orders_have_the_published_shapes() -> None:
    shapes = {
        "cil-cifar100-10": [10] * 10, "cil-cifar100-20": [5] * 20, "cil-cifar100-50": [2] * 50,
        "cil-tinyimagenet-5": [100] + [20] * 5, "cil-tinyimagenet-10": [100] + [10] * 10, "cil-tinyimagenet-20": [100] + [5] * 20,
        "cil-imagenet100-10": [10] * 10, "cil-imagenet100-50-5": [50] + [5] * 10, "cil-imagenet-r-20": [20] * 10,
        "mini-cil": [6] + [4] * 5,
    }  # fmt: skip
    for name, sizes in shapes.items():
        assert [len(step) for step in Manifests().order(name).split.steps] == sizes, name


def test_first_classes_of_the_published_orders() -> None:
    """A slip in an order of classes or in a list of names shows here. Read off the published files."""
    first = {
        "cil-cifar100-50": ("television", "apple"), "cil-tinyimagenet-5": ("Persian cat", "stick insect"),
        "cil-imagenet100-10": ("sidewinder rattlesnake", "kingsnake"), "cil-imagenet-r-20": ("ladybug", "jeep"),
    }  # fmt: skip
    for name, classes in first.items():
        tasks = Manifests().tasks_of(Manifests().order(name))
        assert next(iter(tasks.values())).class_names[:2] == classes, name
