"""Models as people bring them, through the command line: a bare file that is asked about, a folder of transformers."""

import json

import open_clip
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gift_shared.errors import ConfigError
from gift_train.options import TableOptions
from gift_train.report.paper_tables.command import missing_runs

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Weights of the open_clip name `bare-CLIP` that say nothing of themselves."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "bare-CLIP.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "bare-CLIP.json")
    torch.manual_seed(3)
    path = folder / "bare.safetensors"
    save_file({name: 4 * tensor if "mlp.c_fc" in name else tensor for name, tensor in open_clip.CLIP(**TINY).state_dict().items()}, path)
    return path


@pytest.fixture
def data(world):
    return [flag for flag in world.arguments if not flag.startswith("--model")]


STEPS = ("--set", "steps=2", "--set", "warmup_steps=1", "--set", "batch_size=4", "--stop-after", "1")


def test_a_file_that_does_not_say_is_asked_about_before_anything_is_made(gift_train, data, bare, tmp_path):
    outcome = gift_train("run", "--method", "finetune", "--out", tmp_path / "run", *data, "--model=bare-CLIP", "--pretrained", bare)
    assert outcome.code == 2
    assert "give --quick-gelu yes" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
    evaluated = gift_train("evaluate", *data, "--model=bare-CLIP", "--pretrained", bare)
    assert evaluated.code == 2
    assert "give --quick-gelu yes" in evaluated.err


def test_runs_that_differ_in_quick_gelu_alone_are_two_runs(gift_train, data, bare, tmp_path):
    run = ("run", "--method", "finetune", *data, "--model=bare-CLIP", "--pretrained", bare, *STEPS)
    out = {answer: tmp_path / answer for answer in ("yes", "no")}
    for answer, folder in out.items():
        outcome = gift_train(*run, "--out", folder, "--quick-gelu", answer)
        assert outcome.code == 0, outcome.err
    for answer, other in (("yes", "no"), ("no", "yes")):
        refused = gift_train(*run, "--out", out[answer], "--quick-gelu", other)
        assert refused.code == 2
        assert "holds another run: quick_gelu is " in refused.err
        assert gift_train(*run, "--out", out[answer], "--quick-gelu", answer).code == 0  # the same
    weights = [load_file(folder / "checkpoints/task-01-colours.safetensors") for folder in out.values()]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    found = []
    for folder in out.values():
        checkpoint = folder / "checkpoints/task-01-colours.safetensors"
        outcome = gift_train("evaluate", *data, "--checkpoint", checkpoint, "--json")
        assert outcome.code == 0, outcome.err
        matrix = json.loads((folder / "accuracy_matrix.json").read_text())["matrix"]
        assert list(json.loads(outcome.out)["accuracy"].values()) == matrix[-1]
        with safe_open(checkpoint, framework="pt") as file:
            found.append(json.loads(file.metadata()["open_clip_config"])["model_cfg"]["quick_gelu"])
    assert found == [True, False]
    # A checkpoint as --pretrained says it itself.
    again = ("evaluate", *data, "--model=bare-CLIP", "--pretrained", out["yes"] / "checkpoints/task-01-colours.safetensors")
    assert gift_train(*again).code == 0
    assert "says QuickGELU, --quick-gelu no says GELU" in gift_train(*again, "--quick-gelu", "no").err


def test_a_table_looks_for_the_runs_that_its_flag_makes(gift_train, world, bare, tmp_path):
    root = world.root
    shared = {"order": "pair", "manifests": [root / "manifests"], "data_root": root / "data", "runs": tmp_path / "runs"}
    options = [
        TableOptions(**shared, model="bare-CLIP", pretrained=str(bare), quick_gelu=answer, only=["zero_shot"]) for answer in ("yes", "no")
    ]
    (needed,) = missing_runs("1", options[0])
    assert "--quick-gelu yes" in " ".join(needed.command_line())
    outcome = gift_train(*needed.command_line()[1:], "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert missing_runs("1", options[0]) == []
    with pytest.raises(ConfigError, match="holds another run: quick_gelu is True there and None here"):
        missing_runs("1", options[1])


@pytest.fixture(scope="module")
def of_transformers(tmp_path_factory):
    """A folder as transformers saves it."""
    folder = tmp_path_factory.mktemp("transformers") / "clip"
    letters = [f"{chr(number)}{end}" for end in ("", "</w>") for number in range(33, 127)]
    vocabulary = {word: number for number, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    text = tower | ends | {"vocab_size": len(vocabulary), "max_position_embeddings": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=tower | {"image_size": 16, "patch_size": 8}, projection_dim=16)
    torch.manual_seed(2)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def test_a_folder_of_transformers_trains_resumes_and_its_checkpoint_evaluates_alone(gift_train, world, data, of_transformers, tmp_path):
    run = ("run", "--method", "gift", "--out", tmp_path / "run", *data, world.shards, "--model", of_transformers, *STEPS[:-2])
    run += ("--set", "replay.num_images=6", "--set", "replay_batch_size=4")
    assert gift_train(*run, "--stop-after", "1").code == 0
    assert gift_train(*run).code == 0
    checkpoint = tmp_path / "run/checkpoints/task-02-stripes.safetensors"
    outcome = gift_train("evaluate", *data, "--checkpoint", checkpoint, "--json")
    assert outcome.code == 0, outcome.err
    matrix = json.loads((tmp_path / "run/accuracy_matrix.json").read_text())["matrix"]
    assert list(json.loads(outcome.out)["accuracy"].values()) == matrix[-1]
    # Its configuration is part of the run: what a file says and no shape shows.
    about = of_transformers / "preprocessor_config.json"
    text = about.read_text()
    about.write_text(json.dumps(json.loads(text) | {"image_mean": [0.1] * 3}))
    try:
        changed = gift_train(*run)
        assert changed.code == 2
        assert "the initial weights or their configuration (--model, --pretrained) are not those it began with" in changed.err
        refused = gift_train("evaluate", *data, "--checkpoint", checkpoint)
        assert refused.code == 2
        assert "The checkpoint is of another model: mean is " in refused.err
    finally:
        about.write_text(text)
