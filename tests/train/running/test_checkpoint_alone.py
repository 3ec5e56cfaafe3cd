"""A checkpoint evaluates alone, as its run did: model, QuickGELU, precision, batch size and method are in the file."""

import gzip
import json
import re
import shutil

import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gift_shared.preemption import PreemptionNotice
from gift_train.clip.load import load_backbone
from gift_train.clip.model_config import build
from gift_train.options import RunOptions
from gift_train.records.reading import reading_of_file
from gift_train.training.run import train

LAST = "checkpoints/task-02-stripes.safetensors"


@pytest.fixture(scope="module")
def quick_world(world, tmp_path_factory):
    """The world with a model that runs QuickGELU, makes its pictures in a way of its own, and may be moved."""
    root = tmp_path_factory.mktemp("quick")
    for name in ("manifests", "data", "model"):
        shutil.copytree(world.root / name, root / name)
    path = root / "model/open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = True
    config["preprocess_cfg"] |= {"mean": [0.3] * 3, "std": [0.6] * 3, "interpolation": "bilinear"}
    path.write_text(json.dumps(config))
    weights = load_file(root / "model/open_clip_model.safetensors")
    save_file(
        {name: 3 * tensor if "mlp.c_fc" in name else tensor for name, tensor in weights.items()}, root / "model/open_clip_model.safetensors"
    )
    return type(world)(root)


@pytest.fixture(scope="module")
def data(quick_world):
    """What an evaluation elsewhere is told: where data and manifests are."""
    return [flag for flag in quick_world.arguments if not flag.startswith(("--model", "--order"))]


@pytest.fixture(scope="module")
def finished(quick_world, tmp_path_factory):
    """A finished run in bf16 with batches of 4 images in evaluation."""
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = ["steps=3", "warmup_steps=1", "batch_size=6", "learning_rate=1e-3", "evaluation_batch_size=4", "precision=bf16"]
    root = quick_world.root
    with PreemptionNotice() as notice:
        options = RunOptions(
            method="finetune", order="pair", manifests=[root / "manifests"], data_root=root / "data", model=str(root / "model"), out=out,
            device="cpu", overrides=settings,
        )  # fmt: skip
        train(options, notice)
    return out


def accuracy(outcome):
    assert outcome.code == 0, outcome.err
    return list(json.loads(outcome.out)["accuracy"].values())


def of_the_run(finished):
    return json.loads((finished / "accuracy_matrix.json").read_text())["matrix"][-1]


def test_a_checkpoint_alone_evaluates_as_its_run_did_wherever_it_lies(finished, gift_train, data, tmp_path, caplog):
    lonely = shutil.copy(finished / LAST, tmp_path / "lonely.safetensors")
    assert accuracy(gift_train("evaluate", *data, "--checkpoint", lonely, "--json")) == of_the_run(finished)
    assert accuracy(gift_train("evaluate", *data, "--checkpoint", finished / LAST, "--json")) == of_the_run(finished)
    assert caplog.text == ""
    reading = reading_of_file(lonely)
    assert (reading.precision, reading.evaluation_batch_size, reading.method, reading.order) == ("bf16", 4, "finetune", "pair")


def test_it_holds_the_whole_configuration_and_loads_in_plain_open_clip(finished, quick_world):
    with safe_open(finished / LAST, framework="pt") as file:
        config = json.loads(file.metadata()["open_clip_config"])
    assert config == load_backbone(str(quick_world.root / "model"), None).config
    text_cfg = {key: value for key, value in config["model_cfg"]["text_cfg"].items() if key != "tokenizer_kwargs"}
    network = open_clip.CLIP(**(config["model_cfg"] | {"text_cfg": text_cfg})).eval()
    open_clip.load_checkpoint(network, str(finished / LAST))
    ours = build(config)
    ours.load_state_dict(load_file(finished / LAST))
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network.encode_image(images), ours.encode_image(images))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "mini"), "checkpoint is of another model: .* for --checkpoint .* and .* for --model mini"),
        (("--model", "ViT-B-32", "--pretrained", "openai"), "The checkpoint is of another model: embed_dim is 16 for"),
        (("--pretrained", "openai"), "--pretrained openai goes with an open_clip name"),
        (("--quick-gelu", "no"), "says QuickGELU, --quick-gelu no says GELU"),
    ],
)
def test_what_contradicts_it_is_refused_in_one_line_before_data_is_read(finished, gift_train, data, flags, message):
    elsewhere = [*(flag for flag in data if not flag.startswith("--data-root")), "--data-root=nowhere"]
    outcome = gift_train("evaluate", *elsewhere, "--checkpoint", finished / LAST, *flags)
    assert outcome.code == 2
    assert "nowhere" not in outcome.err
    told = outcome.err.strip().splitlines()
    assert len(told) == 1
    assert re.search(message, told[0])


