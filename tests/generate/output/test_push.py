"""gift-generate push, through the hub's own client to a look-alike: whole folders, and nothing half looks whole."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

from gift_generate.output.dataset_card import write_card
from gift_shared.cards import is_untouched
from gift_shared.file_cache import FileCache
from gift_shared.parquet_files import read_output_index
from gift_shared.storage import RemoteFolder


@pytest.fixture
def hub(hub_site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty one, used by somebody who may write."""
    (tmp_path / "repositories/models/our/model").mkdir(parents=True)
    (tmp_path / "repositories/models/our/model/model.safetensors").write_text("weights")
    site = hub_site(tmp_path / "repositories")
    site.use(monkeypatch, "hf_good")
    return site


def names(hub: Any, name: str, revision: str = "main") -> list[str]:
    api = HfApi(endpoint=f"http://127.0.0.1:{hub.port}")
    return sorted(set(api.list_repo_files(name, repo_type="dataset", revision=revision)) - {".gitattributes"})


def published(out: Path) -> list[str]:
    kept = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in kept if path.parts[0] not in ("workers", "claims", "spool"))


def test_what_is_pushed_is_what_hf_datasets_reads(command, rendered: Path, hub, tmp_path: Path) -> None:
    (rendered / "shards/.cats-00000.tar.1-2-3.tmp").write_text("left by a killed worker")
    result = command("push", "our/new", "--out", rendered)
    assert result.code == 0, result.err
    assert f"{rendered} is at http://127.0.0.1:{hub.port}/datasets/our/new\n" in result.out
    assert names(hub, "our/new") == [name for name in published(rendered) if not name.startswith("shards/.")]
    (location,) = re.findall(r"--shards (hf://datasets/our/new@[0-9a-f]{40}) ", result.out)
    folder = RemoteFolder(location, FileCache(tmp_path / "cache"))
    assert read_output_index(folder)[0].equals(read_output_index(rendered)[0])
    folder.fetch("cars-00002")
    assert folder.tar("cars-00002").read_bytes() == (rendered / "shards/cars-00002.tar").read_bytes()


def test_index_and_card_come_last_and_a_second_push_sends_nothing(command, rendered: Path, hub) -> None:
    assert command("push", "our/new", "--out", rendered).code == 0
    commits = [path for path in hub.requests("POST") if "/commit/" in path]
    assert len(commits) == 2
    sent = hub.requests("PUT")
    again = command("push", "our/new", "--out", rendered)
    assert again.code == 0, again.err
    assert hub.requests("PUT") == sent
    assert [path for path in hub.requests("POST") if "/commit/" in path] == commits


def test_a_push_that_broke_off_goes_on_and_until_then_has_no_index(command, rendered: Path, hub) -> None:
    hub.control(uploads_left=3)
    broken = command("push", "our/new", "--out", rendered)
    assert broken.code == 1
    assert re.fullmatch(r"error: our/new: the upload broke off \(.*\)\. What has arrived stays there; [^\n]*\n", broken.err)
    assert "index.parquet" not in names(hub, "our/new")
    hub.control(uploads_left=None)
    assert len(hub.requests("PUT")) == 3
    result = command("push", "our/new", "--out", rendered)
    assert result.code == 0, result.err
    assert names(hub, "our/new") == published(rendered)
    assert len(hub.requests("PUT")) == len(set(hub.requests("PUT"))), "a file came twice"


def test_what_is_not_whole_or_not_sound_is_refused_before_the_hub_is_asked(command, rendered: Path, hub) -> None:
    hub.log.unlink(missing_ok=True)
    tar = rendered / "shards/cats-00001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:1000] + bytes(50) + content[1050:])
    edited = command("push", "our/new", "--out", rendered)
    (rendered / "shards/cats-00001.parquet").unlink()
    unfinished = command("push", "our/new", "--out", rendered)
    nothing = command("push", "our/new", "--out", rendered / "shards")
    assert (edited.code, unfinished.code, nothing.code) == (2, 2, 2)
    assert f"error: {rendered} is not sound, so nothing was sent: " in edited.err
    assert f"error: {rendered} is not finished: 1 of 6 shards are not there yet." in unfinished.err
    assert "no output folder of gift-generate" in nothing.err
    assert not hub.log.exists()


