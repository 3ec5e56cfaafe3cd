"""The plain training step that ours is measured against is the published one: it arrives at the golden numbers."""

import importlib.util
from pathlib import Path

import pytest
import torch

from gift_train.clip.load import backbone_from_tensors
from gift_train.parity.bounds import ON_CPU
from gift_train.parity.replay import Fixture

ROOT = Path(__file__).parents[2]


def plain_training():
    specification = importlib.util.spec_from_file_location("plain_training", ROOT / "benchmarks/plain_training.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("variant", "consolidation_weight"), [("gift", 1.0), ("gift_without_awc", 0.0)])
def test_the_plain_step_arrives_at_the_golden_numbers(variant, consolidation_weight):
    plain, fixture = plain_training(), Fixture(ROOT / "tests/golden/parity")
    network = backbone_from_tensors(fixture.weights("previous")).network
    chosen = fixture.optimizer
    settings = plain.PlainSettings(
        label_smoothing=fixture.label_smoothing,
        consolidation_weight=consolidation_weight,
        betas=(chosen.beta1, chosen.beta2),
        epsilon=chosen.epsilon,
        weight_decay=chosen.weight_decay,
    )
    training = plain.PlainGift(network, fixture.tensor("class_tokens"), fixture.schedule.learning_rate, settings)
    captions = fixture.tensor("caption_tokens")[fixture.tensor("synthetic_captions")]
    inputs = (fixture.tensor("task_images"), fixture.tensor("task_labels"), fixture.tensor("synthetic_images"), captions)
    losses = [float(sum(training.step(*batch).values())) for batch in zip(*inputs, strict=True)]
    golden = [float(row["loss"]) for row in fixture.golden[variant]["losses"]]
    assert losses == pytest.approx(golden, abs=ON_CPU.loss)
    weights = network.state_dict()
    probed = torch.cat([weights[name].detach().flatten() for name in sorted(weights)])[:: fixture.stride]
    assert (probed - fixture.tensor(f"final_probe/{variant}")).abs().quantile(0.99) <= ON_CPU.weight
