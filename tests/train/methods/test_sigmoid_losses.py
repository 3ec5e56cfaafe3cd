"""The sigmoid losses: numbers worked by hand, those of a plain implementation (golden/sigmoid), and what GIFT and ZSCL make of them."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch

from gift_shared.errors import ConfigError, ShapeError
from gift_train.methods.contrastive import contrastive_loss
from gift_train.methods.losses import same_caption, sigmoid_alignment, sigmoid_distillation
from gift_train.methods.registry import method_class
from gift_train.parity.replay import VARIANTS
from gift_train.recipes.typed_table import parse_table

GOLDEN = Path(__file__).parents[2] / "golden/sigmoid"
PLAIN = runpy.run_path(str(GOLDEN / "plain.py"))
STORED = json.loads((GOLDEN / "golden.json").read_text())


class Student:
    """What the losses read of a model."""

    scale, bias = torch.tensor(PLAIN["SCALE"]), torch.tensor(PLAIN["BIAS"])


def inputs(dtype=torch.float64):
    return {name: torch.tensor(rows, dtype=dtype, requires_grad=True) for name, rows in STORED["inputs"].items()}


def losses(features):
    loss, ids = contrastive_loss("sigmoid"), torch.tensor(PLAIN["CAPTION_IDS"])
    student = loss.logits(features["images"], features["captions"], Student)
    teacher = loss.logits(features["teacher_images"], features["teacher_captions"], Student).detach()
    references = [loss.logits(features[name], features["references"].detach(), Student) for name in ("images", "teacher_images")]
    return {
        "distillation": loss.distillation(student, teacher, temperature=PLAIN["TEMPERATURE"]),
        "distillation_of_probabilities": loss.distillation(student, teacher, temperature=1.0),
        "distillation_on_references": loss.distillation(references[0], references[1].detach(), temperature=PLAIN["TEMPERATURE"]),
        "alignment": loss.alignment(student, ids, label_smoothing=0.2),
    }


def test_the_stored_numbers_are_those_of_the_plain_implementation():
    made = PLAIN["golden"]()
    assert made["losses"] == pytest.approx(STORED["losses"], rel=1e-12)
    assert made["inputs"] == STORED["inputs"]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_values_are_those_of_the_plain_implementation(dtype, bound):
    assert {name: value.item() for name, value in losses(inputs(dtype)).items()} == pytest.approx(STORED["losses"], rel=bound)


@pytest.mark.parametrize("name", STORED["losses"])
def test_gradients_are_those_of_the_plain_implementation(name):
    features = inputs()
    losses(features)[name].backward()
    # central differences of step 1e-6 leave an error of about 1e-9
    assert torch.allclose(features["images"].grad, torch.tensor(STORED["image_gradients"][name], dtype=torch.float64), atol=1e-7)
    if name in STORED["caption_gradients"]:
        assert torch.allclose(features["captions"].grad, torch.tensor(STORED["caption_gradients"][name], dtype=torch.float64), atol=1e-7)
    assert features["teacher_images"].grad is None


def test_distillation_of_even_pairs_by_hand():
    # every pair a fair coin for both: T^2 / B * B N log 2 = 4 * 3 log 2
    assert float(sigmoid_distillation(torch.zeros(2, 3), torch.zeros(2, 3), temperature=2.0)) == pytest.approx(12 * math.log(2))


def test_the_distillation_gradient_is_that_of_kl_and_vanishes_where_student_equals_teacher():
    student = torch.linspace(-4, 3, 12, dtype=torch.float64).view(3, 4).requires_grad_()
    teacher = student.detach().flip(1)
    (gradient,) = torch.autograd.grad(sigmoid_distillation(student, teacher, temperature=2.0), student)
    assert torch.allclose(gradient, 2 / 3 * ((student / 2).sigmoid() - (teacher / 2).sigmoid()).detach(), atol=1e-12)
    at_teacher = sigmoid_distillation(student, student.detach(), temperature=2.0)
    assert at_teacher > 0
    assert torch.autograd.grad(at_teacher, student)[0].abs().max() < 1e-12


def test_alignment_by_hand():
    # images 0 and 2 share a caption: 5 of the 9 pairs belong together; Z = log 3 gives sigma 3/4 for them, 1/4 for the other 4
    logits, is_pair = torch.full((3, 3), math.log(3)), same_caption(torch.tensor([0, 1, 0]))
    assert is_pair.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert float(sigmoid_alignment(logits, is_pair)) == pytest.approx(-(5 * math.log(0.75) + 4 * math.log(0.25)) / 3)


def test_a_large_logit_is_no_infinity():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]])
    assert float(sigmoid_alignment(logits, torch.eye(2))) == pytest.approx(0.0)
    assert float(sigmoid_alignment(-logits, torch.eye(2))) == pytest.approx(400.0)


def test_softmax_does_not_see_a_bias():
    features, loss, ids = inputs(), contrastive_loss("softmax"), torch.tensor(PLAIN["CAPTION_IDS"])

    def terms(bias):
        student, teacher = (loss.logits(features[f"{who}images"], features[f"{who}captions"], Student) + bias for who in ("", "teacher_"))
        return loss.distillation(student, teacher, temperature=2.0), loss.alignment(student.float(), ids, label_smoothing=0.2)

    for without, moved in zip(terms(0.0), terms(Student.bias), strict=True):
        assert torch.allclose(without, moved, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sigmoid_distillation(torch.zeros(2, 3), torch.zeros(3, 2), temperature=1.0),
        lambda: sigmoid_alignment(torch.zeros(2, 3), torch.zeros(2, 3)),
        lambda: same_caption(torch.zeros(2, 2)),
    ],
)
def test_wrong_shapes_are_named(call):
    with pytest.raises(ShapeError, match="Expected"):
        call()


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("gift", {"distill_weight": 0.0, "alignment_weight": 0.0}),
        ("gift", {"distillation": "feature-distance", "alignment_weight": 0.0}),
        ("zscl", {"distill_weight": 0.0}),
    ],
)
def test_a_loss_that_no_term_reads_is_refused(method, changes):
    table = VARIANTS["gift_without_awc" if method == "gift" else method][1] | changes | {"contrastive_loss": "sigmoid"}
    with pytest.raises(ConfigError, match="read by no term"):
        parse_table(method_class(method).Config, table, "recipe")
