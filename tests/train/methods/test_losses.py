"""The equations against numbers worked by hand and independent forms, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from gift_shared.errors import ShapeError
from gift_train.clip.zero_shot import similarity_logits
from gift_train.methods.losses import (
    alignment_target,
    feature_distance,
    image_text_alignment,
    row_distillation,
    task_cross_entropy,
    two_way_distillation,
)


def features(seed, rows, width=6):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def test_two_way_distillation_of_two_diagonals_is_the_number_worked_by_hand():
    # T = 2: teacher rows softmax(1, 0) = (.731059, .268941), student rows softmax(.5, 0); H = .608548 a row; 4 * 2 * H.
    loss = two_way_distillation(torch.eye(2), 2 * torch.eye(2), temperature=2.0)
    assert float(loss) == pytest.approx(4.868382, abs=1e-6)


def test_distillation_has_the_gradient_of_kl_from_teacher_to_student():
    student = (10 * features(0, 4) @ features(1, 4).T).requires_grad_()
    teacher = 10 * features(2, 4) @ features(3, 4).T
    (ours,) = torch.autograd.grad(row_distillation(student, teacher, temperature=2.0), student)
    divergence = F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="batchmean") * 4
    (theirs,) = torch.autograd.grad(divergence, student)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_distillation_gradient_vanishes_where_student_equals_teacher():
    student = (10 * features(0, 4) @ features(1, 4).T).requires_grad_()
    loss = two_way_distillation(student, student.detach(), temperature=2.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss > 0
    assert gradient.abs().max() < 1e-12


def test_two_way_distillation_sums_rows_and_columns_of_a_rectangle():
    student, teacher = features(0, 3) @ features(1, 5).T, features(2, 3) @ features(3, 5).T
    parts = row_distillation(student, teacher, temperature=2.0), row_distillation(student.T, teacher.T, temperature=2.0)
    assert two_way_distillation(student, teacher, temperature=2.0) == parts[0] + parts[1]


def test_equal_captions_share_the_alignment_target():
    target = alignment_target(torch.tensor([0, 1, 0]))
    assert target.tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]


def test_alignment_without_smoothing_is_clip_loss_when_captions_differ():
    logits = features(0, 4) @ features(1, 4).T
    loss = image_text_alignment(logits, alignment_target(torch.arange(4)).double(), label_smoothing=0.0)
    assert loss == pytest.approx(float(F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))))


def test_alignment_smooths_labels_by_hand():
    # B = 2, Z = 0: every log-probability is -log 2, whatever the smoothed target.
    loss = image_text_alignment(torch.zeros(2, 2), alignment_target(torch.tensor([0, 1])), label_smoothing=0.2)
    assert float(loss) == pytest.approx(2 * 0.693147, abs=1e-6)


def test_task_loss_smooths_over_all_classes():
    logits = torch.tensor([[2.0, 0.0]])
    log_probabilities = logits.log_softmax(1)[0]
    expected = -(0.9 * log_probabilities[0] + 0.1 * log_probabilities[1])  # (1 - .2) + .2 / 2 and .2 / 2
    assert task_cross_entropy(logits, torch.tensor([0]), label_smoothing=0.2) == pytest.approx(float(expected))


def test_feature_distance_is_a_mean_over_all_entries():
    assert feature_distance(torch.ones(2, 4), torch.zeros(2, 4)) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_text_alignment(torch.zeros(2, 3), torch.zeros(2, 3), label_smoothing=0.0), r"square matrix.*\[2, 3\]"),
        (lambda: row_distillation(torch.zeros(2, 3), torch.zeros(3, 2), temperature=2.0), r"one shape, found \[2, 3\] and \[3, 2\]"),
        (lambda: similarity_logits(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(())), r"found \[2, 3\] and \[2, 4\]"),
        (lambda: task_cross_entropy(torch.zeros(2, 3), torch.zeros(3), label_smoothing=0.0), r"labels \[B\], found \[2, 3\] and \[3\]"),
        (lambda: alignment_target(torch.zeros(2, 2)), r"caption ids \[B\], found \[2, 2\]"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ShapeError, match=message):
        call()
