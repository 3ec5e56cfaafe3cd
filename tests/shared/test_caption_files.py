"""Caption files of every kind that people bring: what is taken, what is left out and counted, and what is refused in one line."""

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gift_shared.caption_columns import ColumnWish
from gift_shared.caption_files import captions_sha256, read_captions, source_stem
from gift_shared.errors import DataError


def wish(column: str) -> ColumnWish:
    return ColumnWish(column, "--caption-column")


def write(path: Path, content: str | bytes | pa.Table) -> Path:
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(path: Path, column: str | None = None) -> list[str]:
    return read_captions(path, ColumnWish(column, "--caption-column")).texts.to_pylist()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "a dog\n\n  two cups  \r\nénorme château\n", ["a dog", "two cups", "énorme château"]),
        ("cc3m.tsv", 'a red barn\thttp://x/1.jpg\nshe said "no"\thttp://x/2.jpg\n', ["a red barn", 'she said "no"']),
        ("cc12m.tsv", "https://x.y/1.jpg\ta red barn\nhttps://x.y/2\ttwo cups\n", ["a red barn", "two cups"]),
        ("header.tsv", "url\twidth\tCaption\nhttp://x/1.jpg\t5\ta red barn\n", ["a red barn"]),
        ("open_clip.tsv", "filepath\ttitle\na/b.jpg\ta dog\nc/d.jpg\ta cat\n", ["a dog", "a cat"]),
        ("open_quote.tsv", '"Q" is a letter\thttp://x/1\n"open\thttp://x/2\n', ['"Q" is a letter', '"open']),
        ("pandas.tsv", 'caption\turl\n"she said ""no"""\thttp://x/1\n', ['she said "no"']),
        ("one.tsv", "a red barn\ntwo cups\n", ["a red barn", "two cups"]),
        ("a.csv", 'id,caption\n1,"he said ""hi"", twice"\n2,"two\nlines"\n', ['he said "hi", twice', "two lines"]),
        ("excel.csv", "\ufeffcaption;n\r\nein Hund, zwei;1\r\n", ["ein Hund, zwei"]),
        ("a.jsonl", '{"id": 1, "text": "a, \\"b\\", \\\\c"}\n\n{"id": 2, "text": "one\\ntwo"}\n', ['a, "b", \\c', "one two"]),
        ("lines.jsonl", '"one"\n"two"\n', ["one", "two"]),
        ("list.jsonl", '{"caption": ["one", null, "two"]}\n', ["one", "two"]),
        ("coco.json", '{"images": [{"id": 7}], "annotations": [{"image_id": 7, "caption": "a dog"}]}', ["a dog"]),
        ("list.json", '["one", "two"]', ["one", "two"]),
        ("objects.json", '[{"prompt": "one", "n": 1}]', ["one"]),
        ("lines.json", '{"prompt": "one"}\n{"prompt": "two"}\n', ["one", "two"]),
        ("a.parquet", pa.table({"url": ["a", "b"], "TEXT": ["one", "two"]}), ["one", "two"]),
        ("list.parquet", pa.table({"caption": [["a dog", "a hound"], None, ["a cat"]]}), ["a dog", "a hound", "a cat"]),
        ("bytes.parquet", pa.table({"caption": [b"one", "né".encode()]}), ["one", "né"]),
        ("words.parquet", pa.table({"caption": pa.array(["one", "two", "one"]).dictionary_encode()}), ["one", "two", "one"]),
    ],
)
def test_captions_are_found(tmp_path: Path, name: str, content: str | pa.Table, expected: list[str]) -> None:
    assert texts(write(tmp_path / name, content)) == expected


