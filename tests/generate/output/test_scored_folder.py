"""A folder with scores beside its index stays what it is for verify, push and show; and how scoring is begun from here."""

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from huggingface_hub import HfApi
from PIL import Image

from gift_generate.views.contact_sheet import PICTURE
from gift_shared.image_table import ImageTable
from gift_shared.options import as_words
from gift_shared.parquet_files import read_output_index, write_index, write_rows
from gift_shared.schema import SCORES_SCHEMA
from gift_shared.score_options import ScoreOptions
from gift_shared.scores import INDEX_SHA256, SCORER, file_sha256


@pytest.fixture
def scored(rendered: Path) -> Path:
    """Picture n of a task has similarity (3 n mod 10) / 10 and rank 1 + n mod 3."""
    rows = read_output_index(rendered)[0]
    numbers = rows["index"].to_pylist()
    similarity, rank = pa.array([(3 * n % 10) / 10 for n in numbers], pa.float32()), pa.array([1 + n % 3 for n in numbers], pa.int32())
    table = pa.table([rows["sample_key"], similarity, rank], schema=SCORES_SCHEMA)
    metadata = {INDEX_SHA256: file_sha256(rendered / "index.parquet"), SCORER: '{"clip": "mini", "weights": "0"}'}
    write_rows(rendered / "scores/mini.parquet", [table], SCORES_SCHEMA, metadata)
    return rendered


def test_a_scored_folder_verifies_and_scores_of_other_pictures_are_a_fault(command, scored: Path) -> None:
    assert command("verify", "--out", scored).code == 0
    index, metadata = read_output_index(scored)
    (scored / "README.md").unlink()
    write_index(scored / "index.parquet", index, metadata | {"made": "again"})
    result = command("verify", "--out", scored)
    assert result.code == 1
    assert result.out.splitlines()[:-1] == [
        f"{scored}/scores/mini.parquet is of another index.parquet: pictures were made again since. "
        f"Run `gift-generate score --out {scored} --clip MODEL` again."
    ]


def test_scores_are_pushed_too(command, scored: Path, hub_site, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "repositories").mkdir()
    site = hub_site(tmp_path / "repositories")
    site.use(monkeypatch, "hf_good")
    (scored / "spool/score-other").mkdir(parents=True)
    (scored / "spool/score-other/cats-00000.parquet").write_bytes(b"half of another scoring")
    result = command("push", "our/new", "--out", scored)
    assert result.code == 0, result.err
    pushed = HfApi(endpoint=f"http://127.0.0.1:{site.port}").list_repo_files("our/new", repo_type="dataset")
    assert [name for name in pushed if "score" in name] == ["scores/mini.parquet"]


@pytest.mark.parametrize("sort_by", ["similarity", "rank"])
def test_a_sheet_goes_from_the_best_picture_to_the_worst(command, scored: Path, tmp_path: Path, sort_by: str) -> None:
    sheet = tmp_path / "sheet.png"
    result = command("show", "--out", scored, "--to", sheet, "--pictures", 4, "--sort-by", sort_by)
    assert result.code == 0, result.err
    images = ImageTable(read_output_index(scored)[0], scored)
    key = {"similarity": lambda n: -(3 * n % 10), "rank": lambda n: (n % 3, -(3 * n % 10))}[sort_by]
    best_first = sorted(range(10), key=key)
    shown = [best_first[place] for place in (0, 3, 6, 9)]
    keys = images.table.filter(pc.equal(images.table["task"], "cats"))["sample_key"].to_pylist()
    with Image.open(sheet) as drawn:
        for column, number in enumerate(shown):
            centre = drawn.convert("RGB").getpixel((10 + column * (PICTURE + 10) + PICTURE // 2, 33 + PICTURE // 2))
            assert centre == images.image(keys[number]).getpixel((8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "s.png", "--sort-by", "similarty"), "--sort-by: Unknown sorting 'similarty'. Did you mean 'similarity'?"),
        (("--to", "s.png", "--scores", "mini"), "--scores goes with --sort-by similarity or rank."),
        (("--html", "pages", "--sort-by", "rank"), "--sort-by and --scores are of a contact sheet"),
        (("--to", "s.png", "--sort-by", "rank", "--scores", "mimi"), "Unknown scores 'mimi'. Did you mean 'mini'?"),
    ],
)
def test_a_sorting_that_cannot_be_is_one_line(command, scored: Path, tmp_path: Path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("show", "--out", scored, *arguments)
    assert result.code == 2
    assert message in result.err


def test_a_sheet_by_scores_of_a_folder_without_any_names_the_command(command, rendered: Path, tmp_path: Path) -> None:
    result = command("show", "--out", rendered, "--to", tmp_path / "s.png", "--sort-by", "rank")
    assert result.code == 2
    assert f"{rendered} has no scores: run `gift-generate score --out {rendered} --clip MODEL` first." in result.err


def test_scoring_is_handed_to_the_program_that_has_the_clips(command, monkeypatch, tmp_path: Path) -> None:
    handed = []
    monkeypatch.setattr(os, "execv", lambda program, words: handed.append((program, words)))
    told = ScoreOptions(out=tmp_path, clip="ViT-B-16", pretrained="openai", rank=0, world_size=2)
    assert command("score", *as_words(told)).code == 0
    assert handed == [(sys.executable, [sys.executable, "-m", "gift_train.cli", "score", *as_words(told)])]
    assert as_words(told) == [
        "--out", str(tmp_path), "--clip", "ViT-B-16", "--pretrained", "openai", "--rank", "0", "--world-size", "2",
    ]  # fmt: skip