def test_other_shards_are_replaced_only_if_told_and_have_no_index_meanwhile(command, rendered: Path, hub, tmp_path: Path) -> None:
    assert command("push", "our/new", "--out", rendered).code == 0
    other = Path(shutil.copytree(rendered, tmp_path / "other"))
    record = json.loads((other / "render.json").read_text())
    (other / "render.json").write_text(json.dumps(record | {"machine": {"model": "another"}}))
    pq.write_table(pq.read_table(other / "index.parquet"), other / "index.parquet", compression="gzip")
    (other / "README.md").unlink()
    write_card(other)
    refused = command("push", "our/new", "--out", other)
    assert refused.code == 2
    assert "our/new (main) holds another of shards of gift-generate: its index.parquet differs." in refused.err
    assert "Synthetic images by flat-color" in card(hub)
    hub.control(uploads_left=0)
    assert command("push", "our/new", "--out", other, "--replace").code == 1
    assert not {"index.parquet", "README.md"} & set(names(hub, "our/new"))
    hub.control(uploads_left=None)
    replaced = command("push", "our/new", "--out", other, "--replace")
    assert replaced.code == 0, replaced.err
    assert names(hub, "our/new") == published(other)
    assert "Synthetic images by another" in card(hub)
    elsewhere = command("push", "our/new", "--out", rendered, "--revision", "first", "--replace")
    assert elsewhere.code == 0, elsewhere.err
    assert elsewhere.out.splitlines()[0].endswith("/datasets/our/new/tree/first")
    assert "Synthetic images by another" in card(hub)


def card(hub: Any) -> str:
    api = HfApi(endpoint=f"http://127.0.0.1:{hub.port}")
    return Path(api.hf_hub_download("our/new", "README.md", repo_type="dataset", force_download=True)).read_text()


def test_a_card_that_was_edited_on_the_hub_stays(command, rendered: Path, hub, tmp_path: Path) -> None:
    assert command("push", "our/new", "--out", rendered).code == 0
    assert is_untouched(card(hub).encode())
    (tmp_path / "edited.md").write_text("# Mine")
    hub.commit("our/new", "README.md", tmp_path / "edited.md")
    result = command("push", "our/new", "--out", rendered)
    assert result.code == 0
    assert "its README.md was changed there, so it stays" in result.err
    assert card(hub) == "# Mine"


def test_private_is_private_and_never_a_wish_that_is_not_met(command, rendered: Path, hub) -> None:
    assert command("push", "our/secret", "--out", rendered, "--private").code == 0
    api = HfApi(endpoint=f"http://127.0.0.1:{hub.port}")
    assert api.repo_info("our/secret", repo_type="dataset").private
    assert command("push", "our/new", "--out", rendered).code == 0
    refused = command("push", "our/new", "--out", rendered, "--private")
    assert refused.code == 2
    assert "our/new is there and public" in refused.err


@pytest.mark.parametrize(
    ("token", "name", "more", "told"),
    [
        (None, "our/new", (), "error: our/new: to upload, log in with `hf auth login` or set HF_TOKEN, with a token that may write."),
        ("hf_reader", "our/new", (), "error: our/new may not be written with your token"),
        ("hf_wrong", "our/new", (), "error: our/new is refused: the hub does not know your token."),
        ("hf_good", "new", (), "error: 'new' should be the repository's owner and name on the hub, e.g. you/mtil-shards."),
        ("hf_good", "our/new", ("--revision", "0123456789" * 4), "should be a branch: a commit never changes."),
        ("hf_good", "our/.new..", (), "error: our/.new.. is no name of the hub"),
    ],
)
def test_who_may_not_push_is_told_in_one_line(command, rendered: Path, hub, monkeypatch, token, name, more, told) -> None:
    hub.use(monkeypatch, token)
    result = command("push", name, "--out", rendered, *more)
    assert result.code == 2
    assert told in result.err
    assert result.err.count("\n") == 1


def test_a_repository_of_something_else_is_let_alone(command, rendered: Path, hub, tmp_path: Path) -> None:
    assert command("push", "our/new", "--out", rendered).code == 0
    (tmp_path / "data.csv").write_text("1,2")
    hub.commit("our/new", "data.csv", tmp_path / "data.csv")
    result = command("push", "our/new", "--out", rendered)
    assert result.code == 2
    assert "our/new holds other files than shards of gift-generate ('data.csv'), which stay. Choose another name." in result.err


def test_a_hub_that_is_not_there_is_told(command, rendered: Path, hub, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = command("push", "our/new", "--out", rendered)
    assert result.code == 2
    assert re.search(r"error: our/new: the hub cannot be reached: .*refused", result.err)
