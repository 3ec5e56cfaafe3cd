"""What the pictures of a render are: a sheet of a few with their captions."""

from pathlib import Path

import pytest
from PIL import Image

FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)


def colors_of(sheet: Path) -> set[tuple[int, int, int]]:
    with Image.open(sheet) as image:
        return {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 24)}


def test_a_sheet_shows_the_pictures_and_their_captions(command, rendered: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = command("show", "--out", rendered, "--to", sheet, "--pictures", 3)
    assert result.code == 0, result.err
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.width == 3 * 154 + 10
    assert len(colors_of(sheet)) > 20  # flat pictures, and the greys of letters


def test_a_sheet_by_class_has_a_row_for_every_class_that_fits(command, rendered: Path, tmp_path: Path) -> None:
    result = command("show", "--out", rendered, "--to", tmp_path / "s.png", "--by", "class", "--groups", 2)
    assert "more had no room, --groups or --only show them" in result.out
    assert command("show", "--out", rendered, "--to", tmp_path / "s.png", "--by", "class", "--only", "thing 3").code == 0


def test_captions_of_any_script_and_length_fit(command, manifests: Path, tmp_path: Path) -> None:
    web = tmp_path / "web.txt"
    web.write_text(
        "Ωμέγα и кириллица\n" + "x" * 400 + "\nשלום <script>alert(1)</script> 🐈\n" + "many words " * 60 + "\n", encoding="utf-8"
    )
    plan, out = tmp_path / "p.parquet", tmp_path / "out"
    command(
        "plan", "--out", plan, "--order", "tiny", "--images-per-task", 8, "--caption-file", web, "--class-name-weight", 0,
        "--manifests", manifests,
    )  # fmt: skip
    assert command("render", "--plan", plan, "--out", out, *FLAT).code == 0
    assert command("show", "--out", out, "--to", tmp_path / "s.png").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "classes"), "Unknown grouping 'classes'. Did you mean 'class'?"),
        (("--only", "cat"), "Unknown task 'cat'. Did you mean 'cats'?"),
        (("--pictures", 0), "at least one picture"),
    ],
)
def test_wrong_names_are_one_line(command, rendered: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    result = command("show", "--out", rendered, "--to", tmp_path / "s.png", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "s.png").exists()


def test_nothing_to_show_is_one_line(command, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("render", "--plan", plan, "--out", out, *FLAT, "--rank", 1, "--world-size", 9).code == 0
    for path in (out / "shards").glob("*"):
        path.unlink()
    result = command("show", "--out", out, "--to", tmp_path / "s.png")
    assert result.code == 2
    assert "holds no usable image to show yet" in result.err


def test_a_shard_edited_after_indexing_is_not_shown(command, rendered: Path, tmp_path: Path) -> None:
    path = rendered / "shards" / "cats-00000.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 255
    path.write_bytes(content)
    result = command("show", "--out", rendered, "--to", tmp_path / "s.png")
    assert result.code == 2
    assert "was changed after indexing" in result.err
