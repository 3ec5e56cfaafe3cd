"""ZSCL's reference set: images of any folder, sentences of any caption file or prompts of the pretraining classes."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gift_train.data.reference_images import reference_replay
from gift_train.data.sources import ReplaySource
from gift_train.data.transforms import image_transforms
from gift_train.training.loop import training_step

RECIPE = """base = "protocol"
title = "ZSCL on references"
method = "zscl"
[method_config]
distill_weight = 1.0
temperature = 2.0
l2_weight = 0.3
average_every = 3
[method_config.reference]
images = "reference"
texts = "file"
num_images = 9
"""
EVALUATION = image_transforms(8).evaluation
SENTENCES = ["a cat on a mat", "two boats", "a red barn in the snow", "two boats"]


@pytest.fixture
def recipe(tmp_path):
    """A recipe of one's own that replays 9 reference images against a file's sentences."""
    path = tmp_path / "own.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "web.txt"
    path.write_text("\n".join(SENTENCES) + "\n")
    return path


@pytest.fixture
def references(world, sentences):
    """The two flags of the reference set."""
    return ("--reference-images", world.root / "data/colours/train", "--reference-captions", sentences)


def read(path):
    return json.loads(path.read_text())


def files(run):
    """What a run leaves that decides its numbers."""
    weights = {path.name: load_file(path) for path in sorted((run / "checkpoints").glob("*.safetensors"))}
    return weights, [(run / name).read_bytes() for name in ("metrics.jsonl", "accuracy_matrix.json")]


def test_a_folder_and_a_caption_file_are_the_reference_set(quick_run, tmp_path, recipe, references, sentences, gift_train, world):
    run = tmp_path / "run"
    outcome = quick_run(recipe, run, *references)
    assert outcome.code == 0, outcome.err
    record = read(run / "run.json")
    assert record["reference_images"].endswith("data/colours/train")
    assert record["reference_captions"] == {"path": str(sentences), "sha256": hashlib.sha256(sentences.read_bytes()).hexdigest()}
    assert record["shards"] is None
    assert not list((run / "replay").glob("*"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["terms"]["distillation"] > 0 for row in rows)
    outcome = gift_train("evaluate", *world.arguments, "--checkpoint", run / "checkpoints/task-02-stripes.safetensors", "--json")
    assert list(json.loads(outcome.out)["accuracy"].values()) == read(run / "accuracy_matrix.json")["matrix"][-1]


def test_the_sentences_decide_the_run_and_another_file_does_not_go_on_with_it(quick_run, tmp_path, recipe, references, sentences):
    run = tmp_path / "run"
    assert quick_run(recipe, run, *references, "--stop-after", "1").code == 0
    sentences.write_text("other words\nmore words\n")
    outcome = quick_run(recipe, run, *references)
    assert outcome.code == 2
    assert "holds another run: reference_captions.sha256 is" in outcome.err
    assert quick_run(recipe, tmp_path / "other", *references, "--stop-after", "1").code == 0
    assert (tmp_path / "other/metrics.jsonl").read_bytes() != (run / "metrics.jsonl").read_bytes()


def test_reference_images_may_move_and_not_change(quick_run, world, tmp_path, recipe, sentences):
    run, images = tmp_path / "run", shutil.copytree(world.root / "data/colours/train", tmp_path / "images")
    captions = ("--reference-captions", sentences)
    assert quick_run(recipe, run, "--reference-images", images, *captions, "--stop-after", "1").code == 0
    images = images.rename(tmp_path / "moved")
    for path in images.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"more")
    outcome = quick_run(recipe, run, "--reference-images", images, *captions)
    assert outcome.code == 2
    assert "holds another run: the images of --reference-images are not those it began with." in outcome.err
    assert quick_run(recipe, run, "--reference-images", world.root / "data/colours/train", *captions).code == 0


def test_resuming_inside_a_task_equals_an_uninterrupted_run(quick_run, tmp_path, recipe, references, monkeypatch):
    assert quick_run(recipe, tmp_path / "whole", *references, "--num-workers", "1").code == 0
    calls = []

    def stop(*arguments):
        calls.append(None)
        if len(calls) == 20:  # step 6 of the second task, one after a checkpoint
            raise RuntimeError("the machine goes away")
        return training_step(*arguments)

    monkeypatch.setattr("gift_train.training.loop.training_step", stop)
    with pytest.raises(RuntimeError):
        quick_run(recipe, tmp_path / "resumed", *references)
    monkeypatch.setattr("gift_train.training.loop.training_step", training_step)
    assert quick_run(recipe, tmp_path / "resumed", *references).code == 0
    (one, one_logs), (other, other_logs) = files(tmp_path / "whole"), files(tmp_path / "resumed")
    assert one_logs == other_logs
    assert one.keys() == other.keys()
    assert all(torch.equal(one[file][name], other[file][name]) for file in one for name in one[file])


def test_prompts_of_the_pretraining_classes_need_no_file(quick_run, tmp_path, recipe, world):
    images = ("--reference-images", world.root / "data/colours/train")
    flags = ("--set", "method_config.reference.texts=pretraining-classes", "--stop-after", "1")
    outcome = quick_run(recipe, tmp_path / "run", *images, *flags)
    assert outcome.code == 0, outcome.err
    assert read(tmp_path / "run/run.json")["reference_captions"] is None


def test_synthetic_images_may_go_with_sentences_of_a_file(quick_run, tmp_path, sentences):
    flags = ("--set", "method_config.reference.images=synthetic", "--set", "method_config.reference.texts=file", "--stop-after", "1")
    outcome = quick_run("zscl", tmp_path / "run", *flags, "--reference-captions", sentences)
    assert outcome.code == 0, outcome.err
    record = read(tmp_path / "run/run.json")
    assert record["shards"]["index_sha256"]
    assert record["reference_captions"]["path"] == str(sentences)


def test_missing_references_are_told_before_any_work(quick_run, tmp_path, recipe, references, world):
    outcome = quick_run(recipe, tmp_path / "run", *references[2:])
    assert outcome.code == 2
    assert "give their folder or tars with --reference-images" in outcome.err
    outcome = quick_run(recipe, tmp_path / "run", *references[:2])
    assert outcome.code == 2
    assert "give caption files with --reference-captions" in outcome.err
    outcome = quick_run(recipe, tmp_path / "run", *references, "--set", "method_config.reference.num_images=1000")
    assert outcome.code == 2
    assert "holds 24 images, the recipe asks for 1000" in outcome.err
    outcome = quick_run(recipe, tmp_path / "run", *references, "--set", "method_config.reference.texts=captions")
    assert outcome.code == 2
    assert 'texts = "captions" are those of synthetic images' in outcome.err
    assert not (tmp_path / "run").exists()


def test_the_subset_follows_from_the_seed_alone(world):
    folder = world.root / "data/colours/train"

    def names(seed, num_images):
        return [str(path) for path, _, _ in reference_replay(ReplaySource.REFERENCE, folder, num_images, seed, EVALUATION).places]

    assert names(42, 9) == names(42, 9)
    assert len(set(names(42, 9))) == 9
    assert names(42, 9) != names(7, 9)
    assert set(names(42, 9)) < set(names(42, None))
    assert len(names(42, None)) == 24
