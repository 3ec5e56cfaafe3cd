"""A small SigLIP through the command line: a logit bias, timm's image tower, a text tower without a mask, a Hugging Face tokenizer."""

import contextlib
import json
import shutil
import tomllib

import open_clip
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from gift_train.clip.model_config import build
from gift_train.training.loop import training_step

CONFIG = {
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -10.0,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 64,
        "hf_tokenizer_name": "beside the weights",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 64,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    },
}
WORDS = ["a", "red", "green", "blue", "upright", "level", "square", "fox"]
FEW = ("--set", "steps=6", "--set", "diagnostics=false")
FROZEN = ("logit_scale", "logit_bias")


def write_siglip(folder):
    """As `open_clip_config.json` describes SigLIP: T5's tokens, no start, an end, padding, all of which the tower reads."""
    words = tokenizers.models.WordLevel({word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}, unk_token="<unk>")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"size": 32, "resize_mode": "squash"}})
    )
    torch.manual_seed(5)
    save_file(build({"model_cfg": CONFIG}).state_dict(), folder / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("siglip")
    write_siglip(made)
    return made


@pytest.fixture
def siglip_run(gift_train, world, folder, quick_run):
    """A function: recipe, out and more flags -> Outcome of a quick run of the small SigLIP."""
    return lambda recipe, out, *more: quick_run(recipe, out, "--model", folder, *FEW, *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the module's one undisturbed run lies; made by the first test that asks."""
    return tmp_path_factory.mktemp("runs") / "whole"


@pytest.fixture
def finished(siglip_run, whole):
    """The folder of an undisturbed run of GIFT by sigmoid."""
    if not whole.exists():
        outcome = siglip_run("gift_sigmoid", whole)
        assert outcome.code == 0, outcome.err
    return whole


def last_weights(run):
    return load_file(run / "checkpoints/task-02-stripes.safetensors")


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_sigmoid_gift_moves_both_towers_and_neither_scale_nor_bias(finished, folder):
    before, after = load_file(folder / "open_clip_model.safetensors"), last_weights(finished)
    assert before.keys() == after.keys()
    kept = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert kept == set(FROZEN)
    assert {"cross_entropy", "distillation", "alignment", "weight_consolidation"} <= rows(finished)[-1]["terms"].keys()


@pytest.mark.parametrize("recipe", ["gift", "finetune", "l2", "wise_ft"])
def test_methods_of_softmax_run_on_it_as_they_are(siglip_run, folder, tmp_path, recipe):
    outcome = siglip_run(recipe, tmp_path / "run", "--set", "steps=4")
    assert outcome.code == 0, outcome.err
    before, after = load_file(folder / "open_clip_model.safetensors"), last_weights(tmp_path / "run")
    kept = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert kept == set(FROZEN)


def test_zero_shot_is_what_open_clip_itself_says(siglip_run, gift_train, world, folder, tmp_path):
    assert siglip_run("zero_shot", tmp_path / "run").code == 0
    matrix = json.loads((tmp_path / "run/accuracy_matrix.json").read_text())["matrix"]
    assert matrix[0] == matrix[1] == [open_clips_accuracy(world, folder, "colours"), open_clips_accuracy(world, folder, "stripes")]


def open_clips_accuracy(world, folder, task):
    """Percent of a task's test images by open_clip alone: its transform, its tokenizer, its logits with the bias."""
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    manifest = tomllib.loads((world.root / f"manifests/tasks/{task}.toml").read_text())
    num_right, images = 0, sorted((world.root / "data" / task / "test").glob("*/*.png"))
    with torch.no_grad():
        prompts = [[template.replace("{}", name) for template in manifest["templates"]] for name in manifest["class_names"]]
        per_class = [network.encode_text(tokenizer(texts), normalize=True).mean(dim=0) for texts in prompts]
        classes = torch.nn.functional.normalize(torch.stack(per_class), dim=-1)
        for path in images:
            image = network.encode_image(transform(Image.open(path).convert("RGB"))[None], normalize=True)
            logits = network.logit_scale.exp() * image @ classes.T + network.logit_bias
            num_right += manifest["class_names"][int(logits.argmax())] == path.parent.name
    return 100 * num_right / len(images)


def test_resuming_inside_a_task_equals_an_uninterrupted_run(finished, siglip_run, tmp_path, monkeypatch):
    calls = []

    def stop(*arguments):
        calls.append(None)
        if len(calls) == 14:  # step 6 of the second task, one after a checkpoint
            raise KeyboardInterrupt
        return training_step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("gift_train.training.loop.training_step", stop)
        with contextlib.suppress(KeyboardInterrupt):
            siglip_run("gift_sigmoid", tmp_path / "resumed")
    assert len(calls) == 14
    outcome = siglip_run("gift_sigmoid", tmp_path / "resumed")
    assert outcome.code == 0, outcome.err
    one, other = last_weights(finished), last_weights(tmp_path / "resumed")
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    for name in ("metrics.jsonl", "accuracy_matrix.json"):
        assert (finished / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_a_checkpoint_evaluates_as_in_its_run(finished, gift_train, world, folder):
    path = finished / "checkpoints/task-02-stripes.safetensors"
    outcome = gift_train("evaluate", *world.arguments, "--model", folder, "--checkpoint", path, "--json")
    assert outcome.code == 0, outcome.err
    matrix = json.loads((finished / "accuracy_matrix.json").read_text())["matrix"]
    assert list(json.loads(outcome.out)["accuracy"].values()) == matrix[-1]


def test_adapters_are_refused_before_weights_are_read(quick_run, folder, world, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model/open_clip_model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    outcome = quick_run("moe_adapter", tmp_path / "run", world.shards, "--model", tmp_path / "model")
    assert outcome.code == 2
    assert "this model's image tower, TimmModel, has none" in outcome.err
    assert not (tmp_path / "run").exists()


def test_sigmoid_is_refused_on_a_model_without_a_bias(quick_run, tmp_path):
    for recipe, more in (("gift_sigmoid", ()), ("zscl", ("--set", "method_config.contrastive_loss=sigmoid"))):
        outcome = quick_run(recipe, tmp_path / "run", "--data-root", tmp_path / "not there", *more)
        assert outcome.code == 2
        assert 'contrastive_loss = "sigmoid" reads a model\'s logit_bias, and this one has none' in outcome.err
        assert not (tmp_path / "run").exists()


def test_a_prompt_that_is_cut_is_told(gift_train, world, folder, tmp_path, caplog):
    own = tmp_path / "tasks/colours.toml"
    own.parent.mkdir()
    manifest = (world.root / "manifests/tasks/colours.toml").read_text()
    own.write_text(manifest.replace('"a {} square"]', f'"a {{}} {"square " * 14}"]'))  # 16 words and an end; evaluation alone reads it
    arguments = [f"--manifests={tmp_path}", *world.arguments, "--model", folder]
    assert gift_train("evaluate", "colours", *arguments).code == 0
    assert "3 texts are longer than the model's 16 tokens and are cut: 'a red square" in caplog.text
