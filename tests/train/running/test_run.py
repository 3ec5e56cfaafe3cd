"""Whole runs through the command line: what they write, that they repeat, that they go on where they stopped."""

import json
import os
import shutil
import stat

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from gift_train.methods.registry import method_names

TRAINED = [name for name in method_names() if name not in ("zero_shot", "moe_adapter", "joint")]  # the last two have tests of their own


def read(path):
    return json.loads(path.read_text())


def same_runs(first, second):
    """Equal weights, log and accuracies, bit for bit."""
    for path in sorted((first / "checkpoints").glob("*.safetensors")):
        one, other = load_file(path), load_file(second / "checkpoints" / path.name)
        if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
            return False
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in ("metrics.jsonl", "accuracy_matrix.json"))


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_runs_through_the_command_line(quick_run, tmp_path, method):
    out = tmp_path / method
    outcome = quick_run(method, out)
    assert outcome.code == 0, outcome.err
    accuracies = read(out / "accuracy_matrix.json")
    assert accuracies["datasets"] == ["colours", "stripes"]
    assert [len(row) for row in accuracies["matrix"]] == [2, 2]
    summary = read(out / "summary.json")
    assert (summary["method"], summary["order"], summary["seed"]) == (method, "pair", 42)
    assert summary["last"] == pytest.approx(sum(accuracies["matrix"][-1]) / 2)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(13), *range(13)]
    assert rows[12]["learning_rate"] == 0.0
    assert all(row["loss"] == pytest.approx(sum(row["terms"].values())) for row in rows)


def test_gift_logs_every_term_and_saves_what_it_replayed(quick_run, tmp_path):
    from gift_shared.parquet_files import read_index

    outcome = quick_run("gift", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[5])
    assert set(row["terms"]) == {"cross_entropy", "distillation", "alignment", "weight_consolidation"}
    rows, _ = read_index(tmp_path / "run/replay/stripes.parquet")
    assert rows["task"].unique().to_pylist() == ["stripes"]


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_all_files_of_a_run_have_the_rights_that_the_umask_leaves(quick_run, tmp_path, mask, rights):
    before = os.umask(mask)
    try:
        assert quick_run("icarl", tmp_path / "run", "--stop-after=1", "--set=steps=4").code == 0
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"task-01-colours.safetensors", "task-01-colours.state.safetensors", "run.json", "log.jsonl"} <= found.keys()
    assert found == dict.fromkeys(found, rights)


def test_training_learns_the_task(quick_run, tmp_path):
    assert quick_run("finetune", tmp_path / "run", "--set", "steps=80").code == 0
    accuracies = read(tmp_path / "run/accuracy_matrix.json")
    assert accuracies["matrix"][0][0] >= 90 > accuracies["zero_shot"][0]


def test_zero_shot_repeats_one_row_and_trains_nothing(quick_run, tmp_path):
    assert quick_run("zero_shot", tmp_path / "run").code == 0
    accuracies = read(tmp_path / "run/accuracy_matrix.json")
    assert accuracies["matrix"] == [accuracies["zero_shot"]] * 2
    assert not (tmp_path / "run/checkpoints").exists()


def test_temperature_is_never_trained(quick_run, world, tmp_path):
    assert quick_run("gift", tmp_path / "run").code == 0
    before = load_file(world.root / "model/open_clip_model.safetensors")
    after = load_file(tmp_path / "run/checkpoints/task-02-stripes.safetensors")
    assert torch.equal(before["logit_scale"], after["logit_scale"])
    assert not torch.equal(before["text_projection"], after["text_projection"])


def test_checkpoint_of_a_task_loads_into_plain_open_clip(quick_run, world, tmp_path):
    import open_clip

    assert quick_run("finetune", tmp_path / "run").code == 0
    shutil.copytree(world.root / "model", tmp_path / "model")
    shutil.copy(tmp_path / "run/checkpoints/task-02-stripes.safetensors", tmp_path / "model/open_clip_model.safetensors")
    open_clip.create_model(f"local-dir:{tmp_path / 'model'}", require_pretrained=True)


@pytest.mark.parametrize("method", ["finetune", "gift"])
def test_same_seed_gives_the_same_run_bit_for_bit(quick_run, tmp_path, method):
    for name in ("first", "second"):
        assert quick_run(method, tmp_path / name).code == 0
    assert same_runs(tmp_path / "first", tmp_path / "second")


def test_another_seed_gives_another_run(quick_run, tmp_path):
    assert quick_run("finetune", tmp_path / "first").code == 0
    assert quick_run("finetune", tmp_path / "second", "--seed", "43").code == 0
    assert not same_runs(tmp_path / "first", tmp_path / "second")


def test_loader_processes_change_no_number_however_they_are_started(quick_run, tmp_path):
    assert quick_run("gift", tmp_path / "first").code == 0
    told = read(tmp_path / "first/run.json")["options"]
    assert (told["num_workers"], told["worker_start_method"]) == (0, "fork")  # as resolved: on the CPU none is started unasked
    for method in ("fork", "forkserver"):
        assert quick_run("gift", tmp_path / method, "--num-workers", "1", "--worker-start-method", method).code == 0
        assert same_runs(tmp_path / "first", tmp_path / method)
    told = read(tmp_path / "forkserver/run.json")["options"]
    assert (told["num_workers"], told["worker_start_method"]) == (1, "forkserver")


@pytest.mark.slow
def test_loader_processes_that_are_spawned_change_no_number(quick_run, tmp_path):
    assert quick_run("gift", tmp_path / "first", "--stop-after", "1").code == 0
    spawned = ("--num-workers", "1", "--worker-start-method", "spawn")
    assert quick_run("gift", tmp_path / "second", "--stop-after", "1", *spawned).code == 0
    assert same_runs(tmp_path / "first", tmp_path / "second")


