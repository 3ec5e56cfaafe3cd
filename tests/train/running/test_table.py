"""`gift-train table --run` makes real runs of a few steps and shows them; what is there is never made again."""

import gc
import json

import pytest

from gift_train.clip.model import Backbone
from gift_train.training.setup import Run

FEW_STEPS = ("--set", "steps=6", "--set", "warmup_steps=2", "--set", "batch_size=6", "--set", "replay_batch_size=6")
TABLE = """
title = "Two methods"
heading = "Method"
source = "nobody"
[orders]
pair = "pair"
[[row]]
label = "Continual Finetune"
recipe = "finetune"
published = { transfer = 44.6, avg = 55.9, last = 77.3 }
[[row]]
label = "GIFT, beta 0.5"
recipe = "gift_beta_0.5"
"""


@pytest.fixture
def own_table(gift_train, world, tmp_path):
    """A function: more flags -> Outcome of `gift-train table` on a table of two rows in the drawn world."""
    (tmp_path / "two.toml").write_text(TABLE)

    def call(*more):
        flags = [flag for flag in world.arguments if not flag.startswith("--order")]
        return gift_train(
            "table", tmp_path / "two.toml", "--world", "pair", "--runs", tmp_path / "runs", *flags, world.shards, *FEW_STEPS, *more
        )

    return call


def test_what_is_missing_is_run_and_what_is_there_is_not_run_again(own_table, tmp_path):
    first = own_table("--run", "--only", "finetune")
    assert first.code == 0, first.err
    assert "Run 1 of 1: finetune, seed 42" in first.err
    begun = json.loads((tmp_path / "runs/pair/finetune-seed42/run.json").read_text())["started"]
    second = own_table("--run", "--evaluation-cache", tmp_path / "kept")
    assert second.code == 0, second.err
    assert len(list((tmp_path / "kept").iterdir())) >= 2, "the test images of both tasks, as the model sees them"
    assert "needs 2 runs: 1 there, 1 missing" in second.err
    assert "Run 1 of 1: gift_beta_0.5, seed 42 (0 s so far, about" in second.err
    assert json.loads((tmp_path / "runs/pair/finetune-seed42/run.json").read_text())["started"] == begun
    summary = json.loads((tmp_path / "runs/pair/finetune-seed42/summary.json").read_text())
    row = next(line for line in second.out.splitlines() if line.startswith("Continual Finetune"))
    assert f"{summary['last']:.1f}" in row
    assert "A trial, not the recipes' result: --set steps=6" in second.out
    assert sorted(path.name for path in (tmp_path / "runs/pair/tables").iterdir()) == ["two.csv", "two.md", "two.tex", "two.txt"]
    assert (tmp_path / "runs/pair/tables/two.txt").read_text() in second.out
    third = own_table("--run")
    assert "needs 2 runs: 2 there." in third.err
    assert third.out == second.out


def test_an_interrupted_run_goes_on_inside_the_table(own_table, gift_train, world, tmp_path):
    flags = ("--recipe", "finetune", "--out", tmp_path / "runs/pair/finetune-seed42", "--stop-after", "1", *world.arguments, *FEW_STEPS)
    assert gift_train("run", *flags).code == 0
    assert "1 of 2 tasks done" in own_table().err
    assert own_table("--run", "--only", "finetune").code == 0
    assert "1 there, 1 missing" in own_table().err


def test_a_finished_run_leaves_no_model_in_memory(own_table):
    """Not even until Python next looks for circles: the next run of a table needs the room at once."""

    def living():
        return sum(type(thing) in (Run, Backbone) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = living()  # other tests' own
        assert own_table("--run").code == 0
        assert living() == before
    finally:
        gc.enable()


def test_a_run_that_fails_stops_the_table_with_its_error(own_table, tmp_path):
    outcome = own_table("--run", "--set", "learning_rate=1e30")
    assert outcome.code == 2
    assert "error: " in outcome.err.splitlines()[-1]
    assert not (tmp_path / "runs/pair/gift_beta_0.5-seed42").exists()
    assert not (tmp_path / "runs/pair/tables").exists()
