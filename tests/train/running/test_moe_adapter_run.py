"""MoE-Adapter through the command line: both routings are reported, runs resume exactly, checkpoints evaluate as the run did."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gift_train.training.loop import training_step

SMALL = ("mixture.num_experts=5", "mixture.bottleneck=4", "selector.no_task_updates=30", "selector.task_updates=40")
SMALL += ("selector.hidden=6", "selector.threshold=0.02")
FLAGS = tuple(part for setting in SMALL for part in ("--set", f"method_config.{setting}"))


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def run_adapters(quick_run, world):
    """A function: out and more flags -> Outcome of a quick run of moe_adapter."""
    return lambda out, *more: quick_run("moe_adapter", out, world.shards, *FLAGS, *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the module's one undisturbed run lies; made by the first test that asks."""
    return tmp_path_factory.mktemp("adapters") / "whole"


@pytest.fixture
def finished(run_adapters, whole):
    """The folder of an undisturbed run."""
    if not whole.exists():
        outcome = run_adapters(whole)
        assert outcome.code == 0, outcome.err
    return whole


def test_both_routings_are_reported(finished):
    accuracies, summary = read(finished / "accuracy_matrix.json"), read(finished / "summary.json")
    assert set(accuracies["readings"]) == set(summary["readings"]) == {"routed by sample"}
    assert [len(row) for row in accuracies["readings"]["routed by sample"]] == [2, 2]
    assert set(summary["readings"]["routed by sample"]) == {"transfer", "avg", "last", "forgetting"}


def test_the_other_recipe_swaps_the_two_routings(finished, run_adapters, tmp_path):
    outcome = run_adapters(tmp_path / "run", "--set", "method_config.routing=sample", "--label-space=union-all")
    assert outcome.code == 0, outcome.err
    batch, sample = read(finished / "accuracy_matrix.json"), read(tmp_path / "run/accuracy_matrix.json")
    assert sample["matrix"] == batch["readings"]["routed by sample"]
    assert sample["readings"]["routed by batch"] == batch["matrix"]
    every = sample["label_spaces"]["union-all"]
    assert [len(row) for row in every["readings"]["routed by batch"]] == [2, 2], "every reading in every label space"
    assert (np.asarray(every["matrix"]) <= np.asarray(sample["matrix"])).all()


def test_clip_stays_frozen_and_two_experts_a_block_are_frozen_per_task(finished, world):
    before = load_file(world.root / "model/open_clip_model.safetensors")
    first = load_file(finished / "checkpoints/task-01-colours.safetensors")
    second = load_file(finished / "checkpoints/task-02-stripes.safetensors")
    assert all(torch.equal(weight, second[name]) for name, weight in before.items())
    state = load_file(finished / "checkpoints/task-01-colours.state.safetensors")
    for block in ("visual.transformer.0", "transformer.0"):
        frozen = state[f"frozen/{block}"].tolist()
        assert len(frozen) == 2
        tower = block.removesuffix(".0")
        for number in range(5):
            names = [name for name in first if name.startswith(f"{tower}.resblocks.0.mixture.experts.{number}.")]
            assert len(names) == 4
            if number in frozen:
                assert all(torch.equal(first[name], second[name]) for name in names)
    later = load_file(finished / "checkpoints/task-02-stripes.state.safetensors")
    assert 2 <= len(later["frozen/transformer.0"]) <= 4
    assert {name.split("/")[1] for name in later if name.startswith("selector/")} == {"0", "1", "2"}


