"""Less work for other pictures: off is exact, on does what it says, and a folder is bound to it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gift_generate.rendering.diffusers_renderer import DiffusersRenderer
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.renderer import RenderJob

STEPS = 4


def renderer(**changes) -> DiffusersRenderer:
    return DiffusersRenderer(ModelOptions(**{"model": "mini", "device": "cpu", "batch_size": 2} | changes))


@pytest.fixture(scope="module")
def exact() -> DiffusersRenderer:
    return renderer()


def jobs(guidance_scale: float = 7.5, steps: int = STEPS) -> list[RenderJob]:
    captions = ("a picture of a heart.", "the letter Y.")
    return [RenderJob(caption, 10 + number, guidance_scale, steps) for number, caption in enumerate(captions)]


def pixels(renderer: DiffusersRenderer, batch: list[RenderJob]) -> np.ndarray:
    return np.stack([rendered.pixels for rendered in renderer.render(batch)]).astype(int)


def calls(renderer: DiffusersRenderer, batch: list[RenderJob]) -> tuple[list[int], int]:
    """Batch sizes of the first convolution, one a step, and how often the middle of the U-Net ran."""
    sizes: list[int] = []
    middles: list[int] = []
    unet = renderer._pipeline.unet
    hooks = [
        unet.conv_in.register_forward_hook(lambda module, arguments, output: sizes.append(len(output))),
        unet.mid_block.register_forward_hook(lambda module, arguments, output: middles.append(len(output))),
    ]
    renderer.render(batch)
    for hook in hooks:
        hook.remove()
    return sizes, len(middles)


def test_guidance_to_the_end_and_features_of_every_step_are_the_exact_pictures(exact: DiffusersRenderer) -> None:
    off = renderer(guidance_until=1.0, feature_interval=1)
    assert np.array_equal(pixels(off, jobs()), pixels(exact, jobs()))
    assert off.settings == exact.settings


@pytest.mark.parametrize(("fraction", "guided"), [(0.5, 2), (0.51, 3), (0.1, 1), (0.99, 4)])
def test_guidance_ends_after_its_share_of_the_steps(fraction: float, guided: int) -> None:
    sizes, _ = calls(renderer(guidance_until=fraction), jobs())
    assert sizes == [4] * guided + [2] * (STEPS - guided)


def test_guidance_is_on_again_for_the_next_batch() -> None:
    early = renderer(guidance_until=0.5)
    first = pixels(early, jobs())
    assert np.array_equal(first, pixels(early, jobs()))


def test_pictures_without_guidance_do_not_depend_on_where_it_would_end(exact: DiffusersRenderer) -> None:
    assert np.array_equal(pixels(renderer(guidance_until=0.5), jobs(1.0)), pixels(exact, jobs(1.0)))


def test_between_whole_steps_only_the_outermost_layers_run(exact: DiffusersRenderer) -> None:
    assert calls(exact, jobs())[1] == STEPS
    assert calls(renderer(feature_interval=2), jobs())[1] == 2
    sizes, middles = calls(renderer(feature_interval=3), jobs())
    assert (sizes, middles) == ([4] * STEPS, 2)


def test_reused_features_are_this_batchs_own(exact: DiffusersRenderer) -> None:
    reuse = renderer(feature_interval=2)
    first = pixels(reuse, jobs())
    other = pixels(reuse, jobs()[::-1])
    assert np.abs(first - other[::-1]).max() <= 1
    assert np.array_equal(first, pixels(reuse, jobs()))
    assert 0 < np.abs(first - pixels(exact, jobs())).mean() < 40


def test_a_shallow_step_right_after_a_whole_one_equals_it(exact: DiffusersRenderer) -> None:
    """With the same input the deep features are not only near: the layers that run again give the whole U-Net's output."""
    reuse = renderer(feature_interval=2)
    unet = reuse._pipeline.unet
    sample, text = (
        torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.cat([reuse._family.encoded(text)["prompt_embeds"] for text in "ab"]),
    )
    reuse._reuse.begin()
    with torch.inference_mode():
        whole = unet(sample, torch.tensor(7), text, return_dict=False)[0]
        shallow = unet(sample, torch.tensor(7), text, return_dict=False)[0]
    assert torch.equal(whole, shallow)


def test_features_outlive_the_end_of_guidance() -> None:
    both = renderer(feature_interval=2, guidance_until=0.25)
    sizes, middles = calls(both, jobs())
    assert (sizes, middles) == ([4, 2, 2, 2], 2)


def test_an_approximation_binds_the_folder(command, tmp_path: Path) -> None:
    plan, out = tmp_path / "p.parquet", tmp_path / "out"
    command("plan", "--out", plan, "--images-per-task", 1, "--steps", 1)
    base = ("render", "--plan", plan, "--out", out, "--device", "cpu", "--height", 8, "--width", 8)
    assert command(*base, "--guidance-until", 0.5).code == 0
    assert json.loads((out / "render.json").read_text())["settings"]["guidance_until"] == 0.5
    result = command(*base)
    assert result.code == 2
    assert "made with guidance_until = 0.5, this command says None" in result.err
    result = command(*base, "--guidance-until", 0.5, "--feature-interval", 3)
    assert result.code == 2
    assert "made with feature_interval = None, this command says 3" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--guidance-until", 0), "--guidance-until must be above 0 and at most 1, found 0"),
        (("--guidance-until", "nan"), "--guidance-until must be above 0 and at most 1, found nan"),
        (("--guidance-until", 1.2), "--guidance-until must be above 0 and at most 1, found 1.2"),
        (("--feature-interval", 0), "--feature-interval must be at least 1, found 0"),
        (("--feature-interval", 2, "--compile"), "--feature-interval and --compile do not go together"),
    ],
)
def test_values_without_a_meaning_are_one_line(command, plan: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    result = command("render", "--plan", plan, "--out", tmp_path / "out", "--model", "flat-color", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()
