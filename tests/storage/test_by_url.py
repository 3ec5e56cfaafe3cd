"""What is behind a URL reads as it does here, is fetched once, and is kept within bounds."""

import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gift_shared.errors import ConfigError, ShardError
from gift_shared.file_cache import FileCache
from gift_shared.parquet_files import read_output_index
from gift_shared.remote_files import Patience
from gift_shared.shards import read_image_bytes, require_images, shard_tar
from gift_shared.storage import RemoteFolder, index_file, open_folder
from gift_train.data.replay import ReplayDataset
from gift_train.data.transforms import image_transforms

SHARDS = [f"cats-{number:05d}" for number in range(3)]


def copies(remote: RemoteFolder) -> list[Path]:
    return sorted(path for path in remote.cache.folder.rglob("*.tar") if not path.name.startswith("."))


def test_index_and_images_are_those_of_the_folder(served, remote, out, places):
    folder = remote(served(out.parent).url + "/out")
    assert read_output_index(folder)[0].equals(read_output_index(out)[0])
    assert [read_image_bytes(folder, **place) for place in places] == [read_image_bytes(out, **place) for place in places]


def test_every_file_is_asked_for_once_by_all_that_share_the_cache(served, remote, out, places):
    site = served(out)
    for _ in range(2):
        folder = remote(site.url)
        require_images(folder, [read_output_index(folder)[0]])
    assert len(site.requests(ending=".tar")) == len(SHARDS)
    assert len(site.requests(ending="index.parquet")) == 1


def test_an_index_that_has_changed_is_fetched_again(served, remote, out):
    site = served(out)
    before = index_file(remote(site.url)).read_bytes()
    (out / "index.parquet").write_bytes((out / "shards/cats-00000.parquet").read_bytes())
    assert index_file(remote(site.url)).read_bytes() != before


def test_shards_made_anew_replace_their_copies(served, remote, out, places):
    site = served(out)
    read_image_bytes(remote(site.url), **places[0])
    stale = remote(site.url).tar(places[0]["shard"])
    stale.write_bytes(bytes(stale.stat().st_size))  # the copy is of another time
    assert read_image_bytes(remote(site.url), **places[0]) == read_image_bytes(out, **places[0])
    assert len(site.requests(ending="cats-00000.tar")) == 2


@pytest.mark.parametrize("damage", [lambda content: content[:700], lambda content: b"", lambda content: content[:-9999] + bytes(9999)])
def test_a_damaged_copy_is_fetched_again(served, remote, out, places, damage):
    folder = remote(served(out).url)
    folder.fetch("cats-00000")
    copy = folder.tar("cats-00000")
    copy.write_bytes(damage(copy.read_bytes()))
    last = [place for place in places if place["shard"] == "cats-00000"][-1]
    assert read_image_bytes(folder, **last) == read_image_bytes(out, **last)
    assert copy.read_bytes() == shard_tar(out, "cats-00000").read_bytes()


def test_a_copy_that_is_shorter_than_the_index_wants_is_fetched_again(served, remote, out):
    site = served(out)
    folder = remote(site.url)
    folder.fetch("cats-00001")
    copy = folder.tar("cats-00001")
    copy.write_bytes(copy.read_bytes()[:5000])
    require_images(remote(site.url), [read_output_index(out)[0]])
    assert copy.read_bytes() == shard_tar(out, "cats-00001").read_bytes()


def test_a_damaged_copy_of_the_index_is_fetched_again(served, remote, out):
    site = served(out)
    copy = index_file(remote(site.url))
    copy.write_bytes(copy.read_bytes()[:-200])
    assert read_output_index(remote(site.url))[0].equals(read_output_index(out)[0])


def test_a_url_that_has_the_index_and_tars_alone_is_enough(served, remote, out, places):
    for path in (out / "shards").glob("*.parquet"):
        path.unlink()
    folder = remote(served(out).url)
    assert [read_image_bytes(folder, **place) for place in places] == [read_image_bytes(out, **place) for place in places]


def test_the_cache_never_exceeds_its_bound_and_drops_what_was_used_least_recently(served, remote, out):
    size = shard_tar(out, SHARDS[0]).stat().st_size
    folder = remote(served(out).url, cache_bytes=2 * size + 1000)
    for shard in (0, 1, 0, 2):
        folder.fetch(SHARDS[shard])
        assert sum(path.stat().st_size for path in folder.cache.folder.rglob("*") if path.is_file()) <= folder.cache.most_bytes
    assert [path.stem for path in copies(folder)] == [SHARDS[0], SHARDS[2]]


