"""Fisher and penalties: against hand-worked numbers, and the closed form against autograd."""

import pytest
import torch

from gift_shared.errors import ShapeError
from gift_train.methods.consolidation import (
    FISHER_FLOOR,
    Penalty,
    add_penalty_gradient,
    batch_fisher,
    interpolate,
    running_mean,
    weighted_squared_distance,
)


def parameters():
    torch.manual_seed(3)
    return {"a": torch.nn.Parameter(torch.randn(3, 4)), "b": torch.nn.Parameter(torch.randn(5))}


def like(tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(tensor.shape, generator=generator) for name, tensor in tensors.items()}


def test_fisher_is_the_squared_gradient_over_its_mean_per_tensor():
    weights = parameters()
    weights["a"].grad, weights["b"].grad = torch.zeros(3, 4), torch.full((5,), 7.0)
    weights["a"].grad[0, 0] = 2.0  # squares: one 4 among twelve entries, mean 1/3
    fisher = batch_fisher(weights)
    assert fisher["a"][0, 0] == pytest.approx(12.0)
    assert fisher["a"][1:].abs().max() == 0
    assert torch.allclose(fisher["b"], torch.ones(5))


def test_fisher_does_not_change_when_the_loss_is_doubled():
    weights, gradients = parameters(), like(parameters(), 1)
    for name, weight in weights.items():
        weight.grad = gradients[name].clone()
    single = batch_fisher(weights)
    for weight in weights.values():
        weight.grad *= 2
    doubled = batch_fisher(weights)
    assert all(torch.allclose(single[name], doubled[name]) for name in single)


@pytest.mark.parametrize("gradient", [None, torch.zeros(5)])
def test_tensor_that_the_replay_loss_does_not_reach_gets_the_floor(gradient):
    weights = parameters()
    weights["a"].grad, weights["b"].grad = torch.ones(3, 4), gradient
    assert torch.equal(batch_fisher(weights)["b"], torch.full((5,), FISHER_FLOOR))


def test_reading_the_fisher_leaves_the_gradient():
    weights = parameters()
    for weight in weights.values():
        weight.grad = torch.full_like(weight, 3.0)
    batch_fisher(weights)
    assert all(torch.equal(weight.grad, torch.full_like(weight, 3.0)) for weight in weights.values())


@pytest.mark.parametrize("has_fisher", [True, False])
@pytest.mark.parametrize("has_gradient", [True, False])
def test_closed_form_gradient_equals_autograd(has_fisher, has_gradient):
    weights, anchor = parameters(), like(parameters(), 1)
    fisher = like(weights, 2) if has_fisher else None
    before = like(weights, 4) if has_gradient else {name: torch.zeros_like(weight) for name, weight in weights.items()}
    expected_value = 0.7 * weighted_squared_distance(weights, anchor, fisher)
    expected = torch.autograd.grad(expected_value, list(weights.values()))
    for name, weight in weights.items():
        weight.grad = before[name].clone() if has_gradient else None
    value = add_penalty_gradient(weights, Penalty(name="penalty", weight=0.7, anchor=anchor, fisher=fisher))
    assert value == pytest.approx(expected_value.item(), rel=1e-6)
    for (name, weight), gradient in zip(weights.items(), expected, strict=True):
        assert torch.allclose(weight.grad, before[name] + gradient, rtol=1e-5, atol=1e-6)


def test_penalty_is_a_sum_and_not_a_mean():
    weights = {"a": torch.nn.Parameter(torch.full((3,), 2.0))}
    assert weighted_squared_distance(weights, {"a": torch.zeros(3)}) == 12.0


def test_penalty_names_the_tensor_of_another_model():
    with pytest.raises(ShapeError, match=r"Anchor of 'a' should be \[3, 4\], found nothing"):
        add_penalty_gradient(parameters(), Penalty(name="penalty", weight=1.0, anchor={}))


def test_running_mean_is_the_plain_mean():
    samples = [like(parameters(), seed) for seed in range(4)]
    average = None
    for count, sample in enumerate(samples):
        average = running_mean(average, sample, count)
    assert torch.allclose(average["a"], torch.stack([sample["a"] for sample in samples]).mean(0))


def test_interpolation_counts_the_second_share():
    mixed = interpolate({"a": torch.zeros(2)}, {"a": torch.ones(2)}, 0.2)
    assert mixed["a"].tolist() == pytest.approx([0.2, 0.2])
