"""What a denoiser learns from an image: noise of a random strength is added to its latents, and it tells what was added."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch.nn.functional as F
from torch import Tensor

from gift_shared.errors import ConfigError

PREDICTIONS = ("epsilon", "v_prediction")


def training_schedule(scheduler: Any, model: str) -> Any:
    """The strengths of noise that the model was trained with, from the configuration of its solver. Raises ConfigError."""
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if "beta_start" not in scheduler.config or prediction not in PREDICTIONS:
        raise ConfigError(
            f"{model}: its {type(scheduler).__name__} predicts {prediction!r}; gift-generate adapt trains models that predict noise or "
            "velocity (epsilon, v_prediction) on a schedule of betas."
        )
    ddpm: Any = diffusers.DDPMScheduler
    return ddpm.from_config(scheduler.config)


def denoising_loss(predict: Callable[[Tensor, Tensor], Tensor], schedule: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """How far the prediction is from what was added.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,   L = mean (f(x_t, t) - y)^2,   y = e (epsilon) or sqrt(a_t) e - sqrt(1 - a_t) x_0 (v_prediction)

    Args:
        predict: noisy latents [B, C, h, w] and timesteps [B] -> prediction [B, C, h, w].
        latents, noise: [B, C, h, w], x_0 and e; float32.
        timesteps: [B], from 0 below the schedule's number of them; a_t is the product of 1 - beta up to t.
    Returns: scalar, mean over all elements, float32.
    Source: DDPM (arXiv 2006.11239, equation 14); velocity of progressive distillation (arXiv 2202.00512, appendix D).
    """
    noisy = schedule.add_noise(latents, noise, timesteps)
    is_velocity = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(latents, noise, timesteps) if is_velocity else noise
    return F.mse_loss(predict(noisy, timesteps).float(), target)
