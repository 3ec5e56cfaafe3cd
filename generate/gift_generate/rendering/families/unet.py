"""Stable Diffusion 1 and 2, their distillations, SDXL and latent consistency models: a U-Net that attends to CLIP's texts."""

from typing import Any, ClassVar

import torch

from gift_generate.rendering.families.base import Encoded, EncodingFamily, Size, size_of_latents


class StableDiffusion(EncodingFamily):
    """SD 1.x, SD 2.x (the scheduler knows of v-prediction) and SD-Turbo; a consistency model that takes guidance as a number too."""

    is_unet = True
    follows_authors = True
    guidance_tensors: ClassVar[tuple[str, ...] | None] = ("prompt_embeds",)
    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")

    @property
    def own_size(self) -> Size | None:
        """As the U-Net's configuration has it."""
        return size_of_latents(self.pipeline, self.pipeline.unet.config.sample_size)

    @property
    def reader(self) -> tuple[Any, int] | None:
        """CLIP's context."""
        return self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length

    def is_guided(self, guidance_scale: float) -> bool:
        """A U-Net that embeds the guidance scale beside the timestep is asked once a step."""
        return guidance_scale > 1 and self.pipeline.unet.config.time_cond_proj_dim is None

    def encode(self, text: str) -> Encoded:
        """The last hidden states [1, 77, D]."""
        return {"prompt_embeds": self.pipeline.encode_prompt(text, self.pipeline.device, 1, False)[0]}


class LatentConsistency(StableDiffusion):
    """A consistency model in its own pipeline, which knows no negative prompt."""

    follows_authors = False
    takes_negative_prompt = False
    guidance_tensors = None

    def is_guided(self, guidance_scale: float) -> bool:
        """Guidance is a number that the U-Net takes in."""
        return False


class StableDiffusionXL(StableDiffusion):
    """SDXL and SDXL-Turbo: hidden states of two text encoders, and the pooled text of the second beside the timestep."""

    follows_authors = False
    guidance_tensors = ("prompt_embeds", "add_text_embeds", "add_time_ids")
    needs = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae", "scheduler")

    def encode(self, text: str) -> Encoded:
        """Hidden states [1, 77, D] and pooled text [1, P]."""
        encoded = self.pipeline.encode_prompt(text, device=self.pipeline.device, do_classifier_free_guidance=False)
        return {"prompt_embeds": encoded[0], "pooled_prompt_embeds": encoded[2]}

    def encode_negative(self, text: str) -> Encoded:
        """Zeros for none, if the model was trained so."""
        encoded = self.encoded(text)
        if text or not self.pipeline.config.force_zeros_for_empty_prompt:
            return encoded
        return {name: torch.zeros_like(tensor) for name, tensor in encoded.items()}
