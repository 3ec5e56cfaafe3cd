"""What torch and diffusers do not promise to keep, each behind one module of ours: a test that fails here says which one to mend."""

import inspect

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from gift_generate.rendering.approximations import guidance_ends
from gift_generate.rendering.compilation import deterministic_options
from gift_generate.rendering.onednn import has_onednn, product
from gift_mini.locations import stable_diffusion_folder

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def moved(what: str, module: str) -> str:
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    return f"{what} is not what it was ({versions}): mend gift_generate/rendering/{module}.py, which alone relies on it"


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """Built as Stable Diffusion's: the first block attends to texts, the last one too."""
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), norm_num_groups=8, cross_attention_dim=24, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("has_bias", [True, False])
def test_torch_has_the_operator_of_onednn(has_bias: bool) -> None:
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise"), moved("torch.ops.mkldnn._linear_pointwise", "onednn")
    random = torch.Generator().manual_seed(1)
    rows, weight, bias = (torch.randn(*shape, generator=random) for shape in ((64, 48), (32, 48), (32,)))
    expected = F.linear(rows, weight, bias if has_bias else None)
    found = product(rows, weight, bias if has_bias else None)
    assert torch.allclose(found, expected, atol=1e-4), moved("torch.ops.mkldnn._linear_pointwise", "onednn")


def test_torch_lists_the_options_of_its_compiler() -> None:
    assert hasattr(torch._inductor, "list_options"), moved("torch._inductor.list_options", "compilation")
    try:
        torch.compile(torch.sin, options={"deterministic": True})
        is_known = True
    except RuntimeError:
        is_known = False
    assert (deterministic_options() is not None) is is_known, moved("torch._inductor.list_options", "compilation")


def test_a_pipeline_of_diffusers_reads_its_guidance_at_every_step() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion_folder(), local_files_only=True).to("cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    sizes: list[int] = []
    pipeline.unet.conv_in.register_forward_hook(lambda layer, tensors, answer: sizes.append(len(answer)))
    pipeline(
        "a picture of a heart.", num_inference_steps=2, height=32, width=32, output_type="latent",
        callback_on_step_end=guidance_ends(0.5), callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )  # fmt: skip
    assert (sizes[0], sizes[-1]) == (2, 1), moved("StableDiffusionPipeline._guidance_scale", "approximations")
    assert (pipeline.guidance_scale, pipeline.do_classifier_free_guidance) == (1.0, False)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("conv_in", "Conv2d"),
        ("down_blocks.0", "CrossAttnDownBlock2D"),
        ("down_blocks.1", "DownBlock2D"),
        ("down_blocks.0.resnets.0", "ResnetBlock2D"),
        ("down_blocks.0.resnets.0.norm1", "GroupNorm"),
        ("down_blocks.0.resnets.0.conv1", "Conv2d"),
        ("down_blocks.0.attentions.0.norm", "GroupNorm"),
        ("down_blocks.0.attentions.0.proj_in", "Conv2d"),
        (f"{BLOCK}.norm1", "LayerNorm"),
        (f"{BLOCK}.attn1", "Attention"),
        (f"{BLOCK}.attn2.to_k", "Linear"),
        (f"{BLOCK}.attn2.to_v", "Linear"),
        (f"{BLOCK}.ff", "FeedForward"),
        (f"{BLOCK}.ff.net.0.proj", "Linear"),
    ],
)
def test_diffusers_has_the_layers_that_are_computed_less_often(unet: UNet2DConditionModel, path: str, kind: str) -> None:
    found = dict(unet.named_modules()).get(path)
    assert type(found).__name__ == kind, moved(f"UNet2DConditionModel.{path}", "exact_savings")


def test_diffusers_tells_an_attention_to_texts_from_one_to_itself(unet: UNet2DConditionModel) -> None:
    block = unet.get_submodule(BLOCK)
    told = [getattr(layer, "is_cross_attention", None) for layer in (block.attn1, block.attn2)]
    assert told == [False, True], moved("Attention.is_cross_attention", "exact_savings")
    assert block.only_cross_attention is False, moved("BasicTransformerBlock.only_cross_attention", "exact_savings")


def test_diffusers_has_what_a_shallow_step_runs(unet: UNet2DConditionModel) -> None:
    layers = {"time_embedding", "conv_in", "conv_norm_out", "conv_act", "conv_out", "up_blocks.1.resnets.0", "up_blocks.1.attentions.0"}
    missing = layers - dict(unet.named_modules()).keys()
    assert not missing, moved(f"UNet2DConditionModel.{', '.join(sorted(missing))}", "approximations")
    for method, expected in {
        "get_time_embed": {"sample", "timestep"},
        "get_aug_embed": {"emb", "encoder_hidden_states", "added_cond_kwargs"},
    }.items():
        found = set(inspect.signature(getattr(unet, method, lambda: None)).parameters)
        assert found == expected, moved(f"UNet2DConditionModel.{method}", "approximations")


def test_a_pipeline_of_diffusers_asks_its_safety_checker_by_a_method_of_its_own() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion_folder(), local_files_only=True).to("cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    asked: list[tuple[int, ...]] = []

    def check(image: torch.Tensor, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, list[bool]]:
        asked.append(tuple(image.shape))
        return image, [True]

    pipeline.run_safety_checker = check
    answer = pipeline("a picture of a heart.", num_inference_steps=1, height=32, width=32, output_type="pt")
    assert asked == [(1, 3, 32, 32)], moved("StableDiffusionPipeline.run_safety_checker", "safety")
    assert answer.nsfw_content_detected == [True], moved("StableDiffusionPipeline.run_safety_checker", "safety")
