"""What a denoising loop repeats is computed once, gives the same pictures, and never those of another batch."""

from collections import Counter

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from gift_generate.rendering.diffusers_renderer import DiffusersRenderer
from gift_generate.rendering.exact_savings import compute_text_once, feed_forward_in_pieces, first_layers_once
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.onednn import multiply_by_onednn
from gift_generate.rendering.renderer import RenderJob
from gift_mini.locations import stable_diffusion_folder

STEPS = 3
HEART_AND_LETTER = ("a picture of a heart.", "the letter Y.")
SUN_AND_TEXTURE = ("a picture of a sun.", "a radial texture.")


def renderer(**changes) -> DiffusersRenderer:
    return DiffusersRenderer(ModelOptions(**{"model": "mini", "device": "cpu", "batch_size": 2} | changes))


def jobs(captions: tuple[str, ...], guidance_scale: float = 7.5) -> list[RenderJob]:
    return [RenderJob(caption, 10 + number, guidance_scale, STEPS) for number, caption in enumerate(captions)]


def pixels(renderer: DiffusersRenderer, batch: list[RenderJob]) -> np.ndarray:
    return np.stack([rendered.pixels for rendered in renderer.render(batch)])


def products(action) -> Counter:
    """How often each operator ran on matrices of each shape."""
    with torch.profiler.profile(record_shapes=True) as profile:
        action()
    counts: Counter = Counter()
    for event in profile.key_averages(group_by_input_shape=True):
        if event.key in ("aten::mm", "aten::addmm"):
            counts[tuple(map(tuple, filter(None, event.input_shapes)))] += event.count
    return counts


def plain_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(stable_diffusion_folder(), subfolder="unet").eval()


@torch.inference_mode()
def test_the_same_values_in_every_bit_while_texts_stay_and_after_they_change() -> None:
    unet, plain = plain_unet(), plain_unet()
    compute_text_once(unet)
    texts = [torch.randn(4, 77, unet.config.cross_attention_dim) for _ in range(2)]
    for text, step in [(texts[0], 900), (texts[0], 500), (texts[1], 500), (texts[1][2:], 100), (texts[0], 100)]:
        latents = torch.randn(len(text), unet.config.in_channels, 8, 8)
        assert torch.equal(unet(latents, step, text).sample, plain(latents, step, text).sample)


@torch.inference_mode()
def test_keys_and_values_of_a_text_are_computed_at_its_first_step_alone() -> None:
    unet = plain_unet()
    compute_text_once(unet)
    width = unet.config.cross_attention_dim
    latents, text = torch.randn(4, unet.config.in_channels, 8, 8), torch.randn(4, 77, width)
    first, second = (products(lambda: unet(latents, 500, text)) for _ in range(2))
    of_text = {shapes for shapes in first if any(shape[0] == 4 * 77 for shape in shapes)}
    assert sum(first[shapes] for shapes in of_text) >= 2 * len([name for name in unet.attn_processors if "attn2" in name])
    assert not of_text & set(second)
    assert {shapes: count for shapes, count in first.items() if shapes not in of_text}.items() >= second.items()


@pytest.mark.parametrize("changes", [{}, {"guidance_until": 0.5}, {"feature_interval": 2}], ids=["exact", "guided less", "reused"])
def test_a_batch_has_the_same_pictures_whichever_batch_came_before(changes: dict) -> None:
    used = renderer(**changes)
    used.render(jobs(HEART_AND_LETTER))
    used.render(jobs(HEART_AND_LETTER, guidance_scale=1.0))
    assert np.array_equal(pixels(used, jobs(SUN_AND_TEXTURE)), pixels(renderer(**changes), jobs(SUN_AND_TEXTURE)))


class Guided:
    """What a pipeline tells of itself while it denoises."""

    def __init__(self, unet: UNet2DConditionModel, is_guided: bool) -> None:
        self.unet = unet
        self.do_classifier_free_guidance = is_guided


def small_unet(seed: int, **changes) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    shape = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**shape | changes).eval()


