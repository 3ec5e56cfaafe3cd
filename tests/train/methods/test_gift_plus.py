"""GIFT+: its own term by the plain formula, with both towers as they are; all else is GIFT's, held to published numbers elsewhere."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

from gift_shared.errors import ConfigError
from gift_train.clip.model import Backbone
from gift_train.data.batches import TaskBatch
from gift_train.methods.base import TaskContext
from gift_train.methods.gift import Gift
from gift_train.methods.gift_plus import GiftPlus

GIFT = {
    "distillation": "contrastive",
    "distill_weight": 3.0,
    "temperature": 2.0,
    "teacher": "last",
    "alignment_weight": 0.25,
    "weight_consolidation": "adaptive",
    "consolidation_weight": 0.1,
}


def small_clip() -> Backbone:
    torch.manual_seed(3)
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=32, layers=2, head_width=16)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=2, layers=2)
    return Backbone(open_clip.CLIP(16, vision, text, init_logit_bias=-3.0).eval(), None)


def texts(count: int, seed: int) -> torch.Tensor:
    tokens = torch.randint(1, 40, (count, 6), generator=torch.Generator().manual_seed(seed))
    tokens[:, -1] = 49
    return tokens


def context() -> TaskContext:
    return TaskContext(
        task_name="colours",
        task_index=1,
        num_steps=4,
        label_smoothing=0.2,
        class_tokens=texts(5, 0),
        reference_tokens=texts(9, 1),
        initial_weights={},
        replay_pass=None,
        task_images=lambda _: iter(()),
    )


def moved(student: Backbone) -> None:
    """As if it had learned since its task began."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in student.parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_the_tasks_images_are_held_to_the_texts_as_they_were(form: str) -> None:
    student, before = small_clip(), small_clip().network
    method = GiftPlus(GiftPlus.Config(**GIFT | {"contrastive_loss": form, "task_distill_weight": 1.5}))
    method.begin_task(context(), student)
    moved(student)
    batch = TaskBatch(images=torch.randn(6, 3, 16, 16), labels=torch.arange(6) % 5)
    terms = method.task_loss(student, batch).detached()

    with torch.no_grad():
        known = F.normalize(before.encode_text(F.pad(texts(9, 1), (0, 2))), dim=1)
        scale, bias = before.logit_scale.exp(), before.logit_bias
        wanted = scale * F.normalize(before.encode_image(batch.images), dim=1) @ known.T
        found = scale * F.normalize(student.network.encode_image(batch.images), dim=1) @ known.T
    if form == "softmax":
        expected = -4.0 * ((wanted / 2).softmax(dim=1) * (found / 2).log_softmax(dim=1)).sum(dim=1).mean()
    else:
        target, logits = ((wanted + bias) / 2).sigmoid(), (found + bias) / 2
        expected = -4.0 * (target * F.logsigmoid(logits) + (1 - target) * F.logsigmoid(-logits)).sum(dim=1).mean()
    assert float(terms["task_distillation"]) == pytest.approx(1.5 * float(expected), rel=1e-5)

    gift = Gift(Gift.Config(**GIFT))
    gift.begin_task(context(), student)
    assert float(terms["cross_entropy"]) == pytest.approx(float(gift.task_loss(student, batch).detached()["cross_entropy"]), rel=1e-6)


def test_at_the_start_of_a_task_the_term_pulls_nowhere() -> None:
    student = small_clip()
    method = GiftPlus(GiftPlus.Config(**GIFT, task_distill_weight=1.0))
    method.begin_task(context(), student)
    terms = method.task_loss(student, TaskBatch(images=torch.randn(6, 3, 16, 16), labels=torch.arange(6) % 5))
    terms["task_distillation"].backward()
    assert max(float(p.grad.abs().max()) for p in student.parameters().values() if p.grad is not None) < 1e-6
    assert float(terms["task_distillation"].detach()) > 0


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_that_holds_nothing_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="Without it this is gift"):
        GiftPlus.Config(**GIFT, task_distill_weight=weight)
