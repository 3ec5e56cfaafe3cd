"""Zero-shot: the pretrained model, evaluated and never trained."""

from gift_train.methods.base import Method
from gift_train.methods.registry import register


@register("zero_shot")
class ZeroShot(Method):
    """theta_0 on every dataset (METHODS 2.1). Departures: none."""

    summary = "The pretrained CLIP, never trained: every row of its matrix is the same."
    trains = False
