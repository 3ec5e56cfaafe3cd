"""Captions from class names and from files of every kind, alone and mixed."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_generate.planning.captions import Caption, CaptionMixture, read_caption_file
from gift_generate.planning.plan_request import parse_weighted_file
from gift_shared.errors import ConfigError, DataError


def texts(path: Path) -> list[str]:
    return [caption.text for caption in read_caption_file(path)]


def test_a_text_file_gives_its_non_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "web.txt"
    path.write_text("a dog on a beach\n\n  two cups  \r\nénorme château\n", encoding="utf-8")
    assert texts(path) == ["a dog on a beach", "two cups", "énorme château"]
    assert read_caption_file(path)[0] == Caption("a dog on a beach", "file:web", None, None)


def test_a_tsv_file_gives_its_first_column_and_skips_a_header(tmp_path: Path) -> None:
    path = tmp_path / "cc3m.tsv"
    path.write_text('caption\turl\na red barn\thttp://x/1.jpg\nshe said "no"\thttp://x/2.jpg\n')
    assert texts(path) == ["a red barn", 'she said "no"']


def test_jsonl_takes_caption_or_text(tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    path.write_text('{"caption": "one\\ntwo"}\n{"text": "three"}\n')
    assert texts(path) == ["one two", "three"]


def test_jsonl_without_a_caption_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    path.write_text('{"caption": "one"}\n{"url": "x"}\n')
    with pytest.raises(DataError, match=r"web.jsonl, line 2: expected an object with a string under caption or text or TEXT"):
        read_caption_file(path)


@pytest.mark.parametrize("column", ["caption", "text", "TEXT"])
def test_parquet_takes_each_usual_column(tmp_path: Path, column: str) -> None:
    path = tmp_path / "laion.parquet"
    pq.write_table(pa.table({"url": ["a", "b", "c"], column: ["one", None, "two"]}), path)
    assert texts(path) == ["one", "two"]


def test_parquet_without_a_caption_column_lists_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "laion.parquet"
    pq.write_table(pa.table({"url": ["a"], "width": [3]}), path)
    with pytest.raises(DataError, match="expected a column caption or text or TEXT, found url, width"):
        read_caption_file(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no caption"),
        ("a.txt", b"caf\xe9\n", "is not UTF-8 text"),
        ("a.csv", b"x", "Unknown kind of caption file '.csv'"),
        ("a.parquet", b"no parquet", "not a readable Parquet file"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
    ],
)
def test_files_that_hold_no_captions_are_refused_in_words(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_caption_file(tmp_path / name)


def test_a_million_lines_are_read_compactly(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_text("".join(f"a photo of thing number {number}\n" for number in range(200_000)))
    file = read_caption_file(path)
    assert len(file) == 200_000
    assert file[199_999].text == "a photo of thing number 199999"
    assert file.texts.nbytes < 2 * path.stat().st_size


def test_a_mixture_draws_by_weight(tmp_path: Path) -> None:
    path = tmp_path / "web.txt"
    path.write_text("from a file\n")
    mixture = CaptionMixture(seed=1, class_name_weight=1.0, files=[(read_caption_file(path), 3.0)])
    pool = [Caption("a class", "cats", "tabby", 0)]
    drawn = [mixture.draw(pool).source for _ in range(4000)]
    assert 0.72 < drawn.count("file:web") / len(drawn) < 0.78  # 0.75 expected, deviation 0.007


def test_weights_are_read_from_the_argument() -> None:
    assert parse_weighted_file("web.txt").weight == 1.0
    assert parse_weighted_file("web=2.txt=0.25").path == Path("web=2.txt")
    with pytest.raises(ConfigError, match="expected FILE or FILE=WEIGHT with a weight above 0"):
        parse_weighted_file("web.txt=-1")


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing would be left to draw from"):
        CaptionMixture(seed=1, class_name_weight=0.0, files=[])


def test_captions_of_a_file_keep_quotes_and_commas(tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    path.write_text(json.dumps({"caption": 'a, "b", \\c'}) + "\n")
    assert texts(path) == ['a, "b", \\c']
