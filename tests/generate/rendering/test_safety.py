"""The safety checker is shown the same pictures by our way as by diffusers', and says the same of them."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from torchvision.transforms.v2 import functional as transforms
from transformers import CLIPConfig, CLIPImageProcessor, CLIPImageProcessorPil

from gift_generate.rendering.pixels import as_bytes
from gift_generate.rendering.safety import show_on_device
from gift_mini.locations import stable_diffusion_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checker() -> StableDiffusionSafetyChecker:
    """A small one with random weights, and the thresholds of whose concepts lie amid the similarities of these tests' pictures."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tower | {"image_size": 64, "patch_size": 16, "projection_dim": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(projection_dim=8, vision_config=vision, text_config=tower)).eval()
    for parameter in checker.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        embedded = checker.visual_projection(checker.vision_model(_extractor()(list(_as_pictures()), return_tensors="pt").pixel_values)[1])
        highest = cosine_distance(embedded, checker.concept_embeds)
        checker.concept_embeds_weights.copy_(highest.quantile(0.97, dim=0))
        checker.special_care_embeds_weights.fill_(1.0)
    return checker


def _extractor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


def decoded(height: int = 96, width: int = 128) -> torch.Tensor:
    """32 pictures as an image decoder leaves them: soft shapes, some values beyond -1 and 1."""
    noise = torch.randn(32, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=(height, width), mode="bicubic")


def _as_pictures() -> torch.Tensor:
    return as_bytes((decoded() * 0.5 + 0.5).clamp(0, 1))


@pytest.fixture(scope="module")
def pipeline(checker: StableDiffusionSafetyChecker) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(
        stable_diffusion_folder(), safety_checker=checker, feature_extractor=_extractor(), local_files_only=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_checker_sees_the_same_bits_and_says_the_same(
    checker: StableDiffusionSafetyChecker, pipeline: StableDiffusionPipeline, dtype: torch.dtype
) -> None:
    shown: list[torch.Tensor] = []
    hook = checker.register_forward_pre_hook(lambda module, parts, named: shown.append(named["clip_input"]), with_kwargs=True)
    show_on_device(pipeline)
    pictures, verdicts = [], []
    for check in (StableDiffusionPipeline.run_safety_checker.__get__(pipeline), pipeline.run_safety_checker):
        picture, verdict = check(decoded().to(dtype), CPU, torch.float32)  # the checker's own dtype is another matter
        pictures.append(picture)
        verdicts.append(verdict)
    hook.remove()
    assert torch.equal(shown[0], shown[1])
    assert torch.equal(pictures[0], pictures[1])
    assert verdicts[0] == verdicts[1]
    assert 3 < sum(verdicts[0]) < 29  # some are and some are not


def test_pictures_resized_in_floats_as_a_gpu_does_are_a_level_off_at_most_and_meet_the_same_verdicts_but_at_the_threshold(
    checker: StableDiffusionSafetyChecker,
) -> None:
    pictures = _as_pictures()
    in_bytes, in_floats = (
        transforms.resize(given, [64], interpolation=transforms.InterpolationMode.BICUBIC, antialias=True)
        for given in (pictures, pictures.float())
    )
    in_floats = in_floats.round().clamp(0, 255).to(torch.uint8)
    assert (in_bytes.int() - in_floats.int()).abs().max() <= 1
    answers = [
        checker(images=decoded(), clip_input=_extractor()(list(resized), return_tensors="pt", do_resize=False).pixel_values)[1]
        for resized in (in_bytes, in_floats)
    ]
    assert sum(one != other for one, other in zip(*answers, strict=True)) <= 1  # of 32: random weights may put one right at it
    assert any(answers[0])


def test_what_is_not_finite_is_black_and_halves_go_to_the_even_byte() -> None:
    assert as_bytes(torch.tensor([0.0, 1.0, torch.nan, 0.5 / 255, 1.5 / 255, 2.5 / 255])).tolist() == [0, 255, 0, 0, 2, 2]


def test_an_extractor_of_pillows_make_is_left_as_it_is(pipeline: StableDiffusionPipeline) -> None:
    theirs = StableDiffusionPipeline(**pipeline.components | {"feature_extractor": CLIPImageProcessorPil()})
    show_on_device(theirs)
    assert "run_safety_checker" not in vars(theirs)
