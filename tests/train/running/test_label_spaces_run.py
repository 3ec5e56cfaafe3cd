"""Label spaces through the command line: what a run records, what its checkpoints say, and what is refused before any work."""

import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import gift_train
from gift_train.cli import main
from gift_train.records.diagnostics.files import diagnostics_file, read_diagnostics
from gift_train.report.runs import load_run

SPACES = ("--label-space=union-all", "--label-space=union-seen")
FEW = ("--set=steps=12", "--set=warmup_steps=2", "--set=batch_size=6", "--set=learning_rate=1e-3")
LAST = "checkpoints/task-02-stripes.safetensors"


def read(path):
    return json.loads(path.read_text())


def finished_run(world, out, *more):
    """A run of finetuning with the main program, for fixtures of the module."""
    words = ["run", "--method=finetune", *world.arguments, *FEW, f"--out={out}", *more]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["gift-train", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return out


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory):
    """A run that was asked for all spaces beside its order's own, `known`."""
    return finished_run(world, tmp_path_factory.mktemp("asked") / "run", *SPACES)


@pytest.fixture(scope="module")
def joined(world, tmp_path_factory):
    """A run of an order that looks for labels among all classes, in a template of its own; and the folder of the order."""
    folder = tmp_path_factory.mktemp("joined")
    text = (world.root / "manifests/orders/pair.toml").read_text().replace('"pair"', '"joined"')
    (folder / "joined.toml").write_text(text + 'label_space = "union-all"\nevaluation_templates = ["a photo of a {}."]\n')
    return finished_run(world, folder / "run", f"--order={folder / 'joined.toml'}", "--label-space=known")


def test_further_spaces_stand_beside_the_orders_own(asked, world, tmp_path):
    accuracies, summary = read(asked / "accuracy_matrix.json"), read(asked / "summary.json")
    assert (accuracies["label_space"], list(accuracies["label_spaces"])) == ("known", ["union-all", "union-seen"])
    assert read(asked / "run.json")["label_spaces"] == ["known", "union-seen", "union-all"]
    plain = finished_run(world, tmp_path / "plain")
    assert {key: value for key, value in accuracies.items() if key != "label_spaces"} == read(plain / "accuracy_matrix.json")
    seen, every = (accuracies["label_spaces"][space] for space in ("union-seen", "union-all"))
    assert seen["zero_shot"] == accuracies["zero_shot"], "before the first task every dataset has its own classes alone"
    assert seen["matrix"][-1] == every["matrix"][-1], "once all is learned, all classes are seen"
    assert seen["matrix"][0][0] == accuracies["matrix"][0][0]
    assert seen["matrix"][0][1] == every["matrix"][0][1]
    assert all(np.less_equal(every["matrix"], accuracies["matrix"]).flat)
    assert summary["label_spaces"]["union-all"]["last"] == pytest.approx(np.mean(every["matrix"][-1]))
    assert set(summary["label_spaces"]["union-seen"]) == {"transfer", "avg", "last", "forgetting"}


def test_an_orders_own_space_is_the_primary_one(joined):
    accuracies, summary = read(joined / "accuracy_matrix.json"), read(joined / "summary.json")
    assert (accuracies["label_space"], list(accuracies["label_spaces"])) == ("union-all", ["known"])
    assert summary["last"] == pytest.approx(np.mean(accuracies["matrix"][-1]))
    assert summary["label_space"] == "union-all"


def test_noted_predictions_say_of_which_dataset_they_are(joined):
    accuracies = read(joined / "accuracy_matrix.json")
    for number, name in ((0, "zero_shot"), (2, "stripes")):
        rows = read_diagnostics(diagnostics_file(joined, "predictions", number, name), "predictions").to_pylist()
        values = accuracies["zero_shot"] if number == 0 else accuracies["matrix"][number - 1]
        for dataset, value in zip(("colours", "stripes"), values, strict=True):
            of_dataset = [row for row in rows if row["dataset"] == dataset]
            right = [(row["predicted_dataset"], row["predicted"]) == (dataset, row["label"]) for row in of_dataset]
            assert 100 * np.mean(right) == pytest.approx(value)
    assert {row["predicted_dataset"] for row in rows} == {"colours", "stripes"}


