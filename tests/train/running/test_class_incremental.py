"""A dataset learned class by class: every command takes its steps for tasks, and accuracy is over all classes seen so far."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gift_shared.manifests import Manifests
from gift_train.clip.load import load_backbone
from gift_train.clip.zero_shot import zero_shot_scores
from gift_train.data.tasks import load_test
from gift_train.data.transforms import image_transforms
from gift_train.training import loop

ORDER = """
name = "cut"
display_name = "Cut"
pretraining_source = "base"
recipes = "mini"
tasks = ["colours"]
steps = 2
first_step_classes = 1
class_order = [2, 0, 1]  # blue; red and green
templates = ["a {} square."]
"""
FLAGS = ("epochs=2", "warmup_steps=1", "batch_size=6", "checkpoint_every=2", "log_every=1", "learning_rate=1e-3", "diagnostics=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    (folder / "cut.toml").write_text(ORDER)
    return folder


@pytest.fixture
def run_steps(gift_train, world, folder):
    """A function: out and more flags -> Outcome of a finetuning run over the steps of the colours."""

    def run(out, *more, order=folder / "cut.toml"):
        recipe = () if "--recipe" in more else ("--method", "finetune")
        settings = [word for flag in FLAGS for word in ("--set", flag)]
        return gift_train("run", *recipe, "--out", out, *world.arguments, f"--order={order}", *settings, *more)

    return run


@pytest.fixture
def finished(run_steps, folder):
    """The folder of an undisturbed run."""
    out = folder / "whole"
    if not out.exists():
        outcome = run_steps(out)
        assert outcome.code == 0, outcome.err
        assert "cut, seed 42:  Avg " in outcome.out
    return out


def read(path):
    return json.loads(path.read_text())


def test_a_run_learns_its_steps_and_sums_up_over_the_classes_seen(finished):
    accuracies, summary, record = (read(finished / f"{name}.json") for name in ("accuracy_matrix", "summary", "run"))
    assert (accuracies["protocol"], accuracies["label_space"], accuracies["test_images"]) == ("class-incremental", "union-seen", [5, 10])
    first, second = accuracies["matrix"]
    assert summary["last"] == pytest.approx((5 * second[0] + 10 * second[1]) / 15)
    assert summary["avg"] == pytest.approx((first[0] + summary["last"]) / 2)
    assert (summary["transfer"], summary["protocol"], summary["per_dataset"]["colours-02"]["transfer"]) == (None, "class-incremental", None)
    assert record["task_steps"] == [2 * 2, 2 * 3]  # 8 and 16 images in batches of 6, twice
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["task"], line["step"]) for line in lines] == [("colours-01", n) for n in range(5)] + [("colours-02", n) for n in range(7)]


def test_last_is_the_accuracy_of_the_whole_dataset_among_all_its_classes(finished, world, folder):
    student = load_backbone(str(world.root / "model"), None, "cpu")
    student.load_weights(load_file(finished / "checkpoints/task-02-colours-02.safetensors"))
    manifests = Manifests((world.root / "manifests",))
    whole = manifests.datasets_of(manifests.order(str(folder / "cut.toml")))["colours"]
    images = load_test(whole, world.root / "data", image_transforms(student.image_settings[0], student.resize_settings))
    pixels = student.place_images(torch.stack([images[index][0] for index in range(len(images))]))
    with torch.no_grad():
        predicted = zero_shot_scores(student, whole)(pixels).argmax(dim=1)
    right = 100 * float((predicted == torch.tensor(images.labels)).float().mean())
    assert read(finished / "summary.json")["last"] == pytest.approx(right)


def test_a_step_that_is_broken_off_goes_on_and_ends_alike(finished, run_steps, monkeypatch, tmp_path):
    step, calls = loop.training_step, []

    def breaks_off(*arguments):
        calls.append(None)
        if len(calls) == 9:  # within the second step, after its first checkpoint
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "training_step", breaks_off)
        assert run_steps(tmp_path / "run").code != 0
    assert run_steps(tmp_path / "run").code == 0
    events = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [(event["task"], event["step"]) for event in events if event["event"] == "resumed"] == [("colours-02", 2)]
    for name in ("accuracy_matrix.json", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


def test_other_commands_take_steps_for_tasks(finished, gift_train, world, folder):
    assert "12 of 12 steps" in gift_train("watch", finished, "--once").out
    reported = json.loads(gift_train("report", finished, "--json").out)["runs"][0]
    assert (reported["transfer"], reported["protocol"]) == (None, "class-incremental")
    places = (f"--manifests={world.root / 'manifests'}", f"--data-root={world.root / 'data'}")
    checked = gift_train("data", "check", "--order", folder / "cut.toml", *places)
    assert (checked.code, checked.out.count("colours ")) == (0, 1)  # the dataset, once
    checkpoint = ("--checkpoint", finished / "checkpoints/task-02-colours-02.safetensors", "--json")
    model = [flag for flag in world.arguments if flag.startswith("--model")]
    evaluated = json.loads(gift_train("evaluate", *places, *model, *checkpoint).out)
    assert list(evaluated["accuracy"].values()) == read(finished / "accuracy_matrix.json")["matrix"][-1]
    one = json.loads(gift_train("evaluate", "colours-02", *places, *model, *checkpoint).out)
    assert one["accuracy"] == {"colours-02": evaluated["accuracy"]["colours-02"]}


def test_adapters_with_one_router_for_all_steps(run_steps, caplog, tmp_path):
    own = (tmp_path / "shared.toml").resolve()
    mixture = {"num_experts": 2, "top_k": 2, "bottleneck": 4, "expert_scale": 1.0, "dropout": 0.1, "gate_noise": 1.0}
    lines = ['base = "protocol"', 'title = "One router"', 'method = "moe_adapter"', "[method_config]", 'routing = "batch"']
    lines += [
        "balance_weight = 0.0",
        'routers = "shared"',
        "[method_config.mixture]",
        *(f"{key} = {value}" for key, value in mixture.items()),
    ]
    own.write_text("\n".join(lines))
    outcome = run_steps(tmp_path / "run", "--recipe", own)
    assert outcome.code == 0, outcome.err
    assert "colours-01 has one class, so its loss, which is over its own classes, is 0" in caplog.text
    assert "readings" not in read(tmp_path / "run/accuracy_matrix.json")
    first, second = (load_file(tmp_path / f"run/checkpoints/task-0{n}-colours-0{n}.safetensors") for n in (1, 2))
    gates = [name for name in second if ".gate." in name]
    assert gates
    assert all(name.endswith(".gate.0") for name in gates)
    experts = [name for name in second if ".experts." in name and name.endswith("up_proj.weight")]
    assert not any(torch.equal(first[name], second[name]) for name in experts)  # no expert was frozen after the first step
    own.write_text("\n".join(line.replace('"shared"', '"task"') for line in lines))
    assert 'routers = "task" needs the [method_config.selector] table' in run_steps(tmp_path / "other", "--recipe", own).err


def test_what_cannot_be_split_is_told_before_anything_is_made(run_steps, tmp_path):
    for old, new, message in (
        ("steps = 2", "steps = 4", "first_step_classes = 1 leaves 2 of the 3 classes of colours"),
        ("[2, 0, 1]", "[2, 0, 0]", "no order of the labels 0 to 2 of colours: 0 stands twice"),
        ("steps = 2", "steps = 2\nshots = 9", "colours-01: class 'blue' has 8 training images, the order asks for shots = 9"),
    ):
        order = tmp_path / "cut.toml"
        order.write_text(ORDER.replace(old, new))
        outcome = run_steps(tmp_path / "run", order=order)
        assert outcome.code == 2
        assert message in outcome.err.splitlines()[-1]
        assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()
