"""README.md of a finished folder: made with the index, the same from anyone, gone with it, and never over a user's own."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from gift_generate.output.dataset_card import remove_card, write_card
from gift_generate.output.folder import OutputFolder
from gift_generate.rendering.model_card import license_of
from gift_shared.parquet_files import read_index, write_index
from gift_shared.schema import INDEX_SCHEMA

FLAT = ("--model", "flat-color", "--height", 16, "--width", 16)


def front_matter(out: Path) -> dict:
    return yaml.safe_load((out / "README.md").read_text().split("---\n")[1])


def record(out: Path, **machine: str) -> None:
    (out / "render.json").write_text(json.dumps({"settings": {"steps | `of`": "a\nb"}, "machine": machine}))


def anew(out: Path, **machine: str) -> str:
    """The card that a folder gets with this record of the machine."""
    record(out, **machine)
    (out / "README.md").unlink()
    assert write_card(out) is None
    return (out / "README.md").read_text()


def test_the_card_says_what_is_there(rendered: Path) -> None:
    facts = front_matter(rendered)
    assert facts["license"] == "unknown"
    assert facts["size_categories"] == ["n<1K"]
    assert facts["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.tar"}]}]
    text = (rendered / "README.md").read_text()
    assert "| Images made by | `flat-color` |\n" in text
    assert "| Planned images | 20 ok, 0 black, 0 flagged, 0 failed |\n" in text
    assert "## Tasks\n\n| task | planned | usable |\n| --- | --- | --- |\n| `cats` | 10 | 10 |\n| `cars` | 10 | 10 |\n\n## Captions" in text
    assert str(rendered) not in text


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("owner/name", "owner/name"),
        ("/models/sd 15", "sd 15"),
        ("./models/", "models"),
        ("C:\\models\\sd15", "sd15"),
        ("a|b`c\nd", "a/b'c d"),
    ],
)
def test_a_models_name_is_shown_without_the_machines_folders(rendered: Path, model: str, shown: str) -> None:
    text = anew(rendered, model=model)
    assert f"| Images made by | `{shown}` |\n" in text
    assert "| `steps / 'of'` | `a b` |\n" in text
    assert yaml.safe_load(text.split("---\n")[1])["pretty_name"].startswith("Synthetic images by ")


def test_the_checkpoints_licence_is_the_cards(rendered: Path) -> None:
    text = anew(rendered, model="owner/name", license="other", license_name="some-license", license_link="LICENSE.md", torch="2.14")
    facts = front_matter(rendered)
    assert [facts[key] for key in ("license", "license_name", "license_link")] == ["other", "some-license", "LICENSE.md"]
    assert "| Licence of the checkpoint | `other`, `some-license`, `LICENSE.md` |\n" in text


@pytest.mark.parametrize(
    ("card", "license_"),
    [
        ("---\nlicense: openrail++\ntags:\n- x\n---\n# Model\n", {"license": "openrail++"}),
        ("\ufeff---\r\nlicense: other\r\nlicense_name: flux\r\nlicense_link: [1]\r\n---\r\n", {"license": "other", "license_name": "flux"}),
        ("# Model\nlicense: mit\n", {}),
        ("---\nlicense: [mit]\n---\n", {}),
        ("---\nlicense: 'a\n\nb'\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("---\n- mit\n---\n", {}),
        ("---\n{: !!python/object:os.system\n---\n", {}),
        (None, {}),
    ],
)
def test_a_licence_is_read_from_the_front_matter_alone(tmp_path: Path, card: str | None, license_: dict) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    assert license_of(tmp_path) == license_


@pytest.mark.parametrize(("num_images", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (100_000, "100K<n<1M")])
def test_the_size_is_that_of_the_usable_images(rendered: Path, num_images: int, size: str) -> None:
    rows, metadata = read_index(rendered / "index.parquet")
    row = rows.to_pylist()[0]
    many = pa.Table.from_pylist([row], INDEX_SCHEMA).take(pa.array([0] * num_images, pa.int64()))
    failed = pa.Table.from_pylist([row | {"status": "failed"}], INDEX_SCHEMA)
    write_index(rendered / "index.parquet", pa.concat_tables([many, failed]), metadata)
    (rendered / "README.md").unlink()
    assert write_card(rendered) is None
    assert front_matter(rendered)["size_categories"] == [size]


def test_the_card_goes_with_the_index_and_comes_with_it(command, content, rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(rendered)
    (rendered / "shards" / "cats-00001.parquet").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write_index", lambda _: (_ for _ in ()).throw(SystemExit(9)))
        assert command("render", "--out", rendered, *FLAT).code == 9
    assert not (rendered / "README.md").exists()
    assert command("render", "--out", rendered, *FLAT).code == 0
    assert content(rendered) == before


def test_a_folder_without_a_card_gets_it_from_a_render_that_finds_nothing_to_do(command, content, rendered: Path) -> None:
    """Folders of older versions have none, and verify does not mind."""
    before = content(rendered)
    (rendered / "README.md").unlink()
    assert command("verify", "--out", rendered).code == 0
    result = command("render", "--out", rendered, *FLAT)
    assert "nothing left to do" in result.out
    assert content(rendered) == before


@pytest.mark.parametrize("is_edited", [True, False], ids=["edited", "own"])
def test_a_users_readme_stays_and_that_is_told(command, rendered: Path, is_edited: bool) -> None:
    path = rendered / "README.md"
    own = path.read_text().replace("# Synthetic images", "# My images") if is_edited else "# My images\n"
    path.write_text(own)
    remove_card(rendered)
    assert path.read_text() == own
    assert ("stays" in command("render", "--out", rendered, *FLAT).err) == (not is_edited)  # an edited card of this very index is no news
    (rendered / "shards" / "cats-00001.parquet").unlink()
    (rendered / "shards" / "cats-00001.tar").unlink()
    assert command("render", "--out", rendered, *FLAT).code == 0
    assert path.read_text() == own
    assert command("verify", "--out", rendered).code == 0


def test_a_card_of_another_index_is_told_by_verify_and_written_anew(command, rendered: Path, tmp_path: Path) -> None:
    whole = (rendered / "README.md").read_text()
    shutil.copytree(rendered, tmp_path / "other")
    index = tmp_path / "other" / "index.parquet"
    rows, metadata = read_index(index)
    write_index(index, rows, metadata | {"more": "of it"})
    assert write_card(tmp_path / "other") is None
    other = (tmp_path / "other" / "README.md").read_text()
    assert other != whole
    (rendered / "README.md").write_text(other)
    result = command("verify", "--out", rendered)
    assert result.code == 1
    assert f"{rendered}/README.md describes another index.parquet; delete it and run the command" in result.out
    assert command("render", "--out", rendered, *FLAT).code == 0
    assert (rendered / "README.md").read_text() == whole


def test_status_and_show_take_the_folder_as_before(command, rendered: Path) -> None:
    assert json.loads(command("status", "--out", rendered, "--json").out)["has_index"]
    assert command("show", "--out", rendered, "--to", rendered.parent / "sheet.png").code == 0
