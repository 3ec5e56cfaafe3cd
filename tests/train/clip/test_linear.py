"""Matrix products by oneDNN: torch's own values and gradients, asked for where they are faster and the same."""

import pytest
import torch
import torch.nn.functional as F

from gift_train.clip import linear as products
from gift_train.clip.linear import linear


@pytest.fixture(autouse=True)
def onednn_from_the_smallest_product_on(monkeypatch):
    monkeypatch.setattr(products, "favours_onednn", lambda: True)
    monkeypatch.setattr(products, "FEWEST_PRODUCTS", 0)


@pytest.fixture
def calls(monkeypatch):
    """The shapes that oneDNN was asked to multiply."""
    asked, product = [], products._product

    def noted(rows, weight, bias=None):
        asked.append((tuple(rows.shape), tuple(weight.shape)))
        return product(rows, weight, bias)

    monkeypatch.setattr(products, "_product", noted)
    return asked


def inputs(*shape, has_bias=True):
    torch.manual_seed(0)
    rows, weight = torch.randn(*shape), torch.randn(40, shape[-1])
    bias = torch.randn(40) if has_bias else None
    return [None if one is None else one.requires_grad_() for one in (rows, weight, bias)]


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(24, 16), (3, 7, 16), (2, 3, 5, 16), (1, 16)])
def test_values_and_gradients_are_torchs_own(shape, has_bias):
    held = inputs(*shape, has_bias=has_bias)
    ours, plain = linear(*held), F.linear(*held)
    assert ours.shape == plain.shape
    assert torch.allclose(ours, plain, atol=1e-5)
    wanted = [one for one in held if one is not None]
    direction = torch.randn_like(plain)
    for one, other in zip(torch.autograd.grad(ours, wanted, direction), torch.autograd.grad(plain, wanted, direction), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_rows_that_are_a_view_of_others_are_read_as_they_are(calls):
    rows, weight, bias = inputs(6, 9, 16)
    assert torch.allclose(linear(rows[:, :1], weight, bias), F.linear(rows[:, :1], weight, bias), atol=1e-5)
    assert torch.allclose(linear(rows.transpose(0, 1), weight, bias), F.linear(rows.transpose(0, 1), weight, bias), atol=1e-5)
    assert len(calls) == 2


def test_what_needs_no_gradient_costs_no_product(calls):
    rows, weight, bias = inputs(24, 16)
    linear(rows.detach(), weight, bias).sum().backward()
    assert len(calls) == 2  # forward, and the weight's gradient
    linear(rows, weight.detach(), bias.detach()).sum().backward()
    assert len(calls) == 4


def test_small_products_other_types_and_autocast_are_left_to_torch(calls, monkeypatch):
    rows, weight, bias = inputs(24, 16)
    linear(rows.double(), weight.double(), bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(rows, weight, bias).dtype == torch.bfloat16
    monkeypatch.setattr(products, "FEWEST_PRODUCTS", 24 * 16 * 40 + 1)
    linear(rows, weight, bias)
    assert calls == []