def test_zero_weights_equal_plain_finetuning_bit_for_bit(quick_run, tmp_path):
    quiet = ("distill_weight=0.0", "alignment_weight=0.0", "weight_consolidation=plain-l2", "consolidation_weight=0.0")
    flags = [part for setting in quiet for part in ("--set", f"method_config.{setting}")]
    assert quick_run("finetune", tmp_path / "finetune").code == 0
    assert quick_run("gift", tmp_path / "gift", *flags).code == 0
    assert quick_run("l2", tmp_path / "l2", "--set", "method_config.weight=0.0").code == 0
    for name in ("gift", "l2"):
        assert same_runs(tmp_path / "finetune", tmp_path / name)


def test_stopping_after_a_task_and_going_on_equals_one_run(quick_run, tmp_path):
    assert quick_run("gift", tmp_path / "whole").code == 0
    stopped = quick_run("gift", tmp_path / "halves", "--stop-after", "1")
    assert "Stopped after 1 task;" in stopped.err
    assert not (tmp_path / "halves/summary.json").exists()
    assert quick_run("gift", tmp_path / "halves").code == 0
    assert same_runs(tmp_path / "whole", tmp_path / "halves")


class Stopped(Exception):
    """Stands for a machine that goes away."""


STATEFUL = [("zscl", ("--set", "method_config.average_every=3")), ("icarl", ()), ("lwf_vr", ())]
STATEFUL += [("gift", ("--set", "method_config.fisher_steps=8", "--set", "method_config.average_every=3")), ("gift", ()), ("gnsp", ())]
STATEFUL += [("rail", ()), ("condu", ())]


@pytest.mark.parametrize(("method", "flags"), STATEFUL)
def test_resuming_inside_a_task_equals_an_uninterrupted_run(quick_run, tmp_path, monkeypatch, method, flags):
    assert quick_run(method, tmp_path / "whole", *flags).code == 0
    run_in_two_starts(quick_run, tmp_path / "resumed", monkeypatch, method, *flags)
    assert same_runs(tmp_path / "whole", tmp_path / "resumed")
    assert list((tmp_path / "resumed/checkpoints/progress").iterdir()) == []


@pytest.mark.parametrize("method", ["finetune", "gift"])
def test_a_resnet_trains_resumes_and_is_evaluated(quick_run, gift_train, world, tmp_path, monkeypatch, method):
    model = write_resnet(world, tmp_path / "resnet")
    whole = quick_run(method, tmp_path / "whole", "--model", model)
    assert whole.code == 0, whole.err
    run_in_two_starts(quick_run, tmp_path / "resumed", monkeypatch, method, "--model", model)
    assert same_runs(tmp_path / "whole", tmp_path / "resumed")
    last = tmp_path / "whole/checkpoints/task-02-stripes.safetensors"
    assert read(tmp_path / "whole/run.json")["identity"]["transform"] == "bilinear-squash"
    before, after = load_file(model / "open_clip_model.safetensors"), load_file(last)
    assert torch.equal(before["visual.bn1.running_mean"], after["visual.bn1.running_mean"])
    assert not torch.equal(before["visual.bn1.weight"], after["visual.bn1.weight"])
    evaluated = gift_train("evaluate", *world.arguments, "--model", model, "--checkpoint", last, "--json")
    assert list(json.loads(evaluated.out)["accuracy"].values()) == read(tmp_path / "whole/accuracy_matrix.json")["matrix"][-1]


def write_resnet(world, folder):
    """A model folder whose image tower is a ResNet of four small blocks."""
    shutil.copytree(world.root / "model", folder)
    config = read(folder / "open_clip_config.json")
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    config["model_cfg"]["vision_cfg"] = vision
    config.setdefault("preprocess_cfg", {}).update(interpolation="bilinear", resize_mode="squash")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(5)
    text = {key: value for key, value in config["model_cfg"]["text_cfg"].items() if key != "tokenizer_kwargs"}
    network = open_clip.CLIP(16, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text))
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def run_in_two_starts(quick_run, out, monkeypatch, method, *flags):
    """A run that dies inside its second task, and the same again."""
    from gift_train.training import loop

    training_step, calls = loop.training_step, []

    def stop_at_the_twentieth(*arguments):
        calls.append(None)
        if len(calls) == 20:  # step 6 of the second task, one after a checkpoint and a logged row
            raise Stopped
        return training_step(*arguments)

    monkeypatch.setattr(loop, "training_step", stop_at_the_twentieth)
    with pytest.raises(Stopped):
        quick_run(method, out, *flags)
    assert sorted(path.name for path in (out / "checkpoints/progress").iterdir()) == ["task-02-step-000005.safetensors"]
    monkeypatch.setattr(loop, "training_step", training_step)
    assert quick_run(method, out, *flags).code == 0


def test_a_damaged_newest_progress_falls_back_to_the_one_before(quick_run, tmp_path, monkeypatch):
    from gift_train.training import loop

    assert quick_run("finetune", tmp_path / "whole").code == 0
    training_step, calls = loop.training_step, []

    def stop(*arguments):
        calls.append(None)
        if len(calls) == 12:
            raise Stopped
        return training_step(*arguments)

    monkeypatch.setattr(loop, "training_step", stop)
    with pytest.raises(Stopped):
        quick_run("finetune", tmp_path / "resumed")
    monkeypatch.setattr(loop, "training_step", training_step)
    newest = tmp_path / "resumed/checkpoints/progress/task-01-step-000010.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    assert quick_run("finetune", tmp_path / "resumed").code == 0
    assert same_runs(tmp_path / "whole", tmp_path / "resumed")
