"""The mean of the weights along a task, handed on in place of the last ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gift_train.clip.flat_tensors import FlatTensors
from gift_train.methods.consolidation import running_mean


class WeightAverage:
    """Mean of the weights a task began with and those after its steps 0, n, 2n ...; training itself goes on from the student's.

    ZSCL's weight ensemble (arXiv 2303.06628; METHODS 2.7), which GIFT's published code has as well and does not use.
    Nothing is kept between tasks: the next one begins its own.

    Args:
        every: n, in steps.
        theta: the student's weights, which move as it trains (`Backbone.flat_weights`).
        start: those the task begins with, which stay; read, not changed.
    """

    def __init__(self, every: int, theta: FlatTensors, start: FlatTensors) -> None:
        self.every = every
        self.theta = theta
        self.mean = start
        self.num_sampled = 0

    def after_step(self, step: int) -> None:
        """Take the weights in if it is their turn."""
        if step % self.every == 0:
            self.num_sampled += 1
            self.mean = running_mean(self.mean, self.theta, self.num_sampled)

    def state_dict(self) -> dict[str, Tensor]:
        """The mean so far, by `average/<name>`, and of how many weights beside the first."""
        state = {f"average/{name}": tensor for name, tensor in self.mean.views.items()}
        return state | {"num_sampled": torch.tensor(self.num_sampled)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave; other keys are passed over."""
        self.num_sampled = int(state["num_sampled"])
        self.mean = self.theta.layout.gathered([state[f"average/{name}"] for name in self.theta.layout.shapes])
