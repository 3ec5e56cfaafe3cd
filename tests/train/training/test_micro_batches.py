"""A step in micro-batches, and with recomputed blocks, is the step of the whole batch: terms, gradients, weights, what a method keeps.

In float64, so that the bound leaves room for the order of sums and for nothing else.
"""

import itertools
import runpy
from pathlib import Path

import pytest
import torch

from gift_train.distributed import SINGLE
from gift_train.training.loop import train_steps

DEFINED = runpy.run_path(str(Path(__file__).parents[1] / "distributed/program.py"))
BOUND = 1e-10
STEPS = 2
SAVINGS = {
    "micro-batches of 1": (1, False),
    "micro-batches of 3": (3, False),
    "micro-batches of 7, the whole batch": (7, False),
    "recomputed blocks": (None, True),
    "both": (2, True),
}
FOR_ALL = ("micro-batches of 3", "both")  # the other ways are slow tests, but for these methods
ALL_WAYS = ("gift", "moe_adapter_balanced")


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """And so few tokens in a row that a handful of texts are several."""
    monkeypatch.setattr("gift_train.clip.prefix_tree.LONGEST_ROW", 8)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def steps(variant, micro_batch_size=None, recomputes_blocks=False):
    """Of every step its terms and gradients; then the weights, the method's state, and what the generator gives next."""
    training = DEFINED["begin"](variant, SINGLE, micro_batch_size, recomputes_blocks=recomputes_blocks)
    found = {}
    for (step, terms), _ in zip(train_steps(training, DEFINED["batches"](training)), range(STEPS), strict=False):
        found |= {f"{step}/term {name}": term for name, term in terms.items()}
        found |= {f"{step}/gradient of {name}": p.grad.clone() for name, p in training.parameters.items() if p.grad is not None}
    found |= {f"weights/{name}": tensor for name, tensor in training.student.weights_copy().items()}
    found |= {f"state/{name}": tensor for name, tensor in training.method.state_dict().items()}
    return found | {"drawn next": torch.rand(3)}


@pytest.fixture(scope="module")
def whole():
    """A function: variant -> what the whole batch at once gives."""
    found = {}
    return lambda variant: found[variant] if variant in found else found.setdefault(variant, steps(variant))


@pytest.mark.parametrize(
    ("variant", "saving"),
    [
        pytest.param(variant, saving, marks=() if variant in ALL_WAYS or saving in FOR_ALL else pytest.mark.slow)
        for variant, saving in itertools.product(DEFINED["METHODS"], SAVINGS)
    ],
)
def test_a_step_is_that_of_the_whole_batch(whole, variant, saving):
    expected, found = whole(variant), steps(variant, *SAVINGS[saving])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.dtype == torch.long:
            assert torch.equal(found[name], tensor), name
        else:
            assert (trained(name, found[name]) - trained(name, tensor)).abs().max() < BOUND, name


def trained(name, tensor):
    """All but the key's bias, which softmax ignores: its gradient is rounding, which AdamW blows up to full steps."""
    width = DEFINED["WIDTH"]
    return torch.cat([tensor[:width], tensor[2 * width :]]) if name.endswith("attn.in_proj_bias") else tensor
