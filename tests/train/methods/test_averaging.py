"""What a task hands on where weights are averaged: the plain mean of those it began with and of those after every n-th step."""

import open_clip
import torch

from gift_train.clip.model import Backbone
from gift_train.methods.averaging import WeightAverage


def tiny():
    vision, text = (
        open_clip.CLIPVisionCfg(layers=1, width=64, image_size=16, patch_size=8),
        open_clip.CLIPTextCfg(context_length=8, vocab_size=20, width=64, heads=1, layers=1),
    )
    return Backbone(open_clip.CLIP(16, vision, text), None)


def fill(student, value):
    student.load_weights({name: torch.full_like(weight, value) for name, weight in student.weights().items()})


def values(average):
    return {float(value) for weight in average.mean.views.values() for value in weight.unique()}


def averaged(student, every):
    theta = student.flat_weights()
    return WeightAverage(every, theta, theta.copy())


def test_the_mean_takes_in_the_start_and_every_nth_step():
    student = tiny()
    fill(student, 1.0)
    average = averaged(student, 2)
    for step, value in enumerate((3.0, 100.0, 8.0)):
        fill(student, value)
        average.after_step(step)
    assert values(average) == {4.0}  # of 1, 3 and 8


def test_it_goes_on_from_what_it_saved():
    student = tiny()
    fill(student, 1.0)
    first = averaged(student, 1)
    fill(student, 3.0)
    first.after_step(0)
    resumed = averaged(student, 1)
    resumed.load_state_dict(first.state_dict() | {"fisher/x": torch.ones(1)})
    fill(student, 8.0)
    resumed.after_step(1)
    assert values(resumed) == {4.0}
