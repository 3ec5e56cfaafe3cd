"""Whole runs over shards behind a URL."""

import hashlib
import json
import os
import re
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from gift_shared.storage import RemoteFolder
from gift_train.report.gallery import RunPictures
from gift_train.report.runs import load_run

TASKS = ("colours", "stripes")


def test_a_run_by_url_gives_the_weights_and_numbers_of_a_run_over_the_folder(quick_run, served, world, tmp_path):
    site = served(world.root)
    by_url = [f"--shards={site.url}/shards", f"--shard-cache={tmp_path / 'cache'}", "--num-workers=1"]
    for out, more in (("here", []), ("there", by_url)):
        outcome = quick_run("gift", tmp_path / out, *more)
        assert outcome.code == 0, outcome.err
    names = sorted(path.name for path in (tmp_path / "here/checkpoints").glob("*.safetensors"))
    assert names == ["task-01-colours.safetensors", "task-02-stripes.safetensors"]
    for name in names:
        here, there = load_file(tmp_path / "here/checkpoints" / name), load_file(tmp_path / "there/checkpoints" / name)
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in here)
    assert (tmp_path / "here/metrics.jsonl").read_bytes() == (tmp_path / "there/metrics.jsonl").read_bytes()
    record = [json.loads((tmp_path / out / "run.json").read_text())["shards"] for out in ("here", "there")]
    assert record[0]["index_sha256"] == record[1]["index_sha256"]
    assert record[1]["path"] == f"{site.url}/shards"


def test_a_shard_that_the_url_lacks_stops_the_run_before_its_folder_is_made(quick_run, served, world, tmp_path):
    shutil.copytree(world.root / "shards", tmp_path / "shards")
    (tmp_path / "shards/shards/stripes-00000.tar").unlink()
    site = served(tmp_path)
    outcome = quick_run("gift", tmp_path / "run", f"--shards={site.url}/shards", f"--shard-cache={tmp_path / 'cache'}")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(f"error: {site.url}/shards/shards/stripes-00000.tar is not there (404).")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("purpose", "what_is_left"), [("run", "its shards, then all of the run"), ("task", "gift 1/2 colours, from its start on")]
)
def test_a_run_that_is_told_to_leave_while_shards_are_fetched_does_so_soon(
    quick_run, served, world, tmp_path, monkeypatch, purpose, what_is_left
):
    site = served(world.root, "location ~ tar$ { limit_rate 1000; }")
    sizes = {path.name: path.stat().st_size for path in world.root.glob("shards/**/*.*")}
    colours, stripes = (sum(size for name, size in sizes.items() if name.startswith(task) and ".tar" in name) for task in TASKS)
    room = sum(sizes.values()) if purpose == "run" else max(colours, stripes) + sizes["index.parquet"]
    signalled = []
    hold = RemoteFolder.hold

    def signal_and_hold(self, held_for, *arguments):
        if held_for == purpose:
            os.kill(os.getpid(), signal.SIGTERM)
            signalled.append(time.monotonic())
        hold(self, held_for, *arguments)

    monkeypatch.setattr(RemoteFolder, "hold", signal_and_hold)
    flags = (f"--shards={site.url}/shards", f"--shard-cache={tmp_path / 'cache'}", f"--shard-cache-gb={(room + 1000) / 1e9}")
    left = quick_run("gift", tmp_path / "run", *flags)
    assert left.code == 75, left.err
    assert f"Stopped by SIGTERM: {what_is_left}. Nothing is lost" in left.err
    assert time.monotonic() < signalled[0] + 10


def test_a_run_from_the_hub_goes_on_with_the_shards_it_began_with(quick_run, hub_site, world, tmp_path, monkeypatch):
    shutil.copytree(world.root / "shards", tmp_path / "repositories/datasets/our/shards")
    hub = hub_site(tmp_path / "repositories")
    hub.use(monkeypatch)
    flags = ("--shards=hf://datasets/our/shards", f"--shard-cache={tmp_path / 'cache'}", "--set", "steps=3")
    begun = quick_run("gift", tmp_path / "run", *flags, "--stop-after=1")
    assert begun.code == 0, begun.err
    record = json.loads((tmp_path / "run/run.json").read_text())["shards"]
    index = world.root / "shards/index.parquet"
    changed = tmp_path / "index.parquet"
    pq.write_table(pq.read_table(index), changed)  # the same rows in another file
    moved = hub.commit("our/shards", "index.parquet", changed)
    gone_on = quick_run("gift", tmp_path / "run", *flags)
    assert gone_on.code == 0, gone_on.err
    assert json.loads((tmp_path / "run/run.json").read_text())["shards"] == record
    assert re.fullmatch(r"hf://datasets/our/shards@[0-9a-f]{40}", record["path"])
    assert moved not in record["path"]
    assert record["index_sha256"] == hashlib.sha256(index.read_bytes()).hexdigest()
    other = quick_run("gift", tmp_path / "run", f"--shards=hf://datasets/our/shards@{moved}", *flags[1:])
    assert other.code == 2
    assert "holds another run: shards.index_sha256 is" in other.err
    assert [picture.task for picture in RunPictures(load_run(tmp_path / "run")).synthetic(1)] == ["colours", "stripes"]


def test_the_pictures_of_a_run_by_url_are_found_again_as_long_as_they_can_be_had(quick_run, served, world, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("GIFT_SHARD_CACHE", str(tmp_path / "cache"))
    site = served(world.root)
    assert quick_run("gift", tmp_path / "run", f"--shards={site.url}/shards", "--set", "steps=3").code == 0
    run = load_run(tmp_path / "run")
    assert [picture.task for picture in RunPictures(run).synthetic(2)] == ["colours", "colours", "stripes", "stripes"]
    site.kill()
    monkeypatch.setattr("gift_shared.remote_files.Patience.wait", lambda *_: 0.01)
    assert RunPictures(run).synthetic(2) == []
    assert f"No synthetic pictures of a run over {site.url}/shards" in caplog.text


def test_pictures_whose_shard_has_changed_are_left_out_and_told_once(quick_run, world, tmp_path, caplog):
    shutil.copytree(world.root / "shards", tmp_path / "shards")
    assert quick_run("gift", tmp_path / "run", f"--shards={tmp_path / 'shards'}", "--set", "steps=3").code == 0
    for tar in (tmp_path / "shards/shards").glob("stripes-*.tar"):
        tar.write_bytes(b"")
    pictures = RunPictures(load_run(tmp_path / "run"))
    assert [picture.task for picture in pictures.synthetic(2)] == ["colours", "colours"]
    assert len(pictures.forgotten(9)) == len(RunPictures(load_run(tmp_path / "run")).forgotten(9))
    assert caplog.text.count(f"No synthetic pictures of a run over {tmp_path / 'shards'}: ") == 1
