"""--micro-batch-size and --gradient-checkpointing reach the step and change what a run computes by rounding alone."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gift_train.clip import recompute

SAVING = ("--micro-batch-size", "4", "--gradient-checkpointing")  # of 6


def read(path):
    return json.loads(path.read_text())


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def repetitions(monkeypatch):
    """Counts the calls whose inside is not kept."""
    calls, checkpoint = [], recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *args, **named: calls.append(1) or checkpoint(*args, **named))
    return calls


def test_a_run_that_saves_memory_ends_as_one_that_does_not(quick_run, tmp_path, repetitions):
    assert quick_run("gift", tmp_path / "plain").code == 0
    assert not repetitions
    assert quick_run("gift", tmp_path / "saving", *SAVING).code == 0
    assert repetitions
    assert read(tmp_path / "saving/accuracy_matrix.json")["matrix"] == read(tmp_path / "plain/accuracy_matrix.json")["matrix"]
    assert losses(tmp_path / "saving") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    weights = [load_file(tmp_path / name / "checkpoints/task-02-stripes.safetensors") for name in ("plain", "saving")]
    differences = torch.cat([(weights[0][name] - weights[1][name]).abs().flatten() for name in weights[0]])
    assert differences.quantile(0.99) < 1e-5
    options = read(tmp_path / "saving/run.json")["options"]
    assert (options["micro_batch_size"], options["gradient_checkpointing"]) == (4, True)


def test_a_run_may_be_finished_on_a_machine_with_other_memory_and_again_saves_bit_for_bit(quick_run, tmp_path):
    for folder in ("first", "second"):
        assert quick_run("gift", tmp_path / folder, *SAVING, "--stop-after", "1").code == 0
    assert quick_run("gift", tmp_path / "first", *SAVING).code == 0
    assert quick_run("gift", tmp_path / "second", "--micro-batch-size", "600").code == 0  # more than there are: all at once
    name = "task-01-colours.safetensors"
    first, second = (load_file(tmp_path / folder / "checkpoints" / name) for folder in ("first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert losses(tmp_path / "second") == pytest.approx(losses(tmp_path / "first"), rel=1e-4)


def test_a_micro_batch_of_nothing_is_refused(quick_run, tmp_path):
    told = quick_run("gift", tmp_path / "run", "--micro-batch-size", "0")
    assert told.code == 2
    assert "--micro-batch-size" in told.err
    assert not (tmp_path / "run").exists()