def test_tars_in_use_stay_while_others_come_and_go(served, remote, out, places):
    size = shard_tar(out, SHARDS[0]).stat().st_size
    folder = remote(served(out).url, cache_bytes=2 * size + 1000)
    folder.hold("task", SHARDS[:1])
    for shard in (1, 2, 1, 2):
        folder.fetch(SHARDS[shard])
        assert copies(folder)[0].stem == SHARDS[0]
    folder.hold("task", SHARDS[1:])
    assert [path.stem for path in copies(folder)] == SHARDS[1:]


def test_a_cache_too_small_for_what_is_read_together_is_told_before_anything_is_fetched(served, remote, out):
    site = served(out)
    folder = remote(site.url, cache_bytes=2 * shard_tar(out, SHARDS[0]).stat().st_size)
    rows = read_output_index(out)[0]
    with pytest.raises(ShardError, match=r"read together and the index have .* GB, the shard cache holds .*Give --shard-cache-gb"):
        require_images(folder, [rows])
    assert site.requests(ending=".tar") == []
    folder.hold("task", SHARDS[:1])
    with pytest.raises(ShardError, match="Give --shard-cache-gb"):
        folder.hold("no task", SHARDS)


def test_the_index_takes_room_too(served, remote, out):
    size = shard_tar(out, SHARDS[0]).stat().st_size
    folder = remote(served(out).url, cache_bytes=size + 1000)
    assert folder.has_room(size)
    assert folder.index().stat().st_size > 1000
    assert not folder.has_room(size)
    rows = read_output_index(out)[0]
    with pytest.raises(ShardError, match="Give --shard-cache-gb"):
        require_images(folder, [rows.slice(0, 3)])


def test_selections_that_do_not_fit_together_are_fetched_one_by_one(served, remote, out, places, caplog):
    site = served(out)
    size = shard_tar(out, SHARDS[0]).stat().st_size
    folder = remote(site.url, cache_bytes=size + 1000)
    rows = read_output_index(out)[0]
    selections = [rows.slice(3 * number, 3) for number in range(3)]
    require_images(folder, selections)
    assert "those of a task are fetched when it begins" in caplog.text
    assert site.requests(ending=".tar") == []
    for number in range(3):
        folder.hold("task", [SHARDS[number]])
        assert [path.stem for path in copies(folder)] == [SHARDS[number]]


def test_a_tar_that_is_shorter_than_the_index_says_is_told_before_anything_is_fetched(served, remote, out):
    site = served(out)
    tar = shard_tar(out, SHARDS[1])
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(ShardError, match=rf"{site.url}/shards/cats-00001\.tar is truncated: byte \d+ is not there"):
        require_images(remote(site.url), [read_output_index(out)[0]])
    assert site.requests(ending=".tar") == []


def test_runs_whose_shards_fit_one_at_a_time_fetch_them_in_turns(served, remote, out, tmp_path):
    shutil.copytree(out, out.parent / "other")
    site = served(out.parent, "limit_rate 20k;")  # slow enough that they meet
    size = shard_tar(out, SHARDS[0]).stat().st_size
    folders = [remote(f"{site.url}/{name}", 2 * size + 1000, Patience(stall=5)) for name in ("out", "other")]
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(folder.hold, "task", SHARDS[:2]) for folder in folders]:
            job.result()


FETCH = """
import sys
from pathlib import Path
from gift_shared.file_cache import FileCache
from gift_shared.storage import RemoteFolder
folder = RemoteFolder(sys.argv[1], FileCache(Path(sys.argv[2])))
print("ready", flush=True)
sys.stdin.read()
folder.fetch("cats-00000")
print(folder.tar("cats-00000").stat().st_size)
"""