def test_resuming_inside_a_task_equals_an_uninterrupted_run(finished, run_adapters, tmp_path, monkeypatch):
    calls = []

    def stop(*arguments):
        calls.append(None)
        if len(calls) == 20:  # step 6 of the second task, one after a checkpoint
            raise KeyboardInterrupt
        return training_step(*arguments)

    monkeypatch.setattr("gift_train.training.loop.training_step", stop)
    interrupted = False
    try:
        interrupted = run_adapters(tmp_path / "resumed").code != 0
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted
    monkeypatch.setattr("gift_train.training.loop.training_step", training_step)
    outcome = run_adapters(tmp_path / "resumed")
    assert outcome.code == 0, outcome.err
    for path in sorted((finished / "checkpoints").glob("*.safetensors")):
        one, other = load_file(path), load_file(tmp_path / "resumed/checkpoints" / path.name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), path.name
    for name in ("metrics.jsonl", "accuracy_matrix.json"):
        assert (finished / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_loader_processes_change_no_number(finished, run_adapters, tmp_path):
    """Gate noise comes from the global generator, from which no loader may draw."""
    assert run_adapters(tmp_path / "run", "--num-workers", "1").code == 0
    assert (finished / "metrics.jsonl").read_bytes() == (tmp_path / "run/metrics.jsonl").read_bytes()


def test_checkpoint_evaluates_as_in_its_run(finished, gift_train, world):
    outcome = gift_train("evaluate", *world.arguments, "--checkpoint", finished / "checkpoints/task-02-stripes.safetensors", "--json")
    assert outcome.code == 0, outcome.err
    found, accuracies = json.loads(outcome.out), read(finished / "accuracy_matrix.json")
    assert list(found["accuracy"].values()) == accuracies["matrix"][-1]
    assert list(found["readings"]["routed by sample"].values()) == accuracies["readings"]["routed by sample"][-1]


def test_checkpoint_taken_out_of_its_run_is_told(finished, gift_train, world, tmp_path):
    lonely = tmp_path / "lonely.safetensors"
    save_file(load_file(finished / "checkpoints/task-02-stripes.safetensors"), lonely)
    outcome = gift_train("evaluate", *world.arguments, "--checkpoint", lonely)
    assert outcome.code == 2
    assert "These weights are of another model" in outcome.err


def test_a_checkpoint_copied_out_of_its_run_needs_what_the_method_kept_and_no_more(finished, gift_train, world, tmp_path):
    flags = [flag for flag in world.arguments if not flag.startswith("--model")]
    name = "task-02-stripes.safetensors"
    shutil.copy(finished / "checkpoints" / name, tmp_path)
    outcome = gift_train("evaluate", *flags, "--checkpoint", tmp_path / name)
    assert outcome.code == 2
    assert "is read with what moe_adapter kept, task-02-stripes.state.safetensors: copy that file beside it" in outcome.err
    shutil.copy(finished / "checkpoints/task-02-stripes.state.safetensors", tmp_path)
    outcome = gift_train("evaluate", *flags, "--checkpoint", tmp_path / name, "--json")
    assert list(json.loads(outcome.out)["accuracy"].values()) == read(finished / "accuracy_matrix.json")["matrix"][-1]


def test_missing_shards_and_reference_images_are_told_before_any_work(quick_run, tmp_path, world):
    outcome = quick_run("moe_adapter", tmp_path / "run", *FLAGS)
    assert outcome.code == 2
    assert "give their output folder with --shards" in outcome.err
    outcome = quick_run("moe_adapter", tmp_path / "run", *FLAGS, "--set", "method_config.selector.no_task_images=reference")
    assert outcome.code == 2
    assert "give their folder or tars with --reference-images" in outcome.err
    assert not (tmp_path / "run").exists()


def test_reference_images_may_be_any_folder(quick_run, tmp_path, world):
    flags = (*FLAGS, "--set", "method_config.selector.no_task_images=reference", "--reference-images", world.root / "data/colours")
    outcome = quick_run("moe_adapter", tmp_path / "run", *flags, "--stop-after", "1")
    assert outcome.code == 0, outcome.err
    assert read(tmp_path / "run/run.json")["reference_images"].endswith("data/colours")


def test_misspelt_key_of_the_selector_names_the_nearest(quick_run, tmp_path, world):
    outcome = quick_run("moe_adapter", tmp_path / "run", world.shards, "--set", "method_config.selector.treshold=0.1")
    assert outcome.code == 2
    assert "threshold" in outcome.err
