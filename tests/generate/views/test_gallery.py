"""The gallery of an output folder: every picture, on pages, with captions that stay text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gift_generate.views.gallery import write_gallery
from gift_shared.errors import ConfigError
from gift_shared.parquet_files import read_output_index

FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)
NASTY = ["<script>document.title = 'owned'</script>", '"><img src=x onerror=alert(1)>', "صورة لثعلب", "a 🦊", "long " * 100]


class Captions(HTMLParser):
    """Texts of the captions, and every link."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.captions: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self._is_caption = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.links += [values[name] for name in ("src", "href") if name in values]
        self._is_caption = values.get("class") == "caption"
        if self._is_caption:
            self.captions.append("")

    def handle_data(self, data):
        if self._is_caption:
            self.captions[-1] += data

    def handle_endtag(self, tag):
        self._is_caption = False


def test_every_picture_is_on_a_page_once_with_its_own_bytes(command, rendered: Path, tmp_path: Path) -> None:
    result = command("show", "--out", rendered, "--html", tmp_path / "g")
    assert result.code == 0, result.err
    assert "20 pictures on 1 pages" in result.out
    page = Captions((tmp_path / "g/pages/page-000001.html").read_text())
    rows = read_output_index(rendered)[0].to_pylist()
    assert sorted(page.captions) == sorted(row["caption"] for row in rows)
    for row in rows:
        path = tmp_path / "g" / "images" / row["shard"] / row["image_name"]
        assert path.stat().st_size == row["byte_size"]
        assert f"../images/{row['shard']}/{row['image_name']}" in page.links


def test_a_folder_of_any_size_becomes_pages_that_name_each_other(rendered: Path, tmp_path: Path) -> None:
    assert write_gallery(rendered, tmp_path / "g", per_page=8) == (20, 3)
    pages = [Captions(path.read_text()) for path in sorted((tmp_path / "g/pages").iterdir())]
    assert [len(page.captions) for page in pages] == [8, 8, 4]
    assert {"page-000001.html", "page-000003.html", "../index.html"} <= set(pages[1].links)
    assert "(continued)" in (tmp_path / "g/pages/page-000002.html").read_text()
    # Larger pages next time: none of the old ones stays behind.
    write_gallery(rendered, tmp_path / "g", per_page=20)
    assert [path.name for path in (tmp_path / "g/pages").iterdir()] == ["page-000001.html"]


def test_the_index_leads_to_the_first_picture_of_every_class(rendered: Path, tmp_path: Path) -> None:
    write_gallery(rendered, tmp_path / "g", per_page=8)
    index = (tmp_path / "g/index.html").read_text()
    counts = [int(count) for count in re.findall(r'data-count="(\d+)"', index)]
    assert sum(counts) == 20
    for page, anchor in re.findall(r'href="(pages/page-\d+\.html)#([^"]+)"', index):
        assert f'id="{anchor}"' in (tmp_path / "g" / page).read_text()


def test_captions_stay_text(command, manifests: Path, tmp_path: Path) -> None:
    (tmp_path / "web.txt").write_text("\n".join(NASTY))
    flags = ("--order", "tiny", "--manifests", manifests, "--images-per-task", 12, "--caption-file", tmp_path / "web.txt")
    assert command("plan", "--out", tmp_path / "p.parquet", *flags, "--class-name-weight", 0.1).code == 0
    assert command("render", "--plan", tmp_path / "p.parquet", "--out", tmp_path / "out", *FLAT).code == 0
    assert command("show", "--out", tmp_path / "out", "--html", tmp_path / "g").code == 0
    page = Captions((tmp_path / "g/pages/page-000001.html").read_text())
    assert {caption.strip() for caption in NASTY} <= {caption.strip() for caption in page.captions}
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 24


def test_a_folder_of_something_else_is_not_written_into(command, rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g/thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"exists and is no gallery \(no gallery.json\). Choose another folder."):
        write_gallery(rendered, tmp_path / "g")
    result = command("show", "--out", rendered)
    assert result.code == 2
    assert "Give either --to FILE.png for a contact sheet or --html FOLDER" in result.err
