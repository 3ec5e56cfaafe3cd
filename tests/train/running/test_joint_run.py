"""A run that learns all tasks at once: trained once, one row of accuracies for all, and a run like any other."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gift_train.cli import main
from gift_train.notebook.run import Run

QUICK = [
    f"--set={key}" for key in ("steps=12", "warmup_steps=2", "batch_size=6", "log_every=1", "checkpoint_every=5", "learning_rate=1e-3")
]
NUM_UPDATES = 2 * 13  # what two tasks of QUICK have together


class Stopped(Exception):
    """Stands for a machine that goes away."""


def read(path):
    return json.loads(path.read_text())


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(out / "checkpoints/task-01-all-tasks.safetensors")


@pytest.fixture(scope="module")
def joint(world, tmp_path_factory):
    """A finished run in which each dataset had its turn."""
    out = tmp_path_factory.mktemp("joint") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gift-train", "run", "--method=joint", f"--out={out}", *world.arguments, *QUICK])
        with pytest.raises(SystemExit, match="0"):
            main()
    return out


def test_all_tasks_are_learned_in_one_training_of_all_their_updates(joint):
    logged = rows(joint)
    assert [row["step"] for row in logged] == list(range(NUM_UPDATES))
    assert {(row["task"], row["task_index"]) for row in logged} == {("all-tasks", 0)}
    assert logged[-1]["learning_rate"] == 0.0
    assert sum(row["learning_rate"] == 0.0 for row in logged) == 1, "one schedule over all"
    accuracies = read(joint / "accuracy_matrix.json")
    assert accuracies["matrix"] == [accuracies["matrix"][0]] * 2
    assert accuracies["matrix"][0] != accuracies["zero_shot"]
    summary = read(joint / "summary.json")
    assert (summary["avg"], summary["forgetting"]) == (pytest.approx(summary["last"]), 0.0)
    assert [path.name for path in (joint / "checkpoints").glob("*.safetensors")] == ["task-01-all-tasks.safetensors"]


def test_its_weights_are_those_of_the_last_task_to_notebook_export_and_evaluate(joint, gift_train, world, tmp_path):
    last = read(joint / "accuracy_matrix.json")["matrix"][-1]
    assert Run(joint).load_model(device="cpu").name.endswith("after stripes")
    exported = gift_train("export", joint, "--to", tmp_path / "model")
    assert exported.code == 0, exported.err
    for flags in (["--checkpoint", joint / "checkpoints/task-01-all-tasks.safetensors"], ["--model", tmp_path / "model"]):
        named = [flag for flag in world.arguments if not flag.startswith("--model")]
        found = gift_train("evaluate", *named, *flags, "--json")
        assert list(json.loads(found.out)["accuracy"].values()) == last, found.err


def test_watch_takes_it_as_one_training(joint, gift_train):
    (joint / "summary.json").rename(joint / "summary.away")
    watched = gift_train("watch", joint, "--once")
    (joint / "summary.away").rename(joint / "summary.json")
    assert "all 2 tasks at once, step 25 of 25" in watched.out
    assert "100 %  26 of 26 steps" in watched.out


@pytest.mark.slow
def test_a_report_takes_it_as_one_training(joint, gift_train, tmp_path):
    assert gift_train("report", joint, "--out", tmp_path).code == 0
    lines = (tmp_path / "pair/training.csv").read_text().splitlines()
    assert lines[-1].startswith("joint,all-tasks,25,")


@pytest.mark.parametrize("draw", ["even", pytest.param("proportion", marks=pytest.mark.slow)])
def test_killed_inside_and_run_again_it_ends_as_undisturbed(quick_run, joint, tmp_path, monkeypatch, draw):
    from gift_train.training import loop

    flag = f"--set=method_config.draw={draw}"
    whole = joint
    if draw != "even":
        whole = tmp_path / "whole"
        assert quick_run("joint", whole, flag).code == 0
        assert not all(torch.equal(one, weights(joint)[name]) for name, one in weights(whole).items())
    training_step, calls = loop.training_step, []

    def stop_at_the_nineteenth(*arguments):
        calls.append(None)
        if len(calls) == 19:
            raise Stopped
        return training_step(*arguments)

    monkeypatch.setattr(loop, "training_step", stop_at_the_nineteenth)
    with pytest.raises(Stopped):
        quick_run("joint", tmp_path / "run", flag)
    monkeypatch.setattr(loop, "training_step", training_step)
    assert quick_run("joint", tmp_path / "run", flag, "--num-workers=1", "--stop-after=1").code == 0
    assert len(read(tmp_path / "run/accuracy_matrix.json")["matrix"]) == 1
    assert quick_run("joint", tmp_path / "run", flag).code == 0, "the rest of the rows, without training"
    assert rows(tmp_path / "run") == rows(whole)
    assert all(torch.equal(one, weights(tmp_path / "run")[name]) for name, one in weights(whole).items())
    assert read(tmp_path / "run/accuracy_matrix.json") == read(whole / "accuracy_matrix.json")


@pytest.mark.slow
def test_micro_batches_leave_the_losses_as_they_are(quick_run, joint, tmp_path):
    assert quick_run("joint", tmp_path / "run", "--micro-batch-size=2", "--stop-after=1").code == 0
    found = [row["loss"] for row in rows(tmp_path / "run")]
    assert found == pytest.approx([row["loss"] for row in rows(joint)], rel=1e-4)


def test_few_shot_orders_apply(quick_run, world, tmp_path):
    order = tmp_path / "few.toml"
    order.write_text((world.root / "manifests/orders/pair.toml").read_text().replace('"pair"', '"few"') + "shots = 2\n")
    assert quick_run("joint", tmp_path / "run", f"--order={order}").code == 0
    assert len(read(tmp_path / "run/few_shot/colours.json")["images"]) == 2 * 3


def test_where_the_task_is_not_known_it_learns_all_classes_and_each_row_asks_for_those_seen_by_then(quick_run, world, tmp_path):
    order = tmp_path / "seen.toml"
    order.write_text((world.root / "manifests/orders/pair.toml").read_text().replace('"pair"', '"seen"') + 'label_space = "union-seen"\n')
    assert quick_run("joint", tmp_path / "run", f"--order={order}", "--label-space=union-all", "--label-space=known").code == 0
    found = read(tmp_path / "run/accuracy_matrix.json")
    everything, known = (found["label_spaces"][space]["matrix"] for space in ("union-all", "known"))
    assert everything[0] == everything[1]
    assert known[0] == known[1]
    assert found["matrix"][1] == everything[1], "after the last task all classes are seen"
    assert found["matrix"][0] == [known[0][0], everything[0][1]], "after the first its own are, and those of a dataset that is asked"


@pytest.mark.slow
def test_of_one_task_it_is_plain_finetuning(quick_run, world, tmp_path):
    order = tmp_path / "alone.toml"
    order.write_text((world.root / "manifests/orders/pair.toml").read_text().replace('"pair"', '"alone"').replace(', "stripes"', ""))
    assert quick_run("finetune", tmp_path / "finetune", f"--order={order}").code == 0
    assert quick_run("joint", tmp_path / "joint", f"--order={order}", "--set=method_config.draw=proportion").code == 0
    one, other = ([(row["learning_rate"], row["loss"]) for row in rows(tmp_path / name)] for name in ("finetune", "joint"))
    assert np.array(other) == pytest.approx(np.array(one), rel=1e-4)