BUILDS = {
    "stable diffusion": {},
    "two layers a block": {"layers_per_block": 2, "transformer_layers_per_block": 2},
    "linear projections": {"use_linear_projection": True},
    "cross attention alone": {"only_cross_attention": True},
    "text in the time embedding": {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
    "no text in the first block": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "another kind of block": {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")},
}


@pytest.mark.parametrize("is_guided", [True, False], ids=["guided", "not guided"])
@pytest.mark.parametrize("is_fused", [True, False], ids=["joint keys and values", "apart"])
@pytest.mark.parametrize("is_by_onednn", [True, False], ids=["oneDNN", "MKL"])
@pytest.mark.parametrize("build", BUILDS)
@torch.inference_mode()
def test_every_saving_gives_the_values_of_a_plain_unet(
    build: str, is_by_onednn: bool, is_fused: bool, is_guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, plain = small_unet(0, **BUILDS[build]), small_unet(0, **BUILDS[build])
    if is_fused:  # as on a GPU
        unet.fuse_qkv_projections()
    if is_by_onednn:
        monkeypatch.setattr("gift_generate.rendering.onednn.FEWEST_PRODUCTS", 0)
        multiply_by_onednn(unet)
    compute_text_once(unet)
    feed_forward_in_pieces(unet)
    latents, text = torch.randn(3, 4, 8, 8), torch.randn(6, 7, 24)
    both = torch.cat([latents, latents]) if is_guided else torch.randn(6, 4, 8, 8)
    for step in (900, 100):
        with first_layers_once(Guided(unet, is_guided)):
            answer = unet(both, step, text).sample
        assert torch.allclose(answer, plain(both, step, text).sample, atol=1e-6)
    outside = unet(latents, 10, text[:3]).sample, plain(latents, 10, text[:3]).sample
    assert torch.allclose(*outside, atol=1e-6) if is_by_onednn else torch.equal(*outside), "outside it is a plain U-Net"


@torch.inference_mode()
def test_under_guidance_the_first_layers_see_half_the_batch_and_the_rest_all_of_it() -> None:
    unet = small_unet(0)
    block = unet.down_blocks[0]
    transformer = block.attentions[0].transformer_blocks[0]
    rows: dict[str, int] = {}
    watched = {
        "residual block": block.resnets[0].conv1,
        "self-attention": transformer.attn1.to_q,
        "cross-attention": transformer.attn2.to_q,
        "next block": unet.down_blocks[1].resnets[0],
    }
    for name, layer in watched.items():
        layer.register_forward_hook(lambda layer, tensors, answer, name=name: rows.update({name: len(tensors[0])}))
    latents = torch.randn(3, 4, 8, 8)
    with first_layers_once(Guided(unet, True)):
        unet(torch.cat([latents, latents]), 500, torch.randn(6, 7, 24))
    assert rows == {"residual block": 3, "self-attention": 3, "cross-attention": 6, "next block": 6}


@pytest.mark.parametrize("tokens", [1, 7, 64, 1000])
@torch.inference_mode()
def test_a_feed_forward_in_pieces_gives_each_token_the_same(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    unet, plain = small_unet(0), small_unet(0)
    feed_forward_in_pieces(unet)
    path = "mid_block.attentions.0.transformer_blocks.0.ff"
    layer = unet.get_submodule(path)
    pieces: list[int] = []
    layer.net[0].register_forward_hook(lambda layer, tensors, answer: pieces.append(len(tensors[0])))
    widest = layer.net[0].proj.out_features
    monkeypatch.setattr("gift_generate.rendering.exact_savings.PIECE_BYTES", 16 * widest * 4)
    values = torch.randn(3, tokens, 32)
    assert torch.allclose(layer(values), plain.get_submodule(path)(values), atol=1e-6)
    assert sum(pieces) == 3 * tokens
    assert max(pieces) <= 16


@pytest.mark.parametrize("is_favoured", [True, False])
def test_a_renderer_asks_onednn_where_the_processor_favours_it(monkeypatch: pytest.MonkeyPatch, is_favoured: bool) -> None:
    monkeypatch.setattr("gift_generate.rendering.diffusers_renderer.favours_onednn", lambda: is_favoured)
    used = renderer()
    with torch.profiler.profile() as profile:
        used.render(jobs(HEART_AND_LETTER * 8))
    assert any(event.key == "mkldnn::_linear_pointwise" for event in profile.key_averages()) is is_favoured


def test_a_renderer_on_a_cpu_uses_pieces() -> None:
    used = renderer()
    layer = next(module for module in used._pipeline.unet.modules() if type(module).__name__ == "FeedForward")
    largest: list[int] = []
    layer.net[0].register_forward_hook(lambda layer, tensors, answer: largest.append(answer.numel() * answer.element_size()))
    used.render(jobs(HEART_AND_LETTER * 8))
    assert max(largest) <= 2**20
