"""What a user meets: the commands' output, and one line with exit code 2 for every mistake."""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from gift_train.methods.registry import method_names

FEW_STEPS = ("--set", "steps=3", "--set", "warmup_steps=1", "--set", "batch_size=6")


def test_evaluate_prints_every_dataset_and_takes_a_checkpoint(gift_train, quick_run, world, tmp_path):
    assert quick_run("finetune", tmp_path / "run").code == 0
    flags = [flag for flag in world.arguments if not flag.startswith("--device")]
    plain = gift_train("evaluate", *flags, "--json")
    trained = gift_train("evaluate", *flags, "--json", "--checkpoint", tmp_path / "run/checkpoints/task-01-colours.safetensors")
    accuracies = json.loads((tmp_path / "run/accuracy_matrix.json").read_text())
    assert list(json.loads(plain.out)["accuracy"].values()) == accuracies["zero_shot"]
    assert list(json.loads(trained.out)["accuracy"].values()) == accuracies["matrix"][0]
    assert "Colours" in gift_train("evaluate", "colours", *flags).out


def test_methods_lists_all_of_them(gift_train):
    printed = gift_train("methods").out
    assert all(f"{name} " in printed for name in method_names())
    assert "recipes for mtil: gift, " in printed


def test_validate_prints_the_resolved_recipe(gift_train):
    assert json.loads(gift_train("validate", "gift", "--benchmark", "mtil").out)["steps"] == 1000


def test_run_says_its_numbers_and_report_reads_its_folder(gift_train, quick_run, tmp_path):
    outcome = quick_run("finetune", tmp_path / "run")
    assert "Continual Finetune, pair, seed 42:  Transfer " in outcome.out
    reported = json.loads(gift_train("report", tmp_path / "run", "--json").out)
    assert reported["runs"][0]["method"] == "finetune"


def test_run_records_what_it_was(quick_run, tmp_path):
    quick_run("gift", tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["recipe"]["method_config"]["alignment_weight"] == 0.25
    assert record["recipe"]["steps"] == 12  # what --set made of it
    assert len(record["shards"]["index_sha256"]) == 64
    assert record["versions"]["torch"]
    assert record["ended"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "gfit"], "Unknown method 'gfit'. Did you mean 'gift'?"),
        (["--recipe", "gift_nopenalty"], "Unknown recipe 'gift_nopenalty'. Did you mean 'gift_no_penalty'?"),
        ([], "Give either --method NAME or --recipe NAME_OR_FILE."),
        (["--method", "gift"], "replays synthetic images: give their output folder with --shards"),
        (["--method", "gift", "--shards", "nowhere"], "nowhere has no index.parquet"),
        (["--method", "finetune", "--order", "pairs"], "Unknown order 'pairs'. Did you mean 'pair'?"),
        (["--method", "finetune", "--data-root", "nowhere"], "nowhere/colours/train"),
        (["--method", "finetune", "--model", "nowhere"], "Unknown model 'nowhere'"),
        (["--method", "finetune", "--stop-after", "0"], "--stop-after counts tasks and must be at least 1"),
        (["--method", "finetune", "--set", "learning_rates.colors=1.0"], "Unknown dataset 'colors'. Did you mean 'colours'?"),
        (["--method", "finetune", "--seed", "99999999999999999999"], "--seed must be a number of 64 bits"),
        (["--method", "finetune", "--image-cache-gb", "1e8"], "cannot be had here ("),
        (["--method", "finetune", "--image-cache-gb", "1e12"], "Give a smaller --image-cache-gb"),
        (["--method", "finetune", "--device", "quantum"], "Device 'quantum' cannot be used here"),
    ],
)
def test_mistake_on_the_command_line_is_one_line_and_leaves_nothing(gift_train, world, tmp_path, flags, message):
    outcome = gift_train("run", "--out", tmp_path / "run", *world.arguments, *flags)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_folder_of_another_run_is_refused_naming_the_difference(quick_run, tmp_path):
    assert quick_run("finetune", tmp_path / "run", "--stop-after", "1").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    other = quick_run("finetune", tmp_path / "run", "--seed", "43")
    assert other.code == 2
    assert "holds another run: seed is 42 there and 43 here" in other.err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


@pytest.mark.parametrize("changed", ["manifests", "model", "configuration"])
def test_a_run_whose_manifests_or_weights_have_changed_is_refused(gift_train, world, tmp_path, changed):
    own = type(world)(shutil.copytree(world.root, tmp_path / "world"))
    command = ("run", "--method", "finetune", "--out", tmp_path / "run", *own.arguments, *FEW_STEPS)
    assert gift_train(*command, "--stop-after", "1").code == 0
    if changed == "manifests":
        task = own.root / "manifests/tasks/stripes.toml"
        task.write_text(task.read_text().replace("a {} square.", "a sketch of a {}."))
    elif changed == "configuration":
        path = own.root / "model/open_clip_config.json"
        path.write_text(path.read_text().replace('"embed_dim"', '"quick_gelu": true, "embed_dim"'))
    else:
        path = own.root / "model/open_clip_model.safetensors"
        save_file({name: 2 * weight for name, weight in load_file(path).items()}, path)
    other = gift_train(*command)
    assert other.code == 2
    manifests, model = "the manifests (class names, templates, data, counts)", "the initial weights or their configuration"
    told = manifests if changed == "manifests" else f"{model} (--model, --pretrained)"
    assert f"holds another run: {told} are not those it began with. Choose another folder." in other.err


def test_a_run_recorded_without_digests_goes_on(quick_run, tmp_path):
    assert quick_run("finetune", tmp_path / "run", "--stop-after", "1").code == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    for key in ("manifests_sha256", "initial_weights"):
        assert record["identity"].pop(key)
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    assert quick_run("finetune", tmp_path / "run").code == 0


