"""Families of text-to-image checkpoints, and the steps and guidance that their model cards give. Facts only: no torch, no diffusers."""

from typing import NamedTuple

from gift_shared.errors import ConfigError, unknown_name


class ModelFamily(NamedTuple):
    """Denoising steps and guidance scale as the checkpoint's card has them, and a checkpoint whose card that is."""

    denoising_steps: int
    guidance_scale: float
    checkpoint: str


FAMILIES = {
    "sd-1": ModelFamily(50, 7.5, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "sd-2": ModelFamily(50, 7.5, "stabilityai/stable-diffusion-2-1"),
    "sd-turbo": ModelFamily(1, 0.0, "stabilityai/sd-turbo"),
    "sdxl": ModelFamily(50, 5.0, "stabilityai/stable-diffusion-xl-base-1.0"),
    "sdxl-turbo": ModelFamily(1, 0.0, "stabilityai/sdxl-turbo"),
    "lcm": ModelFamily(4, 8.0, "SimianLuo/LCM_Dreamshaper_v7"),
    "lcm-lora": ModelFamily(4, 1.0, "latent-consistency/lcm-lora-sdv1-5"),
    "sd-3": ModelFamily(28, 7.0, "stabilityai/stable-diffusion-3-medium-diffusers"),
    "sd-3.5-medium": ModelFamily(40, 4.5, "stabilityai/stable-diffusion-3.5-medium"),
    "sd-3.5-large": ModelFamily(28, 3.5, "stabilityai/stable-diffusion-3.5-large"),
    "sd-3.5-large-turbo": ModelFamily(4, 0.0, "stabilityai/stable-diffusion-3.5-large-turbo"),
    "flux-dev": ModelFamily(50, 3.5, "black-forest-labs/FLUX.1-dev"),
    "flux-schnell": ModelFamily(4, 0.0, "black-forest-labs/FLUX.1-schnell"),
    "pixart-alpha": ModelFamily(20, 4.5, "PixArt-alpha/PixArt-XL-2-1024-MS"),
    "pixart-sigma": ModelFamily(20, 4.5, "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"),
    "sana": ModelFamily(20, 4.5, "Efficient-Large-Model/Sana_1600M_1024px_diffusers"),
}


def model_family(name: str) -> ModelFamily:
    """Raises ConfigError with the nearest name for one that is not known."""
    if name not in FAMILIES:
        raise ConfigError("--model-family: " + unknown_name("model family", name, FAMILIES))
    return FAMILIES[name]
