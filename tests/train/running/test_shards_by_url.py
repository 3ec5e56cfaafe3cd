"""Whole runs over shards behind a URL."""

import json
import shutil

import torch
from safetensors.torch import load_file

from gift_train.report.gallery import RunPictures
from gift_train.report.runs import load_run


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