def test_where_shards_lie_and_how_often_a_run_saves_make_no_other_run(quick_run, world, tmp_path):
    shutil.copytree(world.root / "shards", tmp_path / "moved")
    assert quick_run("gift", tmp_path / "run", "--stop-after", "1").code == 0
    outcome = quick_run("gift", tmp_path / "run", "--shards", tmp_path / "moved", "--set", "checkpoint_every=2")
    assert outcome.code == 0, outcome.err


def test_memory_without_end_is_refused(quick_run, tmp_path):
    assert "should be less than or equal to" in quick_run("finetune", tmp_path / "run", "--image-cache-gb", "inf").err


def test_a_run_that_was_killed_before_its_record_was_whole_begins_anew(quick_run, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".lock", ".run.json.host-0123abcd-17-4711.tmp"):
        (tmp_path / "run" / name).touch()
    assert quick_run("finetune", tmp_path / "run", "--stop-after", "1").code == 0
    assert not list((tmp_path / "run").glob(".run.json.*"))


def test_folder_with_other_things_in_it_is_refused(quick_run, tmp_path):
    (tmp_path / "thesis.tex").touch()
    outcome = quick_run("finetune", tmp_path)
    assert outcome.code == 2
    assert "is not the folder of a run" in outcome.err


@pytest.mark.parametrize("component", ["open_clip_config.json", "open_clip_model.safetensors", "merges.txt.gz"])
def test_model_folder_without_a_component_is_told(gift_train, world, tmp_path, component):
    shutil.copytree(world.root / "model", tmp_path / "model")
    (tmp_path / "model" / component).unlink()
    flags = [flag for flag in world.arguments if not flag.startswith("--model")]
    outcome = gift_train("run", "--method", "finetune", "--out", tmp_path / "run", "--model", tmp_path / "model", *flags)
    assert outcome.code == 2
    assert str(tmp_path / "model") in outcome.err


def test_loss_that_is_not_finite_stops_the_run_before_anything_of_it_is_saved(quick_run, tmp_path):
    outcome = quick_run("finetune", tmp_path / "run", "--set", "learning_rate=1e30")
    assert outcome.code == 2
    assert "the loss term 'cross_entropy' is nan" in outcome.err
    assert not (tmp_path / "run/checkpoints").exists()


def test_captions_longer_than_the_context_are_named_and_cut(gift_train, world, tmp_path, caplog):
    shutil.copytree(world.root / "manifests", tmp_path / "manifests")
    path = tmp_path / "manifests/tasks/colours.toml"
    path.write_text(path.read_text().replace("a {} square.", "a most extraordinarily unusual {} square."))
    flags = [flag for flag in world.arguments if not flag.startswith("--manifests")]
    outcome = gift_train("run", "--method", "zero_shot", "--out", tmp_path / "run", *flags, "--manifests", tmp_path / "manifests")
    assert outcome.code == 0, outcome.err
    assert "3 texts are longer than the model's 32 tokens and are cut: 'a most extraordinarily unusual red square.'" in caplog.text


def test_folder_of_another_run_is_refused_before_the_model_is_loaded(gift_train, quick_run, world, tmp_path):
    assert quick_run("finetune", tmp_path / "run", "--stop-after", "1").code == 0
    flags = [flag for flag in world.arguments if not flag.startswith("--data-root")]
    other = gift_train("run", "--method", "l2", "--out", tmp_path / "run", *flags, "--data-root", "nowhere")
    assert "holds another run: data" not in other.err
    assert "holds another run" in other.err


def test_a_second_process_in_the_same_run_folder_is_refused(quick_run, tmp_path):
    assert quick_run("finetune", tmp_path / "run", "--stop-after", "1").code == 0
    hold = "import sys; from pathlib import Path; from gift_shared.locks import only_writer\n"
    hold += "with only_writer(Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
    lock = str(tmp_path / "run/.lock")
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        second = quick_run("finetune", tmp_path / "run")
        holder.communicate()
    assert second.code == 2
    assert f"Run folder {tmp_path / 'run'} is being written by another process" in second.err
    assert quick_run("finetune", tmp_path / "run").code == 0


@pytest.mark.parametrize("damage", ["cut", "gone", "edited"])
def test_damaged_shards_are_told_before_the_first_task(quick_run, gift_train, world, tmp_path, damage):
    shutil.copytree(world.root / "shards", tmp_path / "shards")
    tar = tmp_path / "shards/shards/stripes-00000.tar"  # of the second task
    content = tar.read_bytes()
    if damage == "cut":
        tar.write_bytes(content[:2000])
    elif damage == "edited":
        tar.write_bytes(content[:600] + b"\0\0\0\0" + content[604:])
    else:
        tar.unlink()
    outcome = quick_run("gift", tmp_path / "run", "--shards", tmp_path / "shards")
    assert outcome.code == 2
    assert f"error: {tar} " in outcome.err
    assert not (tmp_path / "run").exists()


def test_progress_in_a_log_is_plain_lines(quick_run, tmp_path):
    told = quick_run("finetune", tmp_path / "run").err
    assert "\r" not in told
    assert "finetune 1/2 colours: 13 of 13 steps in 0:0" in told
    assert "Traceback" not in told


def test_a_log_that_lost_what_its_checkpoint_claims_is_told(quick_run, tmp_path):
    assert quick_run("finetune", tmp_path / "run", "--stop-after", "1").code == 0
    (tmp_path / "run/metrics.jsonl").write_text("")
    outcome = quick_run("finetune", tmp_path / "run")
    assert outcome.code == 2
    assert "metrics.jsonl has 0 bytes, its checkpoint claims" in outcome.err
