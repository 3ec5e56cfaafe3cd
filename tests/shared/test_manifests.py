"""Manifests: a user's own beside the shipped ones, and every mistake in one named line."""

from pathlib import Path

import pytest

from gift_shared.errors import ManifestError
from gift_shared.manifests import Manifests

TASK = 'name = "cats"\ndisplay_name = "Cats"\nclass_names = ["tabby", "manx"]\ntemplates = ["a photo of a {}.", "art of a {}."]\n'
ORDER = 'name = "mine"\ndisplay_name = "Mine"\npretraining_source = "cats"\ntasks = ["cats"]\nrecipes = "mini"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, name, text in (("tasks", "cats", TASK), ("orders", "mine", ORDER)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.toml").write_text(text)
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "web.txt").write_text("one\n")
    return tmp_path


def test_a_users_folder_stands_beside_the_shipped_one(folder: Path) -> None:
    manifests = Manifests((folder,))
    assert manifests.task("cats").first_template_captions == ("a photo of a tabby.", "a photo of a manx.")
    assert manifests.task("cats").data is None
    assert manifests.order("mine").captions_drawn is None
    assert {"cats", "mini_digits"} <= set(manifests.names("tasks"))
    assert manifests.captions_file("web.txt") == folder / "captions" / "web.txt"


def test_a_users_manifest_comes_before_a_shipped_one_of_its_name(folder: Path) -> None:
    (folder / "tasks" / "mini_digits.toml").write_text(TASK.replace('"cats"', '"mini_digits"'))
    assert Manifests((folder,)).task("mini_digits").class_names == ("tabby", "manx")


def test_a_manifest_can_be_given_by_path(folder: Path) -> None:
    assert Manifests().task(str(folder / "tasks" / "cats.toml")).display_name == "Cats"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('templates = ["a photo."]', "template 'a photo.' must hold '{}' exactly once"),
        ('templates = ["{} and {}"]', "must hold '{}' exactly once"),
        ("class_names = []", "'class_names' is empty"),
        ('class_names = ["tabby", " "]', "every entry of 'class_names' must be a non-empty string"),
        ('class_names = "tabby"', "'class_names' must be a list, found str"),
        ('name = "dogs"', "name = 'dogs' must equal the file's name 'cats'"),
        ("templatse = []", "Unknown key 'templatse'. Did you mean 'templates'?"),
        ('data = {kind = "imagefolder"}', "Unknown kind 'imagefolder'. Did you mean 'image_folder'?"),
        ("counts = {train = 0}", "expected train and test as positive integers, found train = 0"),
        ("counts = [", "is not valid TOML"),
    ],
)
def test_a_wrong_line_in_a_task_is_named(folder: Path, line: str, message: str) -> None:
    key = line.split(" ")[0]
    kept = [own for own in TASK.splitlines() if not own.startswith(f"{key} ")]
    (folder / "tasks" / "cats.toml").write_text("\n".join([*kept, line]))
    with pytest.raises(ManifestError) as error:
        Manifests((folder,)).task("cats")
    assert message in str(error.value)
    assert "cats.toml" in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('tasks = ["cats", "cats"]', "a task stands twice in the order"),
        ('tasks = ["catts"]', "Order 'mine': Unknown dataset 'catts'. Did you mean 'cats'?"),
        ('pretraining_source = "world"', "Order 'mine': Unknown dataset 'world'."),
        ("captions_drawn = 0", "captions_drawn must be a positive integer, found 0"),
    ],
)
def test_a_wrong_line_in_an_order_is_named(folder: Path, line: str, message: str) -> None:
    key = line.split(" ")[0]
    kept = [own for own in ORDER.splitlines() if not own.startswith(f"{key} ")]
    (folder / "orders" / "mine.toml").write_text("\n".join([*kept, line]))
    with pytest.raises(ManifestError) as error:
        Manifests((folder,)).order("mine")
    assert message in str(error.value)


def test_a_missing_key_is_named(folder: Path) -> None:
    (folder / "orders" / "mine.toml").write_text(ORDER.replace('recipes = "mini"\n', ""))
    with pytest.raises(ManifestError, match="the key 'recipes' is missing"):
        Manifests((folder,)).order("mine")


@pytest.mark.parametrize("name", ["../tasks/cats", "nonsense"])
def test_an_unknown_name_lists_the_valid_ones(folder: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=r"Unknown order .* Valid: .*mine"):
        Manifests((folder,)).order(name)


def test_a_manifest_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"Manifest folder .*nowhere does not exist"):
        Manifests((tmp_path / "nowhere",)).task("cats")


def test_every_shipped_order_is_whole() -> None:
    manifests = Manifests()
    for name in manifests.names("orders"):
        order = manifests.order(name)
        assert all(task.class_names for task in (manifests.task(order.pretraining_source), *manifests.tasks_of(order).values()))


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_manifest_saved_on_windows_is_read(folder: Path, line_end: str) -> None:
    (folder / "tasks" / "cats.toml").write_bytes(b"\xef\xbb\xbf" + TASK.replace("\n", line_end).encode())
    assert Manifests((folder,)).task("cats").class_names == ("tabby", "manx")


def test_a_manifest_in_utf_16_is_told_to_be(folder: Path) -> None:
    (folder / "tasks" / "cats.toml").write_bytes(TASK.encode("utf-16"))
    with pytest.raises(ManifestError, match=r"cats\.toml is not UTF-8 text: it is UTF-16, save it as UTF-8"):
        Manifests((folder,)).task("cats")


def test_names_mean_the_same_in_both_unicode_forms(folder: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (folder / "tasks" / f"{decomposed}.toml").write_text(TASK.replace('"cats"', f'"{composed}"').replace("manx", decomposed), "utf-8")
    manifests = Manifests((folder,))
    assert composed in manifests.names("tasks")
    for typed in (composed, decomposed):
        assert manifests.task(typed).name == composed
        assert manifests.task(typed).class_names == ("tabby", composed)


def test_what_macos_leaves_beside_a_manifest_is_none(folder: Path) -> None:
    (folder / "tasks" / "._cats.toml").write_bytes(b"\x00\x05\x16\x07")
    assert "._cats" not in Manifests((folder,)).names("tasks")


@pytest.mark.parametrize("second", ["tabby", "Tabby", " tabby", "TABBY "])
def test_two_classes_of_one_name_are_refused_with_their_labels(folder: Path, second: str) -> None:
    (folder / "tasks" / "cats.toml").write_text(TASK.replace('["tabby", "manx"]', f'["tabby", "manx", "{second}"]'))
    with pytest.raises(ManifestError) as error:
        Manifests((folder,)).task("cats")
    assert f"the class names of labels 0 and 2 read alike, 'tabby' and {second!r}, so that one of them is never predicted" in str(
        error.value
    )


def test_a_name_that_a_benchmark_has_twice_is_named_as_such(folder: Path) -> None:
    twice = TASK.replace('["tabby", "manx"]', '["tabby", "manx", "tabby"]')
    (folder / "tasks" / "cats.toml").write_text(twice + 'repeated_class_names = ["tabby"]\n')
    assert Manifests((folder,)).task("cats").class_names == ("tabby", "manx", "tabby")
    assert Manifests().task("imagenet").repeated_class_names == ("missile", "sunglasses")
    (folder / "tasks" / "cats.toml").write_text(TASK + 'repeated_class_names = ["tabby"]\n')
    with pytest.raises(ManifestError, match="repeated_class_names names 'tabby', which does not stand twice in class_names"):
        Manifests((folder,)).task("cats")
