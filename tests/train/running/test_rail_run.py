"""RAIL through the command line: a run without an optimizer is saved, read again, reported and shared by processes like any other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gift_train.cli import main
from gift_train.notebook.run import Run
from gift_train.records.reading import reading_of_file

EPOCH = [f"--set={key}" for key in ("batch_size=5", "log_every=1", "checkpoint_every=2", "method_config.hidden_width=64")]
SPACES = ["--label-space=union-seen", "--label-space=union-all"]
LAST = "checkpoints/task-02-stripes.safetensors"


def read(path):
    return json.loads(path.read_text())


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def rail(world, tmp_path_factory):
    """A finished run that looked at every image once and was asked for all label spaces."""
    out = tmp_path_factory.mktemp("rail") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gift-train", "run", "--method=rail", f"--out={out}", *world.arguments, *EPOCH, *SPACES])
        with pytest.raises(SystemExit, match="0"):
            main()
    return out


def test_every_image_is_looked_at_once_and_clip_stays_as_it_is(rail, world):
    logged = rows(rail)
    assert [row["step"] for row in logged if row["task"] == "colours"] == list(range(5)), "24 images in batches of 5, and no step more"
    assert {(row["learning_rate"], row["loss"], str(row["terms"])) for row in logged} == {(0.0, 0.0, "{}")}
    before, after = load_file(world.root / "model/open_clip_model.safetensors"), load_file(rail / LAST)
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    state = load_file((rail / LAST).with_suffix(".state.safetensors"))
    num_classes = len(state["learned/0000/colours"]) + len(state["learned/0001/stripes"])
    assert {name: list(tensor.shape) for name, tensor in state.items() if "/" not in name} == {
        "projection": [64, 16], "gram": [64, 64], "moments": [64, num_classes], "weights": [64, num_classes],
    }  # fmt: skip
    assert float(state["moments"].sum(dim=0).min()) > 0, "images of every class"


def test_what_was_learned_is_known_and_what_was_not_is_zero_shot(rail):
    accuracies = read(rail / "accuracy_matrix.json")
    (first, second), (colours, stripes) = accuracies["matrix"], accuracies["zero_shot"]
    assert first[0] == second[0] == 100.0 > colours
    assert first[1] == stripes, "stripes alone among its own classes, before it is learned"
    seen, every = (accuracies["label_spaces"][space]["matrix"] for space in ("union-seen", "union-all"))
    assert seen[1] == every[1], "all are seen"
    assert every[0] == [100.0, 0.0], "zero-shot's highest is a colour for every image: none is taken for a stripe before it is learned"
    assert every[1][1] > 0.0


def test_a_checkpoint_is_read_as_in_its_run_and_not_without_what_the_method_kept(rail, gift_train, world, tmp_path):
    words = ("evaluate", *world.arguments, "--checkpoint", rail / LAST, "--label-space=known", *SPACES, "--json")
    found, accuracies = json.loads(gift_train(*words).out), read(rail / "accuracy_matrix.json")
    assert list(found["accuracy"].values()) == accuracies["matrix"][-1]
    for space, numbers in accuracies["label_spaces"].items():
        assert list(found["label_spaces"][space]["accuracy"].values()) == numbers["matrix"][-1]
    assert reading_of_file(rail / LAST).is_plain_clip is False
    alone = shutil.copy(rail / LAST, tmp_path / "alone.safetensors")
    refused = gift_train("evaluate", *world.arguments, "--checkpoint", alone)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is read with what rail kept, alone.state.safetensors: copy that file beside it." in refused.err


def test_stopped_between_two_tasks_it_goes_on_bit_for_bit(rail, gift_train, world, tmp_path):
    words = ("run", "--method=rail", f"--out={tmp_path / 'run'}", *world.arguments, *EPOCH, *SPACES)
    assert gift_train(*words, "--stop-after=1").code == 0
    assert gift_train(*words).code == 0
    whole, halves = (load_file((out / LAST).with_suffix(".state.safetensors")) for out in (rail, tmp_path / "run"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())
    assert read(tmp_path / "run/accuracy_matrix.json") == read(rail / "accuracy_matrix.json")


@pytest.mark.slow
def test_a_report_takes_it(rail, gift_train, tmp_path):
    assert gift_train("report", rail, "--out", tmp_path).code == 0
    assert "| rail | union-all |" in (tmp_path / "table.md").read_text()


def test_watch_and_notebooks_take_it(rail, gift_train):
    (rail / "summary.json").rename(rail / "summary.away")
    watched = gift_train("watch", rail, "--once")
    (rail / "summary.away").rename(rail / "summary.json")
    assert "100 %  9 of 9 steps" in watched.out  # 24 and 16 images in batches of 5
    found = Run(rail).load_model("stripes").classify([Image.new("RGB", (16, 16), "red")] * 2, ["a fox", "an owl"])
    assert found.probabilities.sum(axis=1) == pytest.approx([1.0, 1.0])


def test_tf32_is_refused_in_one_line_before_any_work(gift_train, world, tmp_path):
    outcome = gift_train("run", "--method=rail", f"--out={tmp_path / 'run'}", *world.arguments, "--set=precision=tf32")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "set precision to fp32 or bf16" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(rail, world, tmp_path):
    words = ["run", "--method=rail", f"--out={tmp_path / 'run'}", *world.arguments, *EPOCH, *SPACES]
    launcher = [Path(sys.executable).parent / "torchrun", "--nproc-per-node", "2", "-m", "gift_train.cli"]
    ended = subprocess.run([*launcher, *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    one, two = (load_file((out / LAST).with_suffix(".state.safetensors")) for out in (rail, tmp_path / "run"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4, msg=name)
    assert read(tmp_path / "run/accuracy_matrix.json") == read(rail / "accuracy_matrix.json")
