"""Stable Diffusion v1.5 with random weights, as a folder in diffusers format: its architecture decides the speed, not what it learned."""

from pathlib import Path
from typing import Any

UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # all else is the class's default
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
SAFETY_VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1,
    "set_alpha_to_one": False,
}  # fmt: skip


def save_random_sd15(folder: Path, *, has_safety_checker: bool = False) -> None:
    """860 million random weights of the U-Net, 84 of the VAE, 123 of the text encoder, in half precision: 2.1 GB.

    With a safety checker 304 million more, a ViT-L/14, which objects to what it likes.

    The tokenizer is the mini world's, with the context of 77 tokens: which words it knows makes no difference to the time.
    """
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from gift_mini.locations import stable_diffusion_folder

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        pipeline = StableDiffusionPipeline(
            unet=UNet2DConditionModel(**UNET),
            vae=AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
            tokenizer=CLIPTokenizer.from_pretrained(stable_diffusion_folder() / "tokenizer", model_max_length=77),
            scheduler=PNDMScheduler(**SCHEDULER),
            safety_checker=StableDiffusionSafetyChecker(CLIPConfig(vision_config=SAFETY_VISION)) if has_safety_checker else None,
            feature_extractor=CLIPImageProcessor() if has_safety_checker else None,
            requires_safety_checker=has_safety_checker,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    pipeline.save_pretrained(folder)