@pytest.mark.parametrize(
    ("name", "content", "column", "expected"),
    [
        ("a.csv", "caption,alt\na dog,a hound\n", "alt", ["a hound"]),
        ("a.csv", "caption,alt\na dog,a hound\n", "ALT", ["a hound"]),
        ("a.csv", "caption,alt\na dog,a hound\n", "2", ["a hound"]),
        ("a.tsv", "a dog\ta hound\nx\ty\n", "2", ["a hound", "y"]),
        ("a.csv", "legende;n\nein Hund;1\n", "legende", ["ein Hund"]),
        ("a.jsonl", '{"caption": "a dog", "alt": "a hound"}\n', "alt", ["a hound"]),
        ("a.parquet", pa.table({"caption": ["a dog"], "alt": ["a hound"]}), "2", ["a hound"]),
    ],
)
def test_a_column_can_be_named(tmp_path: Path, name: str, content: str | pa.Table, column: str, expected: list[str]) -> None:
    assert texts(write(tmp_path / name, content), column) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n\n \u200b\ntwo\n"),
        ("a.csv", "n,caption\n1,one\n2,\n3, \u200b\n4,two\n"),
        ("a.tsv", "n\tcaption\n1\tone\n2\t\n3\t \u200b\n4\ttwo\n"),
        ("a.jsonl", '{"caption": "one"}\n{"caption": null}\n{"caption": " \u200b"}\n{"caption": "two"}\n'),
        ("a.json", '[{"caption": "one"}, {"n": 1}, {"caption": " \u200b"}, {"caption": "two"}]'),
        ("a.parquet", pa.table({"caption": ["one", None, " \u200b", "two"]})),
        ("l.parquet", pa.table({"caption": [["one", None], [" \u200b", "two"]]})),
    ],
)
def test_nulls_and_blanks_are_left_out_and_counted_alike(tmp_path: Path, name: str, content: str | pa.Table) -> None:
    read = read_captions(write(tmp_path / name, content))
    assert read.texts.to_pylist() == ["one", "two"]
    assert read.skipped == {"empty": 2}


def test_what_cannot_be_seen_goes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffa\u200b do\ufeffg\u2060\t and \x00 a\u2028cat \n")
    assert texts(path) == ["a dog  and   a cat"]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_gzipped_files_are_read(tmp_path: Path, name: str) -> None:
    content = {"a.txt": "one\ntwo\n", "a.csv": "caption\none\ntwo\n", "a.jsonl": '{"text": "one"}\n{"text": "two"}\n'}[name]
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(content.encode()))
    assert texts(path) == ["one", "two"]
    assert source_stem(path) == "a"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"is not a readable gzip file: .* Is it cut short\?"):
        texts(path)


def test_a_folder_and_a_pattern_are_all_their_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    for name, line in (("part-2.txt", "two"), ("part-1.txt", "one"), ("other.txt", "zero"), (".hidden.txt", "never")):
        write(folder / name, line)
    write(folder / "README.md", "never")
    assert texts(folder) == ["zero", "one", "two"]
    assert texts(folder / "part-*.txt") == ["one", "two"]
    assert [source_stem(path) for path in (folder, folder / "part-*.txt", folder / "*.txt")] == ["web", "part", "web"]
    digests = [hashlib.sha256(line).hexdigest() for line in (b"one", b"two")]
    assert captions_sha256(folder / "part-1.txt") == digests[0]
    assert captions_sha256(folder / "part-*.txt") == hashlib.sha256("\n".join(digests).encode()).hexdigest()


