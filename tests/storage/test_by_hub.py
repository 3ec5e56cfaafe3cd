"""Shards on the Hugging Face hub read as they do here, at one commit, by the hub's own client against a look-alike of it."""

import pickle
import shutil
import sys

import pytest

from gift_shared.errors import ConfigError, GiftError, ShardError
from gift_shared.hub_files import HubLocation, parse_location
from gift_shared.parquet_files import read_output_index
from gift_shared.shards import read_image_bytes, require_images, shard_tar
from gift_shared.storage import RemoteFolder, open_folder

NAMES = ("shards", "private", "gated", "closed", "half")
COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def hub(written, hub_site, tmp_path_factory):
    root = tmp_path_factory.mktemp("repositories")
    for name in NAMES:
        shutil.copytree(written, root / "datasets/our" / name)
    shutil.copytree(written, root / "datasets/our/many/first")
    (root / "datasets/our/half/index.parquet").unlink()
    shutil.copytree(written, root / "models/our/model")
    return hub_site(root)


@pytest.fixture(autouse=True)
def here(hub, monkeypatch):
    """The process of the tests asks the look-alike, as somebody who is not logged in."""
    hub.use(monkeypatch)


def test_index_and_images_are_those_of_the_folder(remote, out, places):
    folder = remote("hf://datasets/our/shards")
    assert read_output_index(folder)[0].equals(read_output_index(out)[0])
    assert [read_image_bytes(folder, **place) for place in places] == [read_image_bytes(out, **place) for place in places]
    nested = remote("hf://datasets/our/many@main/first")
    assert read_image_bytes(nested, **places[0]) == read_image_bytes(out, **places[0])


def test_a_piece_at_a_time_is_fetched_and_every_tar_once(hub, remote, out, monkeypatch):
    monkeypatch.setattr("gift_shared.remote_files.BLOCK_BYTES", 10_000)
    hub.log.unlink(missing_ok=True)
    for _ in range(2):
        folder = remote("hf://datasets/our/shards")
        require_images(folder, [read_output_index(folder)[0]])
    asked = [path for path in hub.requests("GET") if path.startswith("/datasets/our/shards/resolve/") and path.endswith("cats-00000.tar")]
    assert len(asked) == -(-shard_tar(out, "cats-00000").stat().st_size // 10_000)


def test_a_branch_that_moves_mixes_no_two_sets(hub, remote, written, out, places, tmp_path):
    shutil.copytree(written, tmp_path / "other")
    tar = shard_tar(tmp_path / "other", "cats-00002")
    tar.write_bytes(bytes(tar.stat().st_size))
    folder = remote("hf://datasets/our/shards")
    folder.index()
    begun = str(folder)
    hub.commit("our/shards", "shards/cats-00002.tar", tar)
    in_another_process = pickle.loads(pickle.dumps(folder))
    assert read_image_bytes(in_another_process, **places[-1]) == read_image_bytes(out, **places[-1])
    again = remote("hf://datasets/our/shards")
    again.pin(begun)
    assert str(again) == begun == f"hf://datasets/our/shards@{parse_location(begun).revision}"
    fresh = remote("hf://datasets/our/shards")
    with pytest.raises(ShardError, match=r"hf://datasets/our/shards@[0-9a-f]{40}/shards/cats-00002.tar has .* bytes, sha256"):
        read_image_bytes(fresh, **places[-1])
    assert str(fresh) != begun
    shutil.rmtree(fresh.cache.folder)
    hub.commit("our/shards", "shards/cats-00002.tar", shard_tar(out, "cats-00002"))


def test_a_run_that_began_elsewhere_pins_nothing(remote):
    for recorded in ("/some/folder", "https://host/shards", f"hf://datasets/our/private@{COMMIT}", "hf://datasets/our/shards@main"):
        folder = remote("hf://datasets/our/shards")
        folder.pin(recorded)
        assert str(folder) not in (recorded, "hf://datasets/our/shards")


def test_a_commit_is_taken_at_its_word_without_asking(hub):
    hub.log.unlink(missing_ok=True)
    assert RemoteFolder(f"hf://datasets/our/shards@{COMMIT}").tar("cats-00000").name == "cats-00000.tar"
    assert not hub.log.exists()


@pytest.mark.parametrize(
    ("url", "token", "told"),
    [
        ("our/nowhere", None, "hf://datasets/our/nowhere is no dataset of the hub for everybody: it is misspelt, or private"),
        ("our/nowhere", "hf_good", "hf://datasets/our/nowhere is no dataset of the hub: is it misspelt?"),
        ("our/private", None, "If it is private, log in with `hf auth login` or set HF_TOKEN"),
        ("our/gated", None, "is gated: accept its licence on its page of the hub"),
        ("our/closed", "hf_good", "is private, and your token may not read it"),
        ("our/shards", "hf_wrong", "the hub does not know your token"),
        ("our/shards@v2", None, "hf://datasets/our/shards@v2 has no revision 'v2': give a branch, tag or commit of it after the @."),
        ("our/model", None, "hf://datasets/our/model is a model on the hub, not a dataset"),
        ("our/half", None, "index.parquet is not there (404). Is that dataset an output folder of gift-generate, and complete?"),
    ],
)
def test_what_is_wrong_is_told_at_once_and_in_one_line(hub, remote, monkeypatch, url, token, told):
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(GiftError) as raised:
        remote(f"hf://datasets/{url}").index()
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_token_reads_what_is_private(remote, monkeypatch, out):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    for name in ("private", "gated"):
        assert read_output_index(remote(f"hf://datasets/our/{name}"))[0].equals(read_output_index(out)[0])


def test_a_hub_that_does_not_answer_is_waited_for_and_then_told(remote, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ShardError, match="hf://datasets/our/shards could not be read in 4 attempts"):
        remote("hf://datasets/our/shards").index()


def test_offline_mode_is_told_at_once(remote, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read by the library when it is imported
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        remote("hf://datasets/our/shards").index()


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("hf://datasets/o/n", HubLocation("o/n", "main", "")),
        ("hf://datasets/o/n/", HubLocation("o/n", "main", "")),
        ("hf://datasets/o/n@v1", HubLocation("o/n", "v1", "")),
        ("hf://datasets/o/n@v1/a/b", HubLocation("o/n", "v1", "a/b")),
        ("hf://datasets/o/n/a/b", HubLocation("o/n", "main", "a/b")),
        ("hf://datasets/o/n@refs/pr/3", HubLocation("o/n", "refs/pr/3", "")),
        ("hf://datasets/o/n@refs/pr/3/a/b", HubLocation("o/n", "refs/pr/3", "a/b")),
        ("hf://datasets/o/n@my%2Fbranch/a", HubLocation("o/n", "my/branch", "a")),
    ],
)
def test_locations_are_written_as_the_hubs_library_writes_them(url, location):
    assert parse_location(url) == location
    assert parse_location(str(location)) == location


@pytest.mark.parametrize("url", ["hf://o/n", "hf://datasets/o", "hf://datasets//n", "hf://models/o/n", "hf://datasets/o/n@", "hf://"])
def test_what_is_no_dataset_of_the_hub_is_told(url):
    with pytest.raises(ConfigError, match="shards are hf://datasets/owner/name"):
        open_folder(url)


def test_without_the_library_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("gift_shared.hub", "huggingface_hub"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'hf://datasets/our/shards needs the package huggingface_hub: pip install "gift-cl\[remote\]"'):
        open_folder("hf://datasets/our/shards")
