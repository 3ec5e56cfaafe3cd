"""Tiny checkpoints of every family, of diffusers' and transformers' own classes with random weights, saved once a session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from gift_mini.locations import stable_diffusion_folder

TEXT_WIDTH = 24
SIDE = 8  # of the latents


def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(Path(stable_diffusion_folder()) / "tokenizer")


def word_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    """A word a token, in the manner of T5: padding first, an end token behind."""
    words = ["a", "picture", "of", "the", "letter", "sun", "heart", "Y", "texture", "radial", "red", "blue", "dog", "cat"]
    vocabulary = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", "<bos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<bos>", model_max_length=limit
    )


def clip_encoder(*, projection: int | None = None, width: int = TEXT_WIDTH) -> Any:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=projection or width,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5_encoder(width: int = TEXT_WIDTH) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": SIDE, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 4,
            "cross_attention_dim": TEXT_WIDTH, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        } | changes
    )  # fmt: skip


def vae(channels: int = 4, **changes: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        **{
            "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
            "latent_channels": channels, "norm_num_groups": 4, "sample_size": 16,
        } | changes
    )  # fmt: skip


def tiny_decoder() -> diffusers.AutoencoderTiny:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)
    )


SD_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def stable_diffusion(scheduler: Any = None, decoder: Any = None, pipeline: Any = diffusers.StableDiffusionPipeline, **changes: Any) -> Any:
    return pipeline(
        vae=decoder or vae(), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), unet=unet(**changes),
        scheduler=scheduler or diffusers.PNDMScheduler(**SD_NOISE, skip_prk_steps=True, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(scheduler: Any = None) -> Any:
    text = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 16}
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip_encoder(), text_encoder_2=clip_encoder(projection=16), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=unet(cross_attention_dim=2 * TEXT_WIDTH, use_linear_projection=True, **text, **blocks),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(**SD_NOISE, timestep_spacing="leading", steps_offset=1),
    )  # fmt: skip


def sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4, out_channels=4,
        joint_attention_dim=2 * TEXT_WIDTH, caption_projection_dim=32, pooled_projection_dim=32, pos_embed_max_size=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_encoder(projection=16), text_encoder_2=clip_encoder(projection=16), text_encoder_3=t5_encoder(2 * TEXT_WIDTH),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), tokenizer_3=word_tokenizer(512),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux(*, has_guidance: bool = True) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=TEXT_WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=has_guidance,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, vae=vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_encoder(), text_encoder_2=t5_encoder(), tokenizer=clip_tokenizer(), tokenizer_2=word_tokenizer(512),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=has_guidance),
    )  # fmt: skip


def pixart(pipeline: Any = diffusers.PixArtSigmaPipeline) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=SIDE, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=TEXT_WIDTH,
        in_channels=4, cross_attention_dim=24, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    return pipeline(
        transformer=transformer, vae=vae(), text_encoder=t5_encoder(), tokenizer=word_tokenizer(512),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip


def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4, num_cross_attention_heads=2,
        cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=SIDE,
    )  # fmt: skip
    decoder = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1], downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    language_model = Gemma2Model(
        Gemma2Config(
            vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            head_dim=4, max_position_embeddings=64, bos_token_id=3, eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip
    return diffusers.SanaPipeline(
        transformer=transformer, vae=decoder, text_encoder=language_model, tokenizer=word_tokenizer(512),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip


def lcm() -> Any:
    return diffusers.LatentConsistencyModelPipeline(
        vae=vae(), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), unet=unet(time_cond_proj_dim=16),
        scheduler=diffusers.LCMScheduler(**SD_NOISE), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def aura_flow() -> Any:
    """A pipeline that no family of ours knows: asked by its public call."""
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=SIDE, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=TEXT_WIDTH, pos_embed_max_size=64,
    )  # fmt: skip
    torch.nn.init.normal_(transformer.context_embedder.weight)  # else a text changes less than one level of a pixel
    text = UMT5Config(vocab_size=32, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return diffusers.AuraFlowPipeline(
        transformer=transformer, vae=vae(), text_encoder=UMT5EncoderModel(text), tokenizer=word_tokenizer(512),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


TURBO = {"timestep_spacing": "trailing"}
V_PREDICTION = {"prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False}
BUILDERS: dict[str, Callable[[], Any]] = {
    "sd": stable_diffusion,
    "sd-v": lambda: stable_diffusion(diffusers.DDIMScheduler(**SD_NOISE, **V_PREDICTION), use_linear_projection=True),
    "sd-turbo": lambda: stable_diffusion(diffusers.EulerDiscreteScheduler(**SD_NOISE, **TURBO)),
    "sd-taesd": lambda: stable_diffusion(decoder=tiny_decoder()),
    "sdxl": sdxl,
    "sdxl-turbo": lambda: sdxl(diffusers.EulerAncestralDiscreteScheduler(**SD_NOISE, **TURBO)),
    "lcm-as-sd": lambda: stable_diffusion(diffusers.LCMScheduler(**SD_NOISE), time_cond_proj_dim=16),
    "lcm": lcm,
    "sd3": sd3,
    "flux-dev": flux,
    "flux-schnell": lambda: flux(has_guidance=False),
    "pixart": pixart,
    "sana": sana,
    "other": aura_flow,
}


RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op", "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv", "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1", "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
VAE = {
    "encoder.down_blocks.0.resnets.0": "encoder.down.0.block.0", "encoder.down_blocks.0.downsamplers.0": "encoder.down.0.downsample",
    "encoder.down_blocks.1.resnets.0": "encoder.down.1.block.0", "decoder.up_blocks.0.resnets": "decoder.up.1.block",
    "decoder.up_blocks.0.upsamplers.0": "decoder.up.1.upsample", "decoder.up_blocks.1.resnets": "decoder.up.0.block",
    **{f"{side}.mid_block.{ours}": f"{side}.mid.{theirs}" for side in ("encoder", "decoder") for ours, theirs in (
        ("resnets.0", "block_1"), ("resnets.1", "block_2"), ("attentions.0", "attn_1"),
    )},
}  # fmt: skip
VAE_ENDINGS = {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
               "to_out.0": "proj_out"}  # fmt: skip


def named_as_in_one_file(pipeline: Any) -> dict[str, torch.Tensor]:
    """The weights of the tiny Stable Diffusion under the names of the original code, as single files have them."""
    named = {}
    for name, tensor in pipeline.unet.state_dict().items():
        ours = max((prefix for prefix in UNET if name.startswith(f"{prefix}.")), key=len)
        rest = name[len(ours) + 1 :]
        if "resnets" in ours:
            layer, _, kind = rest.rpartition(".")
            rest = f"{RESNET[layer]}.{kind}"
        named[f"model.diffusion_model.{UNET[ours]}.{rest}"] = tensor
    for name, tensor in pipeline.vae.state_dict().items():
        for table in (VAE, VAE_ENDINGS):
            for ours, theirs in table.items():
                name = name.replace(f"{ours}.", f"{theirs}.")
        is_convolution = "attn_1" in name and tensor.ndim == 2
        named[f"first_stage_model.{name}"] = tensor[:, :, None, None] if is_convolution else tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        named[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.contiguous() for name, tensor in named.items()}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_checkpoint("sdxl")` is the folder of a tiny SDXL; copied, never changed."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(kind: str) -> Path:
        path = root / kind
        if not path.is_dir():
            torch.manual_seed(7)
            BUILDERS[kind]().save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="session")
def one_file() -> Callable[[Any], dict[str, torch.Tensor]]:
    """`one_file(pipeline)`: what `named_as_in_one_file` says."""
    return named_as_in_one_file
