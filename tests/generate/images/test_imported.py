"""Images of the authors' code become shards: by number and not by path, with seeds and classes by the published rules."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest, Seeding
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import read_output_index
from gift_shared.schema import PlanKind
from gift_shared.shards import read_image_bytes


@pytest.fixture
def published(manifests: Path, tmp_path: Path) -> Path:
    """What the authors' code leaves for the order `tiny`: a folder per task, a CSV, JPEGs; and a leftover folder."""
    request = PlanRequest(kind=PlanKind.PER_TASK, order="tiny", images_per_task=6, seeding=Seeding.PUBLISHED)
    rows = make_plan(request, Manifests((manifests,)))[0].to_pylist()
    root = tmp_path / "synthetic"
    for task in ("cats", "cars"):
        folder = root / task.title()
        folder.mkdir(parents=True)
        with (folder / "image_text.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "text"])
            for row in (row for row in rows if row["task"] == task):
                name = f"{row['index']}.jpg"
                color = (0, 0, 0) if row["index"] == 2 else (40 * row["index"] + 5, 90, 30)
                Image.new("RGB", (16, 16), color).save(folder / name)
                writer.writerow([f"/datasets/synthetic/{task.title()}/{name}", row["caption"]])
    (root / "SVHN").mkdir()
    (root / "SVHN" / "image_text.csv").write_text("image,text\r\n")
    return root


def imported(command, published: Path, manifests: Path, out: Path) -> list[dict]:
    result = command("import", published, "--out", out, "--order", "tiny", "--manifests", manifests, "--images-per-shard", 4)
    assert result.code == 0, result.err
    return read_output_index(out)[0].to_pylist()


def test_images_keep_their_bytes_and_get_seed_class_and_caption(command, published: Path, manifests: Path, tmp_path: Path) -> None:
    rows = imported(command, published, manifests, tmp_path / "out")
    assert [row["task"] for row in rows] == ["cats"] * 6 + ["cars"] * 6
    assert [row["sample_seed"] for row in rows[6:]] == [420_000_000 + index for index in range(6)]
    for row in rows:
        manifest = Manifests((manifests,)).task(row["source"])
        assert manifest.first_template_captions[row["class_index"]] == row["caption"]
        if row["status"] == "ok":
            content = read_image_bytes(tmp_path / "out", row["shard"], row["byte_offset"], row["byte_size"], row["sha256"])
            assert content == (published / row["task"].title() / f"{row['index']}.jpg").read_bytes()
    assert command("verify", "--out", tmp_path / "out").code == 0


def test_all_black_images_are_recorded_as_black(command, published: Path, manifests: Path, tmp_path: Path) -> None:
    rows = imported(command, published, manifests, tmp_path / "out")
    assert {row["index"]: row["status"] for row in rows if row["status"] != "ok"} == {2: "black"}


def test_missing_and_unreadable_images_are_recorded_with_the_reason(command, published: Path, manifests: Path, tmp_path: Path) -> None:
    (published / "Cats" / "4.jpg").unlink()
    (published / "Cats" / "5.jpg").write_bytes(b"half a picture")
    rows = imported(command, published, manifests, tmp_path / "out")
    assert (rows[4]["status"], rows[4]["message"]) == ("failed", "the file is missing")
    assert rows[5]["status"] == "failed"
    assert "identify" in rows[5]["message"]


def test_without_an_order_seeds_are_unknown_and_folders_name_the_tasks(command, published: Path, tmp_path: Path) -> None:
    result = command("import", published / "Cats", "--out", tmp_path / "out", "--images-per-task", 3)
    assert result.code == 0, result.err
    rows = read_output_index(tmp_path / "out")[0].to_pylist()
    assert [(row["task"], row["sample_seed"], row["source"]) for row in rows] == [("cats", -1, "file:image_text")] * 3


def test_a_changed_caption_is_kept_and_not_given_a_class(command, published: Path, manifests: Path, tmp_path: Path) -> None:
    path = published / "Cats" / "image_text.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:1], "0.jpg,mine", *lines[2:]]) + "\n")
    row = imported(command, published, manifests, tmp_path / "out")[0]
    assert (row["caption"], row["class_name"], row["source"]) == ("mine", None, "file:image_text")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\r\n0.jpg,x\r\n", "the header 'a, b' has none of the columns image"),
        ("image,words\r\n0.jpg,x\r\n", "has none of the columns caption"),
        ("image,text\r\nfirst.jpg,x\r\n", "line 2: the image 'first.jpg' has no number in its name"),
        ("image,text\r\n0.jpg,x\r\n0.jpg,y\r\n", "line 3: the image '0.jpg' repeats number 0"),
        ("image,text\r\n0.jpg\r\n", "line 2: expected 2 columns, found 1"),
        (
            "image,text\r\n90.jpg,x\r\n91.jpg,x\r\n",
            "can be imported: 6 without a line in image_text.csv (first 0.jpg)",
        ),
    ],
)
def test_a_csv_that_makes_no_sense_is_one_line(command, published: Path, tmp_path: Path, content: str, message: str) -> None:
    (published / "Cats" / "image_text.csv").write_text(content)
    result = command("import", published, "--out", tmp_path / "out")
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_task_of_the_order_is_told(command, published: Path, manifests: Path, tmp_path: Path) -> None:
    (published / "Cats").rename(published / "Catts")
    result = command("import", published, "--out", tmp_path / "out", "--order", "tiny", "--manifests", manifests)
    assert result.code == 2
    assert "Unknown task of the order 'Catts'." in result.err


