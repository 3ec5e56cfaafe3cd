"""ConDU through the command line: the experts lie beside the weights, and are all that a checkpoint is read by."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the module's one run lies; made by the first test that asks."""
    return tmp_path_factory.mktemp("condu") / "whole"


@pytest.fixture
def run(quick_run, whole):
    """A finished run that is also judged where nobody knows the task."""
    if not whole.exists():
        outcome = quick_run("condu", whole, "--label-space", "union-seen")
        assert outcome.code == 0, outcome.err
    return whole


def test_a_checkpoint_answers_as_its_run_did_in_every_label_space(run, gift_train, world):
    found = read(run / "accuracy_matrix.json")
    last = run / "checkpoints/task-02-stripes.safetensors"
    spaces = ("--label-space", "known", "--label-space", "union-seen")
    evaluated = gift_train("evaluate", *world.arguments, "--checkpoint", last, "--json", *spaces)
    assert evaluated.code == 0, evaluated.err
    told = json.loads(evaluated.out)
    assert list(told["accuracy"].values()) == found["matrix"][-1]
    assert list(told["label_spaces"]["union-seen"]["accuracy"].values()) == found["label_spaces"]["union-seen"]["matrix"][-1]


def test_experts_are_rebuilt_without_our_code(run, world):
    first, second = (run / f"checkpoints/task-0{number}" for number in ("1-colours", "2-stripes"))
    initial = load_file(world.root / "model/open_clip_model.safetensors")
    state, later = load_file(f"{first}.state.safetensors"), load_file(f"{second}.state.safetensors")
    assert all(torch.equal(weight, initial[name]) for name, weight in load_file(f"{second}.safetensors").items())
    assert set(later) == {*(f"{kind}/{name}" for kind in ("delta", "masks") for name in initial if name != "logit_scale")} | {
        "rescalers",
        "prototypes/000/colours",
        "prototypes/001/stripes",
    }
    name = "visual.proj"
    delta, bits = state[f"delta/{name}"].numpy(), state[f"masks/{name}"].numpy()
    mask = np.unpackbits(bits[0], bitorder="little")[: delta.size].reshape(delta.shape)
    assert np.array_equal(delta * mask, delta)
    assert float(state["rescalers"]) == pytest.approx(1.0)
    assert np.abs(delta).max() > 0
    assert later["masks/visual.proj"].shape == (2, bits.shape[1])


def test_weights_without_what_lies_beside_them_are_told(run, gift_train, world, tmp_path):
    alone = shutil.copy(run / "checkpoints/task-02-stripes.safetensors", tmp_path)
    outcome = gift_train("evaluate", *world.arguments, "--checkpoint", alone)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "is read with what condu kept, task-02-stripes.state.safetensors: copy that file beside it" in outcome.err


def test_no_plain_clip_is_exported(run, gift_train, tmp_path):
    outcome = gift_train("export", run, "--to", tmp_path / "model")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "condu reads images by more than the weights of the CLIP" in outcome.err
    assert not (tmp_path / "model").exists()
