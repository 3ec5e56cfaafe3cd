"""The one walk that finds pictures: nothing hidden, nothing twice, nothing dropped unsaid."""

import os

import pytest

from gift_shared.errors import DataError
from gift_shared.image_files import PassedOver, find_images, find_strays, folder_id, is_stray_member, same_folder


@pytest.fixture
def tree(tmp_path):
    """`tree(names)` makes empty files below a folder and returns the folder."""

    def make(*names):
        for name in names:
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "pictures"

    return make


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.files]


def test_every_suffix_of_a_readable_format_is_found_at_any_depth(tree):
    folder = tree("a.jpg", "b.JPEG", "c.jfif", "d.jpe", "e/f/g.WebP", "h.tiff", "i.pgm", "j.apng")
    assert names(find_images(folder), folder) == ["a.jpg", "b.JPEG", "c.jfif", "d.jpe", "e/f/g.WebP", "h.tiff", "i.pgm", "j.apng"]


def test_what_is_passed_over_is_counted_and_named(tree):
    found = find_images(folder := tree("a.jpg", "b.heic", "c.HEIC", "d.txt", "README"))
    assert names(found, folder) == ["a.jpg"]
    assert found.passed_over.counts == {".heic": 2, ".txt": 1, "no suffix": 1}
    assert str(found.passed_over).startswith("4 files are passed over (2 .heic, 1 ")
    assert found.passed_over.first.startswith(str(folder))


def test_hidden_names_and_those_of_operating_systems_are_skipped_at_any_depth(tree):
    folder = tree(
        "a.jpg", ".b.jpg", "._a.jpg", ".ipynb_checkpoints/a.jpg", "c/.hidden/d/e.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg", "Thumbs.db",
        "c/.DS_Store", "desktop.ini",
    )  # fmt: skip
    found = find_images(folder)
    assert names(found, folder) == ["a.jpg"]
    assert not found.passed_over
    strays = {path.relative_to(folder).as_posix() for path in find_strays(folder)}
    assert {"._a.jpg", ".ipynb_checkpoints", "c/.hidden", "__MACOSX", "Thumbs.db", "c/.DS_Store"} <= strays


def test_members_of_a_tar_are_stray_by_their_name_and_by_any_folder_of_theirs():
    stray = ["._a.png", "b/._a.png", ".hidden/a.png", "b/.ipynb_checkpoints/a.png", "__MACOSX/a.png", ".DS_Store", "b/Thumbs.db"]
    kept = ["a.png", "./a.png", "b/a.png", "b.c/a.d.png", ""]
    assert [name for name in (*stray, *kept) if is_stray_member(name)] == stray


def test_the_folder_itself_may_be_hidden(tmp_path):
    folder = tmp_path / ".data"
    folder.mkdir()
    (folder / "a.png").touch()
    assert names(find_images(folder), folder) == ["a.png"]


def test_links_in_a_circle_give_each_image_once(tree):
    folder = tree("a/1.jpg", "b/2.jpg")
    (folder / "loop").symlink_to(".")
    (folder / "a/up").symlink_to("..")
    (folder / "a/other").symlink_to("../b")
    found = find_images(folder)
    assert names(found, folder) == ["a/1.jpg", "b/2.jpg"]
    assert found.passed_over.counts == {"link": 3}


def test_a_link_to_a_folder_elsewhere_is_followed_once(tree, tmp_path):
    folder = tree("1.jpg")
    (tmp_path / "elsewhere/inner").mkdir(parents=True)
    (tmp_path / "elsewhere/2.jpg").touch()
    (tmp_path / "elsewhere/inner/3.jpg").touch()
    (folder / "a").symlink_to(tmp_path / "elsewhere/inner")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    assert names(find_images(folder), folder) == ["1.jpg", "a/3.jpg", "b/2.jpg"]


def test_a_link_to_another_class_or_to_what_holds_it_is_not_followed(tree):
    folder = tree("fox/1.jpg", "wolf/2.jpg")
    (folder / "fox/wolves").symlink_to("../wolf")
    (folder / "fox/all").symlink_to("..")
    ids = {folder_id(folder / name) for name in ("fox", "wolf")}
    assert names(find_images(folder / "fox", others=ids), folder) == ["fox/1.jpg"]


def test_two_names_of_one_folder_are_known(tree):
    folder = tree("fox/1.jpg", "wolf/2.jpg")
    (folder / "dog").symlink_to("wolf")
    assert same_folder([folder / "fox", folder / "wolf"]) is None
    assert same_folder([folder / "fox", folder / "wolf", folder / "dog"]) == (folder / "wolf", folder / "dog")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_told(tree):
    folder = tree("a.jpg", "closed/b.jpg")
    (folder / "closed").chmod(0)
    try:
        with pytest.raises(DataError, match=r"closed cannot be read \(Permission denied\)"):
            find_images(folder)
    finally:
        (folder / "closed").chmod(0o755)


def test_sums_of_what_is_passed_over_keep_the_first():
    one, two = PassedOver(), PassedOver()
    one.add(".heic", "a.heic")
    two.add(".heic", "b.heic")
    assert str(one + two) == "2 files are passed over (2 .heic), first a.heic"
    assert str(one) == "1 file is passed over (1 .heic), first a.heic"
