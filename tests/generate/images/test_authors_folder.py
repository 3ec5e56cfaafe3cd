"""What the authors' program leaves, as it leaves it: `Aircraft_Syn`, lists longer than the images, stopped runs, a Mac's files."""

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest, Seeding
from gift_shared.errors import first_line
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import read_output_index
from gift_shared.schema import PlanKind

MTIL_FOLDERS = {
    "Aircraft_Syn": "aircraft", "Caltech101_Syn": "caltech101", "CIFAR100_Syn": "cifar100", "DTD_Syn": "dtd", "EuroSAT_Syn": "eurosat",
    "Flowers_Syn": "flowers", "Food_Syn": "food", "MNIST_Syn": "mnist", "OxfordPet_Syn": "oxford_pet",
    "StanfordCars_Syn": "stanford_cars", "SUN397_Syn": "sun397",
}  # fmt: skip


def write_list(folder: Path, captions: Iterable[str]) -> None:
    folder.mkdir(parents=True)
    with (folder / "image_text.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        writer.writerows([f"./data/synthetic/synthetic_data_a/{folder.name}/{number}.jpeg", text] for number, text in enumerate(captions))


def paint(folder: Path, numbers: Iterable[int]) -> None:
    for number in numbers:
        Image.new("RGB", (16, 16), (10 + number % 240, 90, 30)).save(folder / f"{number}.jpeg")


def draw(order: str, manifests: Manifests, images_per_task: int, draws_per_task: int) -> dict[str, list[dict]]:
    """The rows that the published rule draws, by task."""
    request = PlanRequest(
        kind=PlanKind.PER_TASK, order=order, images_per_task=images_per_task, draws_per_task=draws_per_task, seeding=Seeding.PUBLISHED
    )
    rows: dict[str, list[dict]] = {}
    for row in make_plan(request, manifests)[0].to_pylist():
        rows.setdefault(row["task"], []).append(row)
    return rows


@pytest.fixture
def authors(manifests: Path, tmp_path: Path) -> Path:
    """A whole run of the order `tiny`, 20 images a task."""
    for task, rows in draw("tiny", Manifests((manifests,)), 20, 20).items():
        write_list(tmp_path / "synthetic" / f"{task.title()}_Syn", [row["caption"] for row in rows])
        paint(tmp_path / "synthetic" / f"{task.title()}_Syn", range(20))
    return tmp_path / "synthetic"


def rows_of(out: Path) -> list[dict]:
    return read_output_index(out)[0].to_pylist()


def test_the_published_run_comes_in_with_tasks_seeds_and_classes(command, tmp_path: Path) -> None:
    """Lists of 10,000 lines as published, a few images: `txt2img.py --image_num 3`, and the leftover folder of SVHN."""
    root = tmp_path / "synthetic_data_a"
    published = draw("mtil-1", Manifests(), 10_000, 10_000)
    for folder, task in MTIL_FOLDERS.items():
        write_list(root / folder, [row["caption"] for row in published[task]])
        paint(root / folder, range(3))
    write_list(root / "SVHN_Syn", [])
    result = command("import", root, "--out", tmp_path / "out", "--order", "mtil-1")
    assert result.code == 0, result.err
    names = ("task", "index", "caption", "source", "class_name", "class_index", "sample_seed", "status")
    expected = [row | {"status": "ok"} for rows in published.values() for row in rows[:3]]
    assert [[row[name] for name in names] for row in rows_of(tmp_path / "out")] == [[row[name] for name in names] for row in expected]
    assert rows_of(tmp_path / "out")[32]["sample_seed"] == 420_900_002
    longer = ", ".join(f"{folder} up to 2.jpeg of 10,000 lines" for folder in sorted(MTIL_FOLDERS))
    (line,) = [line for line in result.err.splitlines() if "never asked for" in line]
    assert line == (
        f"Lists are longer than their images: {longer}. Lines after the last image are taken as never asked for (--image_num) or not yet "
        "painted, and are not imported."
    )
    assert "SVHN_Syn: image_text.csv and no image, so taken as not begun; nothing is imported of it.\n" in result.err
    assert "captions are not what order" not in result.err
    assert command("verify", "--out", tmp_path / "out").code == 0


def test_folders_are_their_tasks_without_an_order_too(command, tmp_path: Path) -> None:
    for folder in (*MTIL_FOLDERS, "SVHN_Syn", "Objects_Syn"):  # the last ones: no task of ours, and not what a manifest only displays
        write_list(tmp_path / "data" / folder, ["a photo"])
        paint(tmp_path / "data" / folder, [0])
    assert command("import", tmp_path / "data", "--out", tmp_path / "out").code == 0
    assert {row["task"] for row in rows_of(tmp_path / "out")} == {*MTIL_FOLDERS.values(), "svhn", "objects"}


def test_two_folders_of_one_task_are_told(command, authors: Path, tmp_path: Path) -> None:
    shutil.copytree(authors / "Cats_Syn", authors / "cats")
    result = command("import", authors, "--out", tmp_path / "out")
    assert (result.code, result.err) == (
        2, f"error: {authors}/Cats_Syn and {authors}/cats are both the task 'cats'. Import one of them, or rename it.\n",
    )  # fmt: skip


def test_the_folder_above_is_told_where_the_lists_are(command, authors: Path, tmp_path: Path) -> None:
    result = command("import", authors.parent, "--out", tmp_path / "out")
    assert result.code == 2
    assert f"holds no image_text.csv, nor does a folder in it. {authors} does. Give the folder with one sub-folder per task." in result.err


def test_a_stopped_run_comes_in_as_far_as_it_is(command, authors: Path, manifests: Path, tmp_path: Path) -> None:
    for path in (authors / "Cars_Syn").glob("*.jpeg"):
        path.unlink()
    for number in range(12, 20):
        (authors / "Cats_Syn" / f"{number}.jpeg").unlink()
    (authors / "Cats_Syn" / "5.jpeg").unlink()  # a hole is no end
    (authors / "Cats_Syn" / "11.jpeg").write_bytes((authors / "Cats_Syn" / "11.jpeg").read_bytes()[:300])  # being written
    result = command("import", authors, "--out", tmp_path / "out", "--order", "tiny", "--manifests", manifests)
    assert result.code == 0, result.err
    rows = rows_of(tmp_path / "out")
    assert [(row["task"], row["index"]) for row in rows] == [("cats", index) for index in range(12)]
    assert {row["index"]: row["message"] for row in rows if row["status"] == "failed"}.keys() == {5, 11}
    assert rows[5]["message"] == "the file is missing"
    assert "Lists are longer than their images: Cats_Syn up to 11.jpeg of 20 lines. Lines after the last image are taken" in result.err
    assert "Cars_Syn: image_text.csv and no image, so taken as not begun; nothing is imported of it.\n" in result.err
    assert "1 of the 2 tasks of order tiny have no image here: cars.\n" in result.err


def test_a_list_that_was_being_written_when_the_run_stopped_does_not_stop_the_rest(command, authors: Path, tmp_path: Path) -> None:
    shutil.rmtree(authors / "Cars_Syn")
    for name, content in (("Cars_Syn", b""), ("Dogs_Syn", b"image,text\r\n./data/Dogs_Syn/0.jpeg,a photo\r\n./data/Do")):
        (authors / name).mkdir()
        (authors / name / "image_text.csv").write_bytes(content)
    result = command("import", authors, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert {row["task"] for row in rows_of(tmp_path / "out")} == {"cats"}
    assert "Cars_Syn, Dogs_Syn: image_text.csv and no image, so taken as not begun" in result.err


def test_a_run_that_made_no_image_is_an_error(command, authors: Path, tmp_path: Path) -> None:
    for path in authors.rglob("*.jpeg"):
        path.unlink()
    result = command("import", authors, "--out", tmp_path / "out")
    assert result.code == 2
    assert "there is no image beside image_text.csv, here or in the folders of tasks" in result.err
    assert not (tmp_path / "out").exists()


def test_a_list_whose_images_mostly_lack_is_the_wrong_folder(command, authors: Path, tmp_path: Path) -> None:
    for number in range(1, 15):
        (authors / "Cats_Syn" / f"{number}.jpeg").unlink()
    result = command("import", authors, "--out", tmp_path / "out")
    assert result.code == 2
    assert "14 of the 20 images that image_text.csv lists up to 19.jpeg, the last one, are not there. Is it the right folder?" in result.err


def test_what_a_mac_leaves_is_no_image(command, authors: Path, tmp_path: Path) -> None:
    for name in ("._0.jpeg", "._image_text.csv", ".DS_Store"):
        (authors / "Cats_Syn" / name).write_bytes(b"\x00\x05\x16\x07 of Mac OS X")
    (authors / ".DS_Store").write_bytes(b"Bud1")
    (authors / "._Cats_Syn").write_bytes(b"\x00\x05\x16\x07")
    shutil.copytree(authors / "Cats_Syn", authors / "__MACOSX" / "Cats_Syn")
    result = command("import", authors, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok"] * 40
    assert "left out" not in result.err


def test_images_that_are_left_out_are_told(command, authors: Path, tmp_path: Path) -> None:
    folder = authors / "Cats_Syn"
    paint(folder, [20, 21])
    shutil.copy(folder / "0.jpeg", folder / "preview.jpeg")
    Image.new("RGB", (16, 16), "red").save(folder / "22.bmp")
    (authors / "Dogs_Syn").mkdir()
    paint(authors / "Dogs_Syn", [0])
    result = command("import", authors, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert (
        f"{folder}: images left out: 2 without a line in image_text.csv (first 20.jpeg), 1 neither JPEG, PNG nor WebP (first 22.bmp), "
        "1 without a number (first preview.jpeg).\n"
    ) in result.err
    assert "Dogs_Syn: images without a image_text.csv, so without captions; the folder is passed over.\n" in result.err


@pytest.mark.parametrize(("listed", "num_drawn"), [(20, 30), (30, 30), (20, 20)])
def test_the_captions_tell_how_many_were_drawn(command, add_order, manifests: Path, tmp_path: Path, listed: int, num_drawn: int) -> None:
    """The order says 30 a task: its list, that list cut to the images, and a draw of one's own of 20."""
    add_order("long", ["cats", "cars"], "captions_drawn = 30")
    drawn = draw("long" if num_drawn == 30 else "tiny", Manifests((manifests,)), num_drawn, num_drawn)
    for task, rows in drawn.items():
        write_list(tmp_path / "data" / task, [row["caption"] for row in rows[:listed]])
        paint(tmp_path / "data" / task, range(20))
    result = command("import", tmp_path / "data", "--out", tmp_path / "out", "--order", "long", "--manifests", manifests)
    assert result.code == 0, result.err
    assert all(row["class_name"] for row in rows_of(tmp_path / "out"))


def test_another_order_than_the_captions_are_of_is_told(command, authors: Path, manifests: Path, tmp_path: Path) -> None:
    result = command("import", authors, "--out", tmp_path / "out", "--order", "tiny", "--manifests", manifests, "--seed", 7)
    assert result.code == 0, result.err
    assert "captions are not what order tiny draws with seed 7, first cats-" in result.err
    assert "it is another --order or --seed, and image seeds are wrong." in result.err


def test_two_imports_of_one_folder_are_byte_identical(command, content, authors: Path, tmp_path: Path) -> None:
    whole = (authors / "Cats_Syn" / "0.jpeg").read_bytes()
    damaged = (b"", b"not an image", whole[:30], whole[:-200], b"\x89PNG\r\n\x1a\n" + bytes(40), b"RIFF\x00\x00\x00\x00WEBPVP8 ", b"GIF89a")
    for number, damage in enumerate(damaged):
        (authors / "Cats_Syn" / f"{number}.jpeg").write_bytes(damage)
    for name in ("one", "two"):
        assert command("import", authors, "--out", tmp_path / name).code == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")
    messages = [row["message"] for row in rows_of(tmp_path / "one") if row["task"] == "cats"][: len(damaged)]
    assert all("does not decode" in message and "0x" not in message for message in messages), messages


def test_what_a_library_says_is_told_without_addresses() -> None:
    error = OSError(f"cannot identify image file {object()!r} in <PIL.Image.Image mode=RGB size=4x4 at 0x7FBB04C0FFEE>\nmore")
    assert first_line(error) == "cannot identify image file <object object> in <PIL.Image.Image mode=RGB size=4x4>"
    assert first_line(ValueError("marker 0x42 at 0 of 7")) == "marker 0x42 at 0 of 7"
