"""Every family for real, on tiny checkpoints of its own classes: a picture is what plain diffusers makes, and its own seed's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from gift_generate.rendering.diffusers_renderer import DiffusersRenderer
from gift_generate.rendering.families.registry import FAMILIES, family_of
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.renderer import BatchConstants, RenderJob
from gift_shared.errors import ConfigError

CAPTIONS = ["a picture of a dog", "the letter Y", "red"]
STEPS = 2
SIZE = {"flux-dev": 16, "flux-schnell": 16, "sana": 32, "other": 16}  # pixels; the others' own is 16
UNGUIDED, GUIDED = 0.0, 5.0
KINDS = {
    "sd": (UNGUIDED, GUIDED),
    "sd-v": (UNGUIDED, GUIDED),
    "sd-taesd": (GUIDED,),
    "sd-turbo": (UNGUIDED,),
    "sdxl": (UNGUIDED, GUIDED),
    "sdxl-turbo": (UNGUIDED,),
    "lcm-as-sd": (GUIDED,),
    "lcm": (GUIDED,),
    "sd3": (UNGUIDED, GUIDED),
    "flux-dev": (GUIDED,),
    "flux-schnell": (UNGUIDED,),
    "pixart": (UNGUIDED, GUIDED),
    "sana": (UNGUIDED, GUIDED),
    "other": (UNGUIDED, GUIDED),
}
CASES = [(kind, guidance) for kind, scales in KINDS.items() for guidance in scales]
# What the plain call is told so that it does what ours does: the pictures of a size that was asked for, no packages to clean captions.
PLAIN_ARGUMENTS = {
    "pixart": {"clean_caption": False, "use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
    "flux-schnell": {"max_sequence_length": 256},
}


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], DiffusersRenderer]:
    """One of each kind, made once."""
    made: dict[str, DiffusersRenderer] = {}

    def of(kind: str) -> DiffusersRenderer:
        if kind not in made:
            made[kind] = DiffusersRenderer(options(tiny_checkpoint(kind), **size(kind)))
        return made[kind]

    return of


def size(kind: str) -> dict[str, int]:
    return {"height": SIZE[kind], "width": SIZE[kind]} if kind in SIZE else {}


def options(model: Path, **changes: Any) -> ModelOptions:
    return ModelOptions(**{"model": str(model), "device": "cpu", "batch_size": 4} | changes)


def jobs(guidance_scale: float, **changes: Any) -> list[RenderJob]:
    return [RenderJob(caption, 10 + number, guidance_scale, STEPS)._replace(**changes) for number, caption in enumerate(CAPTIONS)]


def pixels(renderer: DiffusersRenderer, batch: list[RenderJob]) -> np.ndarray:
    rendered = renderer.render(batch)
    assert all(one.is_finite for one in rendered)
    return np.stack([one.pixels for one in rendered]).astype(int)


@pytest.mark.parametrize(("kind", "guidance"), CASES)
def test_a_picture_is_what_plain_diffusers_makes(renderer: Callable, tiny_checkpoint: Callable, kind: str, guidance: float) -> None:
    plain = diffusers.DiffusionPipeline.from_pretrained(tiny_checkpoint(kind))
    plain.set_progress_bar_config(disable=True)
    ours = renderer(kind)
    solver = ours._solvers.for_steps(STEPS)
    plain.scheduler = type(solver).from_config(solver.config)
    side = SIZE.get(kind, 16)
    job = jobs(guidance)[0]
    image = plain(
        job.caption, height=side, width=side, num_inference_steps=STEPS, guidance_scale=guidance, output_type="np",
        generator=torch.Generator().manual_seed(job.seed), **PLAIN_ARGUMENTS.get(kind, {}),
    ).images[0]  # fmt: skip
    # The plain call encodes caption and empty text in one batch, which moves the last bits of a float.
    assert np.abs(pixels(ours, [job])[0] - np.rint(image * 255)).max() <= 1


@pytest.mark.parametrize(("kind", "guidance"), CASES)
def test_a_picture_follows_from_its_own_seed_and_caption_alone(renderer: Callable, kind: str, guidance: float) -> None:
    ours = renderer(kind)
    batch = jobs(guidance)
    together = pixels(ours, batch)
    torch.manual_seed(99)  # noise from anywhere else would follow it
    assert np.array_equal(pixels(ours, batch), together)
    for job, picture in zip(batch, together, strict=True):
        assert np.abs(pixels(ours, [job])[0] - picture).max() <= 1
    job = batch[0]
    assert np.abs(pixels(ours, [job._replace(seed=99)])[0] - together[0]).max() > 10
    assert np.any(pixels(ours, [job._replace(caption="blue cat")])[0] != together[0])


@pytest.mark.parametrize("kind", [kind for kind, scales in KINDS.items() if GUIDED in scales and not kind.startswith(("lcm", "flux"))])
def test_a_negative_prompt_is_the_jobs_own_else_the_renderers(renderer: Callable, tiny_checkpoint: Callable, kind: str) -> None:
    plain = pixels(renderer(kind), jobs(GUIDED))
    own = pixels(renderer(kind), jobs(GUIDED, negative_prompt="blue cat"))
    assert np.any(plain != own)
    told = DiffusersRenderer(options(tiny_checkpoint(kind), negative_prompt="blue cat", **size(kind)))
    assert np.array_equal(pixels(told, jobs(GUIDED)), own)
    assert told.settings["negative_prompt"] == "blue cat"
    mixed = [job._replace(negative_prompt=text) for job, text in zip(jobs(GUIDED), ("", "blue cat", ""), strict=True)]
    assert np.abs(pixels(renderer(kind), mixed) - np.stack([plain[0], own[1], plain[2]])).max() <= 1


@pytest.mark.parametrize("kind", ["flux-dev", "lcm"])
def test_a_negative_prompt_that_changes_nothing_is_refused(renderer: Callable, kind: str) -> None:
    with pytest.raises(ConfigError, match="takes no negative prompt: leave it out"):
        renderer(kind).check([BatchConstants(GUIDED, STEPS, has_negative_prompt=True)])


def test_a_negative_prompt_without_guidance_is_refused(tiny_checkpoint: Callable) -> None:
    told = DiffusersRenderer(options(tiny_checkpoint("sd-turbo"), negative_prompt="blurry"))
    with pytest.raises(ConfigError, match="--negative-prompt changes nothing"):
        told.check([BatchConstants(0.0, 1)])


@pytest.mark.parametrize(("kind", "other"), [("sd", 24), ("sd3", 12), ("flux-dev", 20), ("pixart", 24), ("sana", 64)])
def test_a_job_may_have_its_own_size(renderer: Callable, kind: str, other: int) -> None:
    shapes = {one.pixels.shape for one in renderer(kind).render(jobs(GUIDED, height=other, width=2 * other))}
    assert shapes == {(other, 2 * other, 3)}


@pytest.mark.parametrize(("kind", "step"), [("sd", 8), ("flux-dev", 4), ("sana", 32)])
def test_a_size_that_is_not_possible_is_told_before_work(renderer: Callable, kind: str, step: int) -> None:
    with pytest.raises(ConfigError, match=f"multiples of {step} pixels with this model, found {step + 1}"):
        renderer(kind).check([BatchConstants(GUIDED, STEPS, height=step + 1)])


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_check_before_a_folder_is_bound_passes_and_tells_the_solver(renderer: Callable, kind: str) -> None:
    lines = renderer(kind).check([BatchConstants(KINDS[kind][-1], STEPS)])
    solver = type(renderer(kind)._solvers.for_steps(STEPS)).__name__
    assert lines[0].startswith(f"solver  {solver} (")
    assert any(line.startswith("savings none") for line in lines) is not renderer(kind)._family.is_unet


def test_shortened_captions_are_those_longer_than_the_longest_reader(renderer: Callable) -> None:
    words = {"sd": 16, "sd3": 256, "flux-dev": 512, "flux-schnell": 256, "pixart": 300, "sana": 300, "other": 512}
    for kind, limit in words.items():
        fits, too_long = ("a " * (limit - (2 if kind == "sd" else 1)), "a " * limit)
        assert renderer(kind).overlong([fits, too_long]) == [too_long], kind


def test_steps_that_are_shared_and_features_that_are_reused_know_of_pooled_texts(tiny_checkpoint: Callable) -> None:
    """SDXL takes texts in beside the timestep: what is the same for both halves of a guided batch is less than in Stable Diffusion."""
    model = tiny_checkpoint("sdxl")
    exact = pixels(DiffusersRenderer(options(model)), jobs(GUIDED))
    reused = pixels(DiffusersRenderer(options(model, feature_interval=2)), jobs(GUIDED))
    assert 0 <= np.abs(exact - reused).mean() < 20
    sizes: list[int] = []
    early = DiffusersRenderer(options(model, guidance_until=0.5))
    early._pipeline.unet.conv_out.register_forward_hook(lambda layer, tensors, answer: sizes.append(len(answer)))
    pixels(early, jobs(GUIDED))
    assert sizes == [6, 3]


def test_guidance_of_stable_diffusion_3_ends_early(tiny_checkpoint: Callable) -> None:
    sizes: list[int] = []
    early = DiffusersRenderer(options(tiny_checkpoint("sd3"), guidance_until=0.5))
    early._pipeline.transformer.proj_out.register_forward_hook(lambda layer, tensors, answer: sizes.append(len(answer)))
    pixels(early, jobs(GUIDED))
    assert sizes == [6, 3]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sd3", {"feature_interval": 2}, "--feature-interval reuses a U-Net's features"),
        ("flux-dev", {"guidance_until": 0.5}, "--guidance-until: the guidance of a FluxPipeline cannot end early"),
        ("pixart", {"guidance_until": 0.5}, "--guidance-until: the guidance of a PixArtSigmaPipeline cannot end early"),
        ("sana", {"height": 40, "width": 40}, "--height and --width must be multiples of 32 pixels with this model, found 40"),
    ],
)
def test_an_option_that_a_family_has_no_use_for_is_refused(tiny_checkpoint: Callable, kind: str, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiffusersRenderer(options(tiny_checkpoint(kind), **size(kind) | changes))


def test_every_listed_pipeline_is_diffusers_own() -> None:
    assert all(issubclass(getattr(diffusers, name), diffusers.DiffusionPipeline) for name in FAMILIES)
    assert not family_of("AuraFlowPipeline").is_listed
