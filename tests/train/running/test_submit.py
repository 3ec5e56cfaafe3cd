"""`gift-train submit` without a SLURM: what it refuses, and a run as a process of this machine."""

import json

import pytest

LOCAL = ("submit", "--executor", "local")
TABLE = """
title = "Two rows"
heading = "Method"
source = "nobody"
[orders]
pair = "pair"
[[row]]
label = "Zero-shot"
recipe = "zero_shot"
[[row]]
label = "Continual Finetune"
recipe = "finetune"
"""


@pytest.fixture(autouse=True)
def in_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_for_each_value_becomes_a_job(gift_train, world, in_folder):
    words = ("run", "--method", "zero_shot", "--seed", "{seed}", "--out", "runs/seed{seed}", *world.arguments)
    outcome = gift_train(*LOCAL, "--each", "seed=1,2", "--wait", "--", *words)
    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.out.startswith("submitted  2 jobs: ")
    assert "gift-train watch runs/seed1" in outcome.out
    for seed in (1, 2):
        assert json.loads((in_folder / f"runs/seed{seed}/summary.json").read_text())["seed"] == seed


def test_the_missing_runs_of_a_table_become_jobs(gift_train, world, in_folder):
    (in_folder / "own.toml").write_text(TABLE)
    words = ("table", "own.toml", *world.arguments, "--seeds", "1,2")
    outcome = gift_train(*LOCAL, "--wait", "--", *words, "--only", "zero_shot")
    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.out.startswith("submitted  1 job: ")  # a method that does not train has one seed
    assert "needs 3 runs: 1 there, 2 missing" in gift_train(*words).err
    outcome = gift_train(*LOCAL, "--", *words, "--only", "zero_shot")
    assert outcome.out == "Every run of the table is there: nothing is submitted.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--method", "gfit", "--out", "x"), "Unknown method 'gfit'. Did you mean 'gift'?"),
        (("run", "--recipe", "nonsense", "--out", "x"), "Unknown recipe 'nonsense'."),
        (("run", "--method", "gift", "--order", "nowhere", "--out", "x"), "nowhere"),
        (("run", "--method", "gift", "--out", "x", "--set", "stpes=3"), "stpes"),
        (("run", "--out", "x"), "Give either --method NAME or --recipe NAME_OR_FILE."),
        (("run", "--method", "gift"), "Missing option '--out'"),
        (("evaluate",), "comes the command that the jobs run: run or table; found 'evaluate'."),
        (("table", "1", "--world", "mini", "--run"), "leave out --run and --commands"),
        (("table", "1", "--world", "mini"), "cannot be run: it looks at synthetic images"),
    ],
)
def test_what_would_fail_in_the_job_is_told_before(gift_train, in_folder, words, message):
    outcome = gift_train(*LOCAL, "--", *words)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert not (in_folder / "jobs").exists()


def test_two_runs_never_share_a_folder(gift_train):
    outcome = gift_train(*LOCAL, "--each", "seed=1,2", "--", "run", "--method", "l2", "--seed", "{seed}", "--out", "x")
    assert outcome.code == 2
    assert "Two runs would write to x." in outcome.err
