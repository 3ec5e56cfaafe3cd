"""Plans of captions alone, and what else decides which captions are painted how often: sampling, repeats, templates, counts by class."""

import json
from collections import Counter
from pathlib import Path

import pytest

from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest
from gift_shared import keys
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import read_plan

LINES = [f"line {number}" for number in range(6)]


@pytest.fixture
def web(tmp_path: Path) -> Path:
    path = tmp_path / "web.txt"
    path.write_text("\n".join(LINES))
    return path


def planned(command, tmp_path: Path, *words: object) -> list[dict]:
    result = command("plan", "--out", tmp_path / "p.parquet", *words)
    assert result.code == 0, result.err
    return read_plan(tmp_path / "p.parquet")[0].to_pylist()


def captions(command, tmp_path: Path, *words: object) -> list[str]:
    return [row["caption"] for row in planned(command, tmp_path, *words)]


def test_captions_alone_are_painted_line_for_line(command, tmp_path: Path, web: Path) -> None:
    rows = planned(command, tmp_path, "--caption-file", web, "--images-per-shard", 4)
    assert [row["caption"] for row in rows] == LINES
    assert [row["index"] for row in rows] == list(range(6))
    assert [row["shard"] for row in rows] == ["file_web-00000"] * 4 + ["file_web-00001"] * 2
    assert rows[5] | {"guidance_scale": 7.5} == {
        "task": "captions", "index": 5, "sample_key": "file_web-0000-00005", "caption": "line 5", "source": "file:web",
        "class_name": None, "class_index": None, "sample_seed": keys.hashed_seed(42, "file_web-0000-00005"), "guidance_scale": 7.5,
        "denoising_steps": 50, "shard": "file_web-00001", "negative_prompt": None, "render_height": None, "render_width": None,
    }  # fmt: skip
    assert read_plan(tmp_path / "p.parquet")[1]["kind"] == "captions"


def test_a_number_of_images_is_shared_by_weight(command, tmp_path: Path, web: Path) -> None:
    (tmp_path / "more.txt").write_text("other 1\nother 2\n")
    drawn = captions(command, tmp_path, "--caption-file", f"{web}=3", "--caption-file", tmp_path / "more.txt", "--images", 10)
    assert drawn == [*LINES, *LINES[:2], "other 1", "other 2"]  # 7.5 and 2.5: the first has the half


def test_shuffled_uses_all_captions_before_one_comes_again(command, tmp_path: Path, web: Path) -> None:
    drawn = captions(command, tmp_path, "--caption-file", web, "--images", 15, "--sampling", "shuffled")
    assert sorted(drawn[:6]) == sorted(drawn[6:12]) == LINES
    assert drawn[:6] != LINES
    assert len(set(drawn[12:])) == 3
    other = captions(command, tmp_path, "--caption-file", web, "--images", 15, "--sampling", "shuffled", "--seed", 1)
    assert other != drawn


def test_replacement_draws_every_caption_anew(command, tmp_path: Path, web: Path) -> None:
    drawn = captions(command, tmp_path, "--caption-file", web, "--images", 6000, "--sampling", "replacement")
    assert sorted(set(drawn)) == LINES
    assert len(set(drawn[:6])) < 6
    assert all(850 < count < 1150 for count in Counter(drawn).values())  # 1000 expected, deviation 29


@pytest.mark.parametrize("sampling", ["shuffled", "in-order"])
def test_a_per_task_plan_can_use_every_caption_once(command, tmp_path: Path, manifests: Path, web: Path, sampling: str) -> None:
    words = ("--order", "tiny", "--images-per-task", 3, "--caption-file", web, "--class-name-weight", 0, "--sampling", sampling)
    drawn = captions(command, tmp_path, *words, "--manifests", manifests)
    assert sorted(drawn) == LINES
    assert (drawn == LINES) == (sampling == "in-order")