def test_what_agrees_with_it_is_taken_and_another_precision_is_told(finished, gift_train, data, quick_world, caplog):
    flags = ("--checkpoint", finished / LAST, "--json", "--model", quick_world.root / "model", "--quick-gelu", "yes")
    assert accuracy(gift_train("evaluate", *data, *flags)) == of_the_run(finished)
    assert caplog.text == ""
    assert gift_train("evaluate", *data, *flags, "--precision", "fp32").code == 0
    assert "is evaluated in fp32; its run evaluates in bf16" in caplog.text


def test_a_model_folder_that_moved_or_has_another_tokenizer_is_told(finished, gift_train, data, quick_world, tmp_path):
    model, moved = quick_world.root / "model", tmp_path / "moved"
    model.rename(moved)
    try:
        outcome = gift_train("evaluate", *data, "--checkpoint", finished / LAST)
        assert outcome.code == 2
        assert f"takes its tokenizer from {model}, which is not here: give the place of that folder as --model" in outcome.err
        assert accuracy(gift_train("evaluate", *data, "--checkpoint", finished / LAST, "--model", moved, "--json")) == of_the_run(finished)
    finally:
        shutil.copytree(moved, model)
    with gzip.open(moved / "merges.txt.gz", "wt") as file:
        file.write("#version\na n")
    outcome = gift_train("evaluate", *data, "--checkpoint", finished / LAST, "--model", moved)
    assert outcome.code == 2
    assert f"the tokenizer of {moved} is not the one its run had" in outcome.err


def test_another_order_or_manifests_that_are_missing_are_told(finished, gift_train, data, quick_world):
    flags = [flag for flag in data if not flag.startswith("--manifests")]
    outcome = gift_train("evaluate", *flags, "--checkpoint", finished / LAST)
    assert outcome.code == 2
    assert "is of order 'pair': " in outcome.err
    assert "Give its --manifests, or --order." in outcome.err


def test_a_checkpoint_of_before_is_read_as_its_run_json_says(finished, gift_train, data, tmp_path, caplog):
    run = shutil.copytree(finished, tmp_path / "run")
    old(run / LAST)
    assert accuracy(gift_train("evaluate", *data, "--checkpoint", run / LAST, "--json")) == of_the_run(finished)
    assert "does not say which model it is of; it is read as its run.json or the command says, --model " in caplog.text


def test_a_file_that_says_nothing_is_read_as_the_model_that_is_asked_for_and_that_is_told(
    finished, gift_train, data, quick_world, tmp_path, caplog
):
    lonely = shutil.copy(finished / LAST, tmp_path / "lonely.safetensors")
    old(lonely)
    flags = ("--checkpoint", lonely, "--order", "pair", "--model", quick_world.root / "model", "--precision", "bf16")
    assert accuracy(gift_train("evaluate", *data, *flags, "--batch-size", "4", "--json")) == of_the_run(finished)
    assert (
        f"lonely.safetensors does not say which model it is of; it is read as plain CLIP, --model {quick_world.root / 'model'}"
        in caplog.text
    )


def old(path):
    """The file as it was before checkpoints held their model."""
    with safe_open(path, framework="pt") as file:
        kept = {key: value for key, value in file.metadata().items() if key in ("gift", "format")}
    save_file(load_file(path), path, metadata=kept)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gift_reading", "{}"),
        ("gift_reading", "]"),
        ("open_clip_config", "{}"),
        ("open_clip_config", "["),
        ("gift_reading", '{"method": 3}'),
    ],
)
def test_garbled_metadata_are_one_line(finished, gift_train, data, tmp_path, key, value):
    path = tmp_path / "garbled.safetensors"
    with safe_open(finished / LAST, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(finished / LAST), path, metadata=metadata | {key: value})
    outcome = gift_train("evaluate", *data, "--checkpoint", path)
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert f"{path}" in outcome.err
