"""Continual finetuning: one task after the other, nothing held."""

from gift_train.methods.base import Method
from gift_train.methods.registry import register


@register("finetune")
class ContinualFinetune(Method):
    """L = L_task from the weights of the previous task (METHODS 2.2). Departures: none."""

    summary = "Cross-entropy on each task in turn; the lower bound that forgets."