def test_reports_and_notebooks_have_every_space(asked, joined):
    run, notebook, other = load_run(asked), gift_train.open_run(asked), load_run(joined)
    accuracies = read(asked / "accuracy_matrix.json")
    assert list(run.label_spaces) == list(notebook.label_spaces) == ["known", "union-all", "union-seen"]
    assert run.label_spaces["union-all"].matrix.tolist() == accuracies["label_spaces"]["union-all"]["matrix"]
    assert notebook.label_spaces["union-all"].loc["colours", "stripes"] == accuracies["label_spaces"]["union-all"]["matrix"][0][1]
    assert notebook.label_spaces["known"].equals(notebook.accuracy_matrix)
    assert (run.label_space, other.label_space, gift_train.open_run(joined).label_space) == ("known", "union-all", "union-all")


def test_watch_shows_them_side_by_side(asked, joined, gift_train):
    lines = gift_train("watch", asked, "--once").out.splitlines()
    (heading,) = (line for line in lines if line.startswith("accuracy"))
    assert heading.split()[2:] == ["zero-shot", "learned", "now", "change", "union-all", "union-seen"]
    every = read(asked / "accuracy_matrix.json")["label_spaces"]["union-all"]["matrix"][-1]
    (line,) = (line for line in lines if line.startswith("colours"))
    assert line.split()[-2] == f"{every[0]:.1f}"
    assert "label space: known; beside it, now: union-all, union-seen" in lines
    assert "label space: union-all; beside it, now: known" in gift_train("watch", joined, "--once").out.splitlines()


def test_a_run_goes_on_with_the_spaces_it_began_with(asked, world, gift_train, tmp_path):
    shutil.copytree(asked, tmp_path / "run")
    again = ["run", "--method=finetune", *world.arguments, *FEW, f"--out={tmp_path / 'run'}"]
    outcome = gift_train(*again, *reversed(SPACES))
    assert outcome.code == 0, outcome.err
    outcome = gift_train(*again, "--label-space=union-all")
    assert outcome.code == 2
    assert "label_spaces is ['known', 'union-seen', 'union-all'] there and ['known', 'union-all'] here" in outcome.err.splitlines()[-1]


def test_an_interrupted_run_ends_as_an_undisturbed_one(asked, world, gift_train, tmp_path):
    words = ["run", "--method=finetune", *world.arguments, *FEW, f"--out={tmp_path / 'run'}", *SPACES]
    assert gift_train(*words, "--stop-after=1").code == 0
    assert gift_train(*words).code == 0
    assert read(tmp_path / "run/accuracy_matrix.json") == read(asked / "accuracy_matrix.json")


def test_zero_shot_has_a_row_for_every_number_of_seen_tasks(world, gift_train, asked, tmp_path):
    words = ["run", "--method=zero_shot", *world.arguments, *SPACES]
    assert gift_train(*words, f"--out={tmp_path / 'whole'}").code == 0
    accuracies, trained = read(tmp_path / "whole/accuracy_matrix.json"), read(asked / "accuracy_matrix.json")
    assert accuracies["matrix"] == [trained["zero_shot"]] * 2
    every, seen = (accuracies["label_spaces"][space] for space in ("union-all", "union-seen"))
    assert every["matrix"] == [trained["label_spaces"]["union-all"]["zero_shot"]] * 2
    assert seen["matrix"] == [[trained["zero_shot"][0], every["zero_shot"][1]], every["zero_shot"]]
    assert gift_train(*words, f"--out={tmp_path / 'cut'}", "--stop-after=1").code == 0
    assert len(read(tmp_path / "cut/accuracy_matrix.json")["matrix"]) == 1
    assert gift_train(*words, f"--out={tmp_path / 'cut'}").code == 0
    assert read(tmp_path / "cut/accuracy_matrix.json") == accuracies


def test_a_checkpoint_knows_its_spaces_and_how_much_it_has_learned(asked, joined, world, gift_train):
    data = [flag for flag in world.arguments if not flag.startswith(("--model", "--order"))]
    accuracies = read(joined / "accuracy_matrix.json")
    found = json.loads(gift_train("evaluate", f"--checkpoint={joined / LAST}", "--json", *data).out)
    assert (found["label_space"], found["label_spaces"]) == ("union-all", {})
    assert list(found["accuracy"].values()) == accuracies["matrix"][1]
    first = asked / "checkpoints/task-01-colours.safetensors"
    spaces = ["--label-space=union-seen", "--label-space=known"]
    found = json.loads(gift_train("evaluate", f"--checkpoint={first}", "--json", *data, *spaces).out)
    matrices = read(asked / "accuracy_matrix.json")
    assert list(found["accuracy"].values()) == matrices["label_spaces"]["union-seen"]["matrix"][0]
    assert list(found["label_spaces"]["known"]["accuracy"].values()) == matrices["matrix"][0]
    one = json.loads(gift_train("evaluate", "stripes", f"--checkpoint={first}", "--json", *data, "--label-space=union-all").out)
    assert one["accuracy"] == {"stripes": matrices["label_spaces"]["union-all"]["matrix"][0][1]}


