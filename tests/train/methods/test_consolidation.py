"""Fisher and penalties: against hand-worked numbers, and the closed form against autograd."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gift_shared.errors import ShapeError
from gift_train.clip import flat_tensors
from gift_train.clip.flat_tensors import CHUNK, FlatLayout, are_held, hold_flat, take_gradients
from gift_train.methods.consolidation import (
    FISHER_FLOOR,
    HeldFisher,
    Penalty,
    add_penalty_gradient,
    batch_fisher,
    interpolate,
    running_mean,
    weighted_squared_distance,
)
from gift_train.training.loop import add_penalty


def parameters(**shapes):
    torch.manual_seed(3)
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in (shapes or {"a": (3, 4), "b": (5,)}).items()}


def like(tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(tensor.shape, generator=generator) for name, tensor in tensors.items()}


def flat(tensors):
    return FlatLayout(tensors).gathered(list(tensors.values()))


def fisher_of(gradients):
    return batch_fisher(flat(gradients)).held().views


@pytest.fixture(params=[flat_tensors.CACHED_ENTRIES, 1], ids=["at once", "piece by piece"])
def pieces(monkeypatch, request):
    """All tensors at once, as on a GPU, or one after the other."""
    monkeypatch.setattr(flat_tensors, "CACHED_ENTRIES", request.param)


@pytest.mark.usefixtures("pieces")
def test_fisher_is_the_squared_gradient_over_its_mean_per_tensor():
    gradients = {"a": torch.zeros(3, 4), "b": torch.full((5,), 7.0), "long": torch.tensor([1.0, -3.0]).repeat(CHUNK)}
    gradients["a"][0, 0] = 2.0  # squares: one 4 among twelve entries, mean 1/3
    fisher = fisher_of(gradients)
    assert fisher["a"][0, 0] == pytest.approx(12.0)
    assert fisher["a"][1:].abs().max() == 0
    assert torch.allclose(fisher["b"], torch.ones(5))
    assert torch.allclose(fisher["long"], torch.tensor([0.2, 1.8]).repeat(CHUNK))


def test_fisher_does_not_change_when_the_loss_is_doubled():
    gradients = like(parameters(), 1)
    single, doubled = fisher_of(gradients), fisher_of({name: 2 * gradient for name, gradient in gradients.items()})
    assert all(torch.allclose(single[name], doubled[name]) for name in single)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("gradient", [None, torch.zeros(5)])
def test_tensor_that_the_replay_loss_does_not_reach_gets_the_floor(gradient):
    weights = parameters()
    weights["a"].grad, weights["b"].grad = torch.ones(3, 4), gradient
    fisher = batch_fisher(take_gradients(weights, FlatLayout(weights))).held().views
    assert torch.equal(fisher["b"], torch.full((5,), FISHER_FLOOR))
    assert torch.allclose(fisher["a"], torch.ones(3, 4))


def test_gradients_are_taken_as_they_are_and_reading_the_fisher_leaves_them():
    weights = parameters()
    for weight in weights.values():
        weight.grad = torch.full_like(weight, 3.0)
    taken = take_gradients(weights, FlatLayout(weights))
    batch_fisher(taken).held()
    assert all(torch.equal(gradient, torch.full_like(gradient, 3.0)) for gradient in taken.views.values())
    assert all(weight.grad is None for weight in weights.values())


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("fisher", ["none", "held", "batch"])
@pytest.mark.parametrize("has_gradient", [True, False])
def test_closed_form_gradient_equals_autograd(fisher, has_gradient):
    """That of the penalty is added to a loss's own, and to another's that was taken apart before if a Fisher is made of it."""
    weights, anchor = parameters(a=(3, 4), b=(5,), c=(CHUNK + 1,)), like(parameters(a=(3, 4), b=(5,), c=(CHUNK + 1,)), 1)
    replay = flat(like(weights, 2)) if fisher == "batch" else None
    made = {"none": None, "held": HeldFisher(flat(like(weights, 2))), "batch": replay and batch_fisher(replay)}[fisher]
    entries = {"none": None, "held": like(weights, 2), "batch": replay and batch_fisher(replay).held().views}[fisher]
    nothing = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    before, apart = like(weights, 4) if has_gradient else nothing, like(weights, 2) if replay else nothing
    expected_value = 0.7 * weighted_squared_distance(weights, anchor, entries)
    expected = torch.autograd.grad(expected_value, list(weights.values()))
    for name, weight in weights.items():
        weight.grad = before[name].clone() if has_gradient else None
    penalty = Penalty(name="penalty", weight=0.7, theta=hold_flat(weights), anchor=flat(anchor), fisher=made)
    value = add_penalty_gradient(weights, penalty, replay)
    assert value == pytest.approx(expected_value.item(), rel=1e-5)
    for (name, weight), gradient in zip(weights.items(), expected, strict=True):
        assert torch.allclose(weight.grad, before[name] + apart[name] + gradient, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_was_taken_apart_comes_back_without_a_penalty():
    weights = parameters()
    weights["a"].grad, weights["b"].grad = torch.ones(3, 4), torch.full((5,), 2.0)
    taken = take_gradients(weights, FlatLayout(weights))
    weights["a"].grad = torch.ones(3, 4)
    assert not add_penalty(weights, None, taken)
    assert torch.equal(weights["a"].grad, torch.full((3, 4), 2.0))
    assert torch.equal(weights["b"].grad, torch.full((5,), 2.0))


def test_held_weights_are_the_parameters_and_a_copy_is_not():
    weights = parameters()
    optimizer = torch.optim.SGD(weights.values(), lr=1.0)
    values = {name: weight.detach().clone() for name, weight in weights.items()}
    held = hold_flat(weights)
    kept = held.copy()
    assert all(torch.equal(weights[name], value) for name, value in values.items())
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert all(torch.equal(held.views[name], value - 1) for name, value in values.items())
    assert all(torch.equal(kept.views[name], value) for name, value in values.items())
    assert are_held(weights, held)
    weights["a"].data = weights["a"].detach().clone()
    assert not are_held(weights, held)


class Kernels(TorchDispatchMode):
    """Names of the operators that would start a kernel on a GPU: not those that make a view or reserve memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, returns = func.overloadpacket.__name__, func._schema.returns
        is_view = any(made.alias_info is not None and not made.alias_info.is_write for made in returns)
        if not is_view and name not in ("empty", "empty_like", "detach", "_unsafe_view"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_tensors", [3, 40])
def test_consolidation_asks_for_the_same_few_kernels_however_many_tensors_there_are(num_tensors):
    weights = parameters(**{f"weight {number}": (number + 1, 3) for number in range(num_tensors)})
    theta, anchor = hold_flat(weights), flat(like(weights, 1))
    for _ in range(2):  # the first time it also makes tables of the layout
        for name, gradient in like(weights, 2).items():
            weights[name].grad = gradient
        with Kernels() as kernels:
            replay = take_gradients(weights, theta.layout)
        for name, gradient in like(weights, 4).items():
            weights[name].grad = gradient
        with kernels:
            add_penalty(weights, Penalty(name="penalty", weight=1.0, theta=theta, anchor=anchor, fisher=batch_fisher(replay)), replay)
    assert kernels.names.count("_foreach_add_") == 1  # the sum of both losses' gradients, which there is without a penalty too
    assert len(kernels.names) == 18, kernels.names


def test_penalty_is_a_sum_and_not_a_mean():
    weights = {"a": torch.nn.Parameter(torch.full((3,), 2.0))}
    assert weighted_squared_distance(weights, {"a": torch.zeros(3)}) == 12.0


def test_penalty_names_the_tensor_of_another_model():
    weights = parameters()
    penalty = Penalty(name="penalty", weight=1.0, theta=flat(weights), anchor=flat({"c": torch.zeros(2)}))
    with pytest.raises(ShapeError, match=r"Anchor of 'a' should be \[3, 4\], found nothing"):
        add_penalty_gradient(weights, penalty)


def test_running_mean_is_the_plain_mean():
    samples = [like(parameters(), seed) for seed in range(4)]
    average = None
    for count, sample in enumerate(samples):
        average = running_mean(average, flat(sample), count)
    assert torch.allclose(average.views["a"], torch.stack([sample["a"] for sample in samples]).mean(0))


def test_interpolation_counts_the_second_share():
    mixed = interpolate({"a": torch.zeros(2)}, {"a": torch.ones(2)}, 0.2)
    assert mixed["a"].tolist() == pytest.approx([0.2, 0.2])