def test_repeats_go_over_all_files_and_are_counted(command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\none\n")
    (tmp_path / "b.txt").write_text("two\nthree\n\nthree\n")
    words = ("--caption-file", tmp_path / "a.txt", "--caption-file", tmp_path / "b.txt", "--dedup")
    assert captions(command, tmp_path, *words) == ["one", "two", "three"]
    result = command("plan", "--out", tmp_path / "p.parquet", *words)
    assert "source  file:a  2 images, 2 captions, 1 repeated left out\n        'one'\n        'two'\n" in result.out
    assert "source  file:b  1 images, 1 captions, 1 empty left out, 2 repeated left out\n        'three'\n" in result.out
    files = json.loads(read_plan(tmp_path / "p.parquet")[1]["arguments"])["caption_files"]
    assert [file["skipped"] for file in files] == [{"repeated": 1}, {"empty": 1, "repeated": 2}]
    (tmp_path / "b.txt").write_text("two\n")
    assert "with --dedup no caption is left" in command("plan", "--out", tmp_path / "p.parquet", *words).err


def test_three_captions_of_each_source_are_shown_a_long_one_shortened(command, tmp_path: Path, manifests: Path) -> None:
    (tmp_path / "web.txt").write_text("x" * 3_000_000 + "\n" + "\n".join(LINES))
    words = ("--kind", "pool", "--dataset", "cats", "--images-per-class", 1, "--caption-file", f"{tmp_path / 'web.txt'}=3")
    result = command("plan", "--out", tmp_path / "p.parquet", *words, "--manifests", manifests)
    assert result.out.count("\n        '") == 6
    assert "        'a photo of a tabby, a type of cat.'" in result.out
    assert len(result.out) < 3000


def add_templates(manifests: Path) -> None:
    path = manifests / "tasks" / "cats.toml"
    text = path.read_text()
    path.write_text(text[: text.index("templates")] + 'templates = ["a {}.", "the {}.", "one {}.", "my {}."]\n')


def test_a_pool_goes_through_all_templates_in_turn(command, tmp_path: Path, manifests: Path) -> None:
    add_templates(manifests)
    words = ("--kind", "pool", "--dataset", "cats", "--images-per-class", 2, "--manifests", manifests)
    assert captions(command, tmp_path, *words, "--templates", "all") == [
        "a tabby.", "the tabby.", "one sphynx.", "my sphynx.", "a manx.", "the manx."
    ]  # fmt: skip
    assert captions(command, tmp_path, *words) == ["a tabby.", "a tabby.", "a sphynx.", "a sphynx.", "a manx.", "a manx."]


def test_a_per_task_plan_draws_a_template_with_each_class_name(manifests: Path) -> None:
    add_templates(manifests)
    request = PlanRequest(order="tiny", images_per_task=2000, templates="all")
    rows = make_plan(request, Manifests((manifests,)))[0].to_pylist()
    cats = Counter(row["caption"] for row in rows if row["source"] == "cats")
    assert len(cats) == 12
    assert 500 < cats.total() < 700  # 3 of 10 names: 600 expected, deviation 20
    worlds = {row["caption"] for row in rows if row["source"] == "world"}
    assert worlds == {f"a photo of a thing {number}." for number in range(7)}


def test_class_names_can_have_counts_of_their_own(command, tmp_path: Path, manifests: Path) -> None:
    (tmp_path / "counts.csv").write_text("class_name,images\nmanx,3\ntabby,0\n")
    words = ("--kind", "pool", "--dataset", "cats", "--class-counts", tmp_path / "counts.csv", "--manifests", manifests)
    rows = planned(command, tmp_path, *words)
    assert [row["sample_key"] for row in rows] == [f"cats-0002-0000{copy}" for copy in range(3)]
    counts = Counter(row["class_name"] for row in planned(command, tmp_path, *words, "--images-per-class", 2))
    assert counts == {"sphynx": 2, "manx": 3}
    arguments = json.loads(read_plan(tmp_path / "p.parquet")[1]["arguments"])
    assert list(arguments["class_counts"]) == ["sha256"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class_name,images\nmanks,3\n", "counts.csv, row 1: Unknown class name of the plan 'manks'. Did you mean 'manx'?"),
        ("class_name,images\nmanx,many\n", "column 'images' should be int64"),
        ("class_name,images\nmanx,-1\n", "row 1: expected a class name and a number of images from 0 to 100000, found manx and -1"),
        ("class_name,images\nmanx,1\nmanx,2\n", "row 2: the class 'manx' stands in the table twice"),
        ("class_name,images,dataset\nmanx,1,cars\n", "row 1: Unknown class name of the plan 'manx'"),
        ("class_name,images,dataset\nmanx,1,dogs\n", "row 1: Unknown dataset of the plan 'dogs'"),
        ("class_name,count\nmanx,1\n", "Unknown column 'count'"),
        ("class_name\nmanx\n", "expected the columns class_name and images, found class_name"),
        ("class_name,images\nmanx,0\n", "asks for no image"),
    ],
)
def test_counts_that_cannot_be_meant_are_refused(command, tmp_path: Path, manifests: Path, content: str, message: str) -> None:
    (tmp_path / "counts.csv").write_text(content)
    words = ("--kind", "pool", "--dataset", "cats", "--dataset", "cars", "--class-counts", tmp_path / "counts.csv")
    result = command("plan", "--out", tmp_path / "p.parquet", *words, "--manifests", manifests)
    assert (result.code, message in result.err) == (2, True), result.err


