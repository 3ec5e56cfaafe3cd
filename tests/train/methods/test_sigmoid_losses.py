"""The sigmoid losses: numbers worked by hand, those of a plain implementation (golden/sigmoid), and what GIFT and ZSCL make of them."""

import json
import math
import runpy
from pathlib import Path

import open_clip
import pytest
import torch

from gift_shared.errors import ConfigError, ShapeError
from gift_train.clip.model import Backbone
from gift_train.data.replay import ReplayBatch
from gift_train.methods.base import TaskContext
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
        "alignment": loss.alignment(student, loss.target(ids), label_smoothing=0.2),
    }


def test_the_stored_numbers_are_those_of_the_plain_implementation():
    made = PLAIN["golden"]()
    assert made["losses"] == pytest.approx(STORED["losses"], rel=1e-12)
    for name, rows in STORED["inputs"].items():
        assert torch.allclose(torch.tensor(made["inputs"][name]), torch.tensor(rows), atol=1e-12), name


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
        alignment = loss.alignment(student.float(), loss.target(ids), label_smoothing=0.2)
        return loss.distillation(student, teacher, temperature=2.0), alignment

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


def small_siglip(bias=PLAIN["BIAS"]):
    torch.manual_seed(3)
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=32, layers=1, head_width=16)
    text = open_clip.CLIPTextCfg(context_length=10, vocab_size=50, width=32, heads=2, layers=1)
    network = open_clip.CLIP(16, vision, text, init_logit_scale=math.log(PLAIN["SCALE"]), init_logit_bias=bias)
    return Backbone(network.eval(), None)


def tokens(count):
    rows = torch.randint(1, 40, (count, 6), generator=torch.Generator().manual_seed(count))
    rows[:, 0], rows[:, -1] = 48, 49
    return rows


def batch():
    ids = torch.tensor(PLAIN["CAPTION_IDS"])
    names = tuple(map(str, range(len(ids))))
    images = torch.randn(len(ids), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return ReplayBatch(images=images, captions=names, tokens=tokens(3)[ids], caption_ids=ids, sample_keys=names)


def begun(name, changes):
    """A method by sigmoid whose student has moved from its teacher, and the features of both: images, captions, reference texts."""
    method = method_class(name)(
        parse_table(method_class(name).Config, VARIANTS[name][1] | {"contrastive_loss": "sigmoid"} | changes, "test")
    )
    student = small_siglip()
    context = TaskContext(
        task_name="task",
        task_index=0,
        num_steps=1,
        label_smoothing=0.2,
        class_tokens=tokens(4),
        reference_tokens=tokens(PLAIN["NUM_TEXTS"]),
        initial_weights=student.weights_copy(),
        replay_pass=None,
        task_images=lambda _: iter(()),
    )
    method.check_model(student)
    method.begin_task(context, student)
    teacher = student.frozen_copy()
    with torch.no_grad():
        for weight in student.parameters().values():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
        found = {
            who: [
                features.double().numpy()
                for features in (
                    model.encode_images(batch().images),
                    model.encode_texts(batch().tokens),
                    model.encode_texts(context.reference_tokens),
                )
            ]
            for who, model in (("student", student), ("teacher", teacher))
        }
    return method, student, found


@pytest.mark.parametrize("distillation", ["contrastive", "image-only", "text-only"])
def test_gift_by_sigmoid_is_the_plain_sum_over_the_pairs_of_its_batch(distillation):
    method, student, found = begun("gift", {"distillation": distillation, "distill_weight": 3.0, "alignment_weight": 0.25})
    images = found["teacher" if distillation == "text-only" else "student"][0]
    captions = found["teacher" if distillation == "image-only" else "student"][1]
    terms = method.replay_loss(student, batch())
    expected = 3 * PLAIN["distillation"](images, captions, *found["teacher"][:2], temperature=2.0)
    assert terms["distillation"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["alignment"].item() == pytest.approx(PLAIN["alignment"](images, captions, PLAIN["CAPTION_IDS"]) / 4, rel=1e-5)
    sum(terms.values()).backward()
    assert student.network.logit_bias.grad is None
    assert (student.network.visual.conv1.weight.grad is None) == (distillation == "text-only")


def test_zscl_by_sigmoid_is_the_plain_sum_over_all_reference_texts():
    method, student, found = begun("zscl", {"distill_weight": 2.0})
    images, _, _ = found["student"]
    teacher_images, _, references = found["teacher"]
    terms = method.replay_loss(student, batch())
    expected = 2 * PLAIN["distillation"](images, references, teacher_images, references, temperature=2.0)
    assert terms["distillation"].item() == pytest.approx(expected, rel=1e-5)