def test_a_file_whose_name_is_a_pattern_is_itself(tmp_path: Path) -> None:
    write(tmp_path / "a1.txt", "no")
    assert texts(write(tmp_path / "a[1].txt", "yes")) == ["yes"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "holds no caption"),
        ("a.txt", b"caf\xe9\n", "is not UTF-8 text"),
        ("a.doc", "x", "Unknown kind of caption file '.doc'"),
        ("a.parquet.gz", "x", "Parquet is compressed inside"),
        ("a.parquet", "no parquet", "not a readable Parquet file"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"a": "b"}', "expected a list, or an object with a list under annotations"),
        ("a.jsonl", '{"caption": "one"}\n{"caption": 2}\n', "line 2: expected text under caption, found int"),
        ("a.jsonl", '{"caption": "one"}\n"two"\n', "line 2: expected an object like before, found str"),
        ("a.jsonl", '{"url": "x"}\n', "no column is called caption, .*; found url"),
        ("a.csv", 'caption\n"open\n', "line 2: no CSV: unexpected end of data. Is a quote missing"),
        ("a.csv", "n,caption\n1,a,b\n", "line 2: expected 2 columns as in the first line, found 3"),
        ("a.csv", "n,descr\n1,a dog\n2,a cat\n", "none of the columns n, descr is called caption"),
        ("a.tsv", "path\tdescr\na/1.jpg\ta dog\na/2.jpg\ta cat\na/3.jpg\ta cat\n", "none of the columns path, descr is called caption"),
        ("a.tsv", "a dog\ta hound\na cat\ta kitten\n", "none of the columns a dog, a hound is called caption"),
        ("a.csv", "caption,Caption\na,b\n", "the columns caption and Caption could both hold the captions"),
        ("a.txt", "http://x/1\nhttps://x/2\na dog\n", "its lines look like addresses"),
        ("a.txt", "val/my dog.jpg\nval/my cat.png\n", "look like file names and not like captions"),
        ("a.csv", "caption\n0001\n0002\n", "the values of column caption look like numbers"),
        ("a.parquet", pa.table({"caption": ["train/1.jpg", "train/2.jpg"]}), "the values of caption look like file names"),
        ("a.parquet", pa.table({"caption": [1, 2]}), "column caption holds int64; captions are strings"),
        ("a.parquet", pa.table({"caption": [[1], [2]]}), "column caption holds list"),
        ("a.parquet", pa.table({"caption": [b"caf\xe9"]}), "is not UTF-8 text"),
        ("a.parquet", pa.table({"url": ["a"], "width": [3]}), "no column is called caption, .*; found url, width"),
    ],
)
def test_what_is_no_caption_file_is_refused(tmp_path: Path, name: str, content: str | bytes | pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        texts(write(tmp_path / name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("capton", "--caption-column: Unknown column 'capton'. Did you mean 'caption'"),
        ("4", "--caption-column 4: there are 3 columns, counted from 1"),
        ("url", "the values of column url look like addresses and not like captions"),
        ("1", "the values of column url look like addresses"),
        ("n", "the values of column n look like numbers"),
    ],
)
def test_a_named_column_must_be_there_and_hold_captions(tmp_path: Path, column: str, message: str) -> None:
    path = write(tmp_path / "a.csv", "url,n,caption\nhttp://x/1,3,a dog\nhttp://x/2,4,a cat\n")
    with pytest.raises(DataError, match=message):
        read_captions(path, wish(column))


def test_a_folder_of_several_kinds_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one")
    write(tmp_path / "a.json", "[]")
    with pytest.raises(DataError, match=r"holds files of several kinds \(.json, .txt\): name those that are meant, as '.*\*.json'"):
        read_captions(tmp_path)
    with pytest.raises(DataError, match="holds no caption file"):
        read_captions(tmp_path / "*.csv")
    with pytest.raises(DataError, match="No caption file at"):
        read_captions(tmp_path / "b.txt")


def test_a_very_long_value_is_told_shortened(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "http://x/" + "y" * 3_000_000)
    with pytest.raises(DataError, match=r"look like addresses .*\.\.\. \(3,000,009 characters\)") as caught:
        texts(path)
    assert len(str(caught.value)) < 500


def test_many_lines_are_read_compactly(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_text("".join(json.dumps({"text": f"a photo of thing number {number}"}) + "\n" for number in range(200_000)))
    read = read_captions(path)
    assert len(read.texts) == 200_000
    assert read.texts[199_999].as_py() == "a photo of thing number 199999"
    assert read.texts.nbytes < 2 * path.stat().st_size