def test_a_class_name_of_two_datasets_needs_its_dataset(command, tmp_path: Path, manifests: Path) -> None:
    path = manifests / "tasks" / "cars.toml"
    path.write_text(path.read_text().replace("St. Car", "manx"))
    words = (
        "--kind",
        "pool",
        "--dataset",
        "cats",
        "--dataset",
        "cars",
        "--class-counts",
        tmp_path / "counts.tsv",
        "--manifests",
        manifests,
    )
    (tmp_path / "counts.tsv").write_text("class_name\timages\nmanx\t1\n")
    assert "cars and cats both have a class 'manx'" in command("plan", "--out", tmp_path / "p.parquet", *words).err
    (tmp_path / "counts.tsv").write_text("class_name\timages\tdataset\nmanx\t1\tcars\n")
    assert [row["source"] for row in planned(command, tmp_path, *words)] == ["cars"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "captions"], "A plan of captions alone needs --caption-file."),
        (["--caption-file", "WEB=2"], "Weights of caption files share out a number of images: give --images"),
        (["--caption-file", "WEB", "--sampling", "replacement"], "--sampling replacement draws a number of images: give --images"),
        (["--caption-file", "WEB", "--kind", "captions", "--order", "mini"], "--order does not apply in a plan of captions alone"),
        (["--caption-file", "WEB", "--images", 0], "--images must be at least 1, found 0"),
        (["--caption-file", "WEB", "--sampling", "shufled"], "Unknown sampling 'shufled'. Did you mean 'shuffled'?"),
        (["--caption-file", "WEB", "--caption-column", "text"], "--caption-column: no --caption-file has columns"),
        (["--images-per-task", 5, "--dedup"], "--dedup is for caption files: give --caption-file."),
        (
            ["--images-per-task", 5, "--images", 5],
            "--images is for captions alone (--kind captions): a per-task plan has --images-per-task",
        ),
        (["--images-per-task", 5, "--class-counts", "WEB"], "--class-counts are counts of a pool"),
        (["--images-per-task", 5, "--templates", "some"], "Unknown templates 'some'"),
        (["--caption-file", "WEB", "--kind", "table"], "Unknown kind 'table'"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(command, tmp_path: Path, web: Path, words: list, message: str) -> None:
    given = [str(word).replace("WEB", str(web)) for word in words]
    result = command("plan", "--out", tmp_path / "p.parquet", *given)
    assert (result.code, message in result.err, result.err.count("\n")) == (2, True, 1), result.err
    assert not (tmp_path / "p.parquet").exists()


def test_captions_alone_are_rendered_and_indexed(command, tmp_path: Path, web: Path) -> None:
    planned(command, tmp_path, "--caption-file", web, "--workers", 2)
    result = command("render", "--plan", tmp_path / "p.parquet", "--out", tmp_path / "out", "--model", "flat-color")
    assert result.code == 0, result.err
    assert command("verify", "--out", tmp_path / "out").code == 0