def fetched_by_two(program, url, cache):
    """What two processes print that begin at the same time."""
    command = [sys.executable, "-c", program, url, str(cache)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.close()
    return [process.stdout.read().strip() for process in both if process.wait() == 0]


def test_two_processes_that_want_one_tar_fetch_it_once(served, out, tmp_path):
    site = served(out, "limit_rate 20k;")  # slow enough that both want it at the same time
    assert fetched_by_two(FETCH, site.url, tmp_path / "cache") == 2 * [str(shard_tar(out, "cats-00000").stat().st_size)]
    assert len(site.requests(ending="cats-00000.tar")) == 1


WITHOUT_LOCKS = """
import errno, fcntl
def flock(*_): raise OSError(errno.ENOSYS, "no locks here")
fcntl.flock = flock
"""


def test_where_files_cannot_be_locked_two_processes_fetch_apart(served, out, tmp_path):
    site = served(out, "limit_rate 20k;")
    size = shard_tar(out, "cats-00000").stat().st_size
    assert fetched_by_two(WITHOUT_LOCKS + FETCH, site.url, tmp_path / "cache") == 2 * [str(size)]


def test_loader_processes_read_by_url(served, remote, out):
    folder = remote(served(out).url)
    folder.index()  # a connection that the loaders must not use
    rows = read_output_index(folder)[0]
    transform = image_transforms(16).evaluation
    loader = torch.utils.data.DataLoader(ReplayDataset(folder, rows, transform), batch_size=2, num_workers=2)
    images = torch.cat([batch[0] for batch in loader])
    here = ReplayDataset(out, rows, transform)
    assert torch.equal(images, torch.stack([here[index][0] for index in range(len(here))]))


def test_a_pickled_folder_opens_its_own_connections(served, remote, out):
    folder = remote(served(out).url)
    folder.index()
    assert read_output_index(pickle.loads(pickle.dumps(folder)))[0].equals(read_output_index(out)[0])


def test_fsspecs_own_settings_are_kept(served, remote, out, monkeypatch):
    from fsspec.config import conf

    site = served(out, "if ($http_authorization != 'Bearer secret') { return 401; }")
    monkeypatch.setitem(conf, "http", {"client_kwargs": {"headers": {"Authorization": "Bearer secret"}}})
    assert read_output_index(remote(site.url))[0].equals(read_output_index(out)[0])


def test_plain_webdataset_reads_the_served_tars(served, out, places):
    import webdataset

    urls = f"{served(out).url}/shards/cats-{{00000..00002}}.tar"
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["png"] for sample in samples] == [read_image_bytes(out, **place) for place in places]
    assert [sample["txt"].decode() for sample in samples] == [f"a tabby {number}" for number in range(9)]


def test_paths_and_file_urls_are_folders_here(tmp_path):
    assert open_folder(str(tmp_path)) == open_folder(tmp_path) == open_folder(tmp_path.as_uri()) == tmp_path
    assert open_folder("shards") == Path("shards")


def test_the_environment_says_where_and_how_much_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("GIFT_SHARD_CACHE", str(tmp_path))
    monkeypatch.setenv("GIFT_SHARD_CACHE_GB", "0.5")
    assert (FileCache().folder, FileCache().most_bytes) == (tmp_path, 500_000_000)
    monkeypatch.setenv("GIFT_SHARD_CACHE_GB", "half")
    with pytest.raises(ConfigError, match="GIFT_SHARD_CACHE_GB should be a number of gigabytes above 0, found 'half'"):
        FileCache()
    monkeypatch.delenv("GIFT_SHARD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert FileCache(most_gb=1).folder == tmp_path / "xdg/gift/shards"


@pytest.mark.parametrize("bound", [float("inf"), float("nan"), -1.0, 0.0])
def test_a_bound_of_the_cache_that_is_none_is_told(tmp_path, bound):
    with pytest.raises(ConfigError, match=r"--shard-cache-gb .* should be a number of gigabytes above 0, found"):
        FileCache(tmp_path, bound)


@pytest.mark.parametrize("url", ["https://me:secret@host/shards", "https://host/shards?signature=secret", "s3://bucket/shards#secret"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match="Give credentials through the environment") as caught:
        open_folder(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://[::1/shards", r"--shards http://\.\.\. is no URL\. Write it as https://host/folder"),
        ("ftp://host/shards", r"ftp://host/shards: .*Give a folder, or a URL with http, https or s3"),
    ],
)
def test_a_url_that_cannot_be_asked_for_is_told(url, told):
    with pytest.raises(ConfigError, match=told):
        open_folder(url)


def test_an_unknown_protocol_is_told():
    with pytest.raises(ConfigError, match=r"floppy://shards: .*Give a folder, or a URL with http, https or s3"):
        open_folder("floppy://shards")


def test_a_package_that_the_extra_does_not_bring_is_told_by_its_own_name():
    program = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from gift_shared.storage import open_folder\n"
        "from gift_shared.console import run_app\n"
        "run_app(lambda: open_folder('gs://bucket/shards'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: gs://bucket/shards needs another package: ")
    assert "gcsfs" in done.stderr
    assert "gift-cl" not in done.stderr


def test_a_missing_package_is_told_with_what_to_install():
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from gift_shared.storage import open_folder\n"
        "from gift_shared.console import run_app\n"
        "run_app(lambda: open_folder('s3://bucket/shards'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, 'error: s3://bucket/shards needs the package s3fs: pip install "gift-cl[remote]".\n')