def test_a_folder_without_a_csv_is_told(command, tmp_path: Path) -> None:
    result = command("import", tmp_path, "--out", tmp_path / "out")
    assert result.code == 2
    assert "holds no image_text.csv, nor does a folder in it" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images-per-shard", 0), "--images-per-shard must be at least 1, found 0."),
        (("--images-per-task", -3), "--images-per-task must be at least 1, found -3."),
        (("--steps", 0), "--steps must be at least 1, found 0."),
        (("--guidance-scale", -1), "--guidance-scale must be at least 0, found -1.0."),
        (("--seed", -1), "--seed must be at least 0, found -1."),
    ],
)
def test_a_number_that_cannot_be_is_one_line_and_binds_no_folder(
    command, published: Path, tmp_path: Path, arguments: tuple, message: str
) -> None:
    result = command("import", published, "--out", tmp_path / "out", *arguments)
    assert (result.code, result.err) == (2, f"error: {message}\n")
    assert not (tmp_path / "out").exists()


def test_a_plan_that_does_not_pass_binds_no_folder(command, published: Path, tmp_path: Path) -> None:
    (published / "Cats").rename(published / ("a" * 100))
    assert "a sample key of 107 characters" in command("import", published, "--out", tmp_path / "out").err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_images_is_told_in_the_words_of_import(command, published: Path, rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("import", published, "--out", out).code == 0
    result = command("import", published, "--out", out, "--steps", 20)
    assert result.err.endswith(f"error: {out} holds another import: other images, captions or options. Choose another --out.\n")
    assert command("import", published, "--out", rendered).err.endswith(f"error: {rendered} holds rendered images. Choose another --out.\n")


def test_what_an_import_lost_import_alone_makes_again(command, published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("import", published, "--out", out).code == 0
    (out / "shards" / "cats-00000.tar").unlink()
    result = command("render", "--out", out, "--model", "flat-color")
    assert result.err == f"error: {out} holds imported images: run gift-generate import again to go on, or choose another --out.\n"
    assert command("import", published, "--out", out).code == 0
    assert command("verify", "--out", out).code == 0


def test_hidden_folders_and_circles_of_links_are_not_imported(command, published: Path, manifests: Path, tmp_path: Path) -> None:
    shutil.copytree(published / "Cats", published / "Cats/.ipynb_checkpoints")
    shutil.copytree(published / "Cats", published / ".Cats")
    (published / "Cats/loop").symlink_to(".")
    rows = imported(command, published, manifests, tmp_path / "out")
    assert [row["task"] for row in rows] == ["cats"] * 6 + ["cars"] * 6


def test_what_is_drawn_in_16_bits_or_in_alpha_alone_is_not_black(command, published: Path, manifests: Path, tmp_path: Path) -> None:
    drawn = np.zeros((16, 16, 4), dtype=np.uint8)
    drawn[4:8, 4:8, 3] = 255
    for number, image in ((1, Image.fromarray(drawn)), (3, Image.fromarray(np.full((16, 16), 400, dtype=np.uint16)))):
        (published / f"Cats/{number}.jpg").unlink()
        image.save(published / f"Cats/{number}.png")
    rows = imported(command, published, manifests, tmp_path / "out")
    assert [row["status"] for row in rows[:4]] == ["ok", "ok", "black", "ok"]
    assert command("verify", "--out", tmp_path / "out").code == 0