def test_an_evaluation_prints_a_column_for_each_space(asked, world, gift_train):
    lines = gift_train("evaluate", *world.arguments, "--label-space=known", "--label-space=union-all").out.splitlines()
    assert lines[0].split() == ["known", "union-all"]
    accuracies = read(asked / "accuracy_matrix.json")
    known, every = accuracies["zero_shot"][1], accuracies["label_spaces"]["union-all"]["zero_shot"][1]
    assert lines[2].split() == ["Stripes", f"{known:.1f}", f"{every:.1f}"]
    assert len(gift_train("evaluate", *world.arguments).out.splitlines()) == 3, "the known space alone needs no heading"


def test_what_a_weights_file_has_learned_is_asked(asked, world, gift_train, tmp_path):
    save_file(load_file(asked / LAST), tmp_path / "plain.safetensors")
    words = ["evaluate", *world.arguments, f"--checkpoint={tmp_path / 'plain.safetensors'}", "--label-space=union-seen"]
    outcome = gift_train(*words)
    assert outcome.code == 2
    assert "does not say what it has learned" in outcome.err.splitlines()[-1]
    assert "give --num-learned, the tasks of order pair that it has learned (0 to 2)" in outcome.err.splitlines()[-1]
    assert gift_train(*words, "--num-learned=2").code == 0
    outcome = gift_train(*words, "--num-learned=3")
    assert "--num-learned 3: order pair has 2 tasks" in outcome.err.splitlines()[-1]


def test_a_number_of_learned_tasks_that_nothing_asks_for_is_told(gift_train, world):
    outcome = gift_train("evaluate", *world.arguments, "--num-learned=1", "--label-space=union-all")
    assert outcome.code == 2
    assert "--num-learned tells what union-seen joins, and labels are looked for in union-all alone" in outcome.err.splitlines()[-1]


def test_of_another_order_what_is_learned_is_asked(joined, world, gift_train):
    outcome = gift_train("evaluate", *world.arguments, f"--checkpoint={joined / LAST}", "--label-space=union-seen")
    assert "so what it has learned of pair is not known: give --num-learned" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize("command", [("run", "--method=finetune", "--out=nowhere"), ("evaluate",)])
def test_an_unknown_space_is_told_with_the_valid_ones(gift_train, world, command):
    outcome = gift_train(*command, *world.arguments, "--label-space=union")
    assert outcome.code == 2
    assert "--label-space: Unknown label space 'union'." in outcome.err.splitlines()[-1]
    assert "Valid: known, union-all, union-seen." in outcome.err.splitlines()[-1]


def test_a_dataset_beside_the_order_is_told_before_anything_is_loaded(gift_train, world):
    outcome = gift_train("evaluate", "mini_flags", *world.arguments, "--model=nowhere", "--label-space=union-all")
    assert "mini_flags is no task of order pair, whose classes union-all joins" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('label_space = "union"', "Unknown label_space 'union'"),
        ("label_space = 3", "'label_space' must be a str, found int"),
        ('evaluation_templates = ["a photo"]', "evaluation_templates: template 'a photo' must hold '{}' exactly once"),
        ("evaluation_templates = []", "'evaluation_templates' is empty"),
    ],
)
def test_a_faulty_order_is_told(gift_train, world, tmp_path, line, told):
    path = tmp_path / "bad.toml"
    path.write_text((world.root / "manifests/orders/pair.toml").read_text().replace('"pair"', '"bad"') + line + "\n")
    outcome = gift_train("evaluate", *world.arguments, f"--order={path}")
    assert outcome.code == 2
    assert told in outcome.err.splitlines()[-1]


def test_two_spellings_are_told_before_training(gift_train, world, tmp_path, caplog):
    shutil.copytree(world.root / "manifests", tmp_path / "manifests")
    path = tmp_path / "manifests/tasks/stripes.toml"
    path.write_text(path.read_text().replace('"level"', '"Re-d"'))
    words = [*world.arguments, f"--manifests={tmp_path / 'manifests'}", "--label-space=union-seen", "--model=nowhere"]
    words = [word for word in words if word != f"--manifests={world.root / 'manifests'}"]
    for command in (("run", "--method=finetune", f"--out={tmp_path / 'run'}"), ("evaluate",)):
        outcome = gift_train(*command, *words)
        assert outcome.code == 2, "the model is not there; names were told before"
        assert "'red' (colours) and 're-d' (stripes)" in caplog.text
        caplog.clear()
