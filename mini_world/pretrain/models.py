"""The mini models' architectures, and how they are written to and read from disk.

All sizes are here. They were chosen for two CPU cores: each model trains within about an hour at one thread a process, and all
weights together stay below 20 MB in half precision.
"""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from vocabulary import CONTEXT_LENGTH, MERGES_FILE, Vocabulary

LATENT_CHANNELS = 8
TEXT_WIDTH = 128


def clip_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """open_clip's config file. `bpe_path` is relative to the folder; who loads it resolves it."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 32, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": vocabulary.size,
                "width": TEXT_WIDTH,
                "heads": 4,
                "layers": 3,
                "tokenizer_kwargs": {"bpe_path": MERGES_FILE},
            },
        },
        "preprocess_cfg": {"mean": [0.6, 0.55, 0.55], "std": [0.32, 0.32, 0.32], "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def build_clip(config: dict[str, Any]) -> nn.Module:
    from open_clip.model import CLIP

    return CLIP(**config["model_cfg"])


def build_vae() -> nn.Module:
    """Factor 4: 32 x 32 x 3 to 8 x 8 x 8. One norm group and zero-initialised second convolutions make small networks train fast."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[16, 32, 64],
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=32,
        mid_block_add_attention=False,
    )
    _zero_second_convolutions(vae)
    return vae


def build_unet() -> nn.Module:
    """A UNet for 8 x 8 latents.

    `addition_embed_type="text"` adds the pooled caption to the time embedding, so every block hears the class
    from the first step on; cross-attention at the finest level and in the middle brings the words.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=[96, 128],
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=[4, 4],  # diffusers' name for the number of heads
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    _zero_second_convolutions(unet)
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def _zero_second_convolutions(model: nn.Module) -> None:
    """Residual blocks start as the identity."""
    from diffusers.models.resnet import ResnetBlock2D

    for block in model.modules():
        if isinstance(block, ResnetBlock2D):
            nn.init.zeros_(block.conv2.weight)


def build_text_encoder(vocabulary: Vocabulary) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary.size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=vocabulary.size - 2,
            eos_token_id=vocabulary.size - 1,
            pad_token_id=vocabulary.size - 1,
        )
    )


SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""SD v1.5's PNDM with two changes: at 8 x 8 latents a cosine schedule wastes fewer steps on pure noise, and velocity is learned
faster than noise."""


def alphas_cumprod() -> Tensor:
    from diffusers import PNDMScheduler

    return PNDMScheduler(**SCHEDULER).alphas_cumprod


class Painter(nn.Module):
    """UNet and text encoder: the two parts of the mini Stable Diffusion that learn together."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(vocabulary)
        self.unet = build_unet()

    def forward(self, latents: Tensor, timesteps: Tensor, token_ids: Tensor, caption_of: Tensor) -> Tensor:
        """latents [B, C, 8, 8], timesteps [B], token_ids [K, L] distinct captions, caption_of [B] rows of them -> velocity."""
        states = self.text_encoder(token_ids).last_hidden_state[caption_of]
        return self.unet(latents, timesteps, states).sample


def save_clip(clip: nn.Module, config: dict[str, Any], vocabulary: Vocabulary, folder: Path) -> None:
    from safetensors.torch import save_file

    with _whole(folder) as draft:
        (draft / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        vocabulary.write_open_clip(draft / MERGES_FILE)
        save_file(_half(clip), draft / "open_clip_model.safetensors")


def load_clip(folder: Path) -> nn.Module:
    from safetensors.torch import load_file

    clip = build_clip(json.loads((folder / "open_clip_config.json").read_text()))
    clip.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "open_clip_model.safetensors").items()})
    return clip.eval()


def save_stable_diffusion(painter: Painter, vae: nn.Module, vocabulary: Vocabulary, folder: Path) -> None:
    """The folder that StableDiffusionPipeline.from_pretrained reads."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    with _whole(folder) as draft:
        tokenizer = vocabulary.transformers_tokenizer(draft / "tokenizer")
        pipeline = StableDiffusionPipeline(
            vae=deepcopy(vae).half(),
            text_encoder=deepcopy(painter.text_encoder).half(),
            tokenizer=tokenizer,
            unet=deepcopy(painter.unet).half(),
            scheduler=PNDMScheduler(**SCHEDULER),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(draft, safe_serialization=True)
        vocabulary.transformers_tokenizer(draft / "tokenizer")


def _half(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}


class _whole:
    """A folder that appears under its name only when everything is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.draft = folder, folder.with_name(f".{folder.name}.partial")

    def __enter__(self) -> Path:
        shutil.rmtree(self.draft, ignore_errors=True)
        self.draft.mkdir(parents=True)
        return self.draft

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            for file in self.draft.rglob("*.safetensors"):
                file.chmod(0o644)  # safetensors writes for the owner alone
            shutil.rmtree(self.folder, ignore_errors=True)
            self.draft.rename(self.folder)
