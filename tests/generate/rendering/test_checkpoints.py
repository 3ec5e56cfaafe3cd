"""What a model is made of: one file, variants, parts, LoRAs, another decoder; what is missing is told and never random."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from gift_generate.model_families import FAMILIES
from gift_generate.rendering.diffusers_renderer import DiffusersRenderer
from gift_generate.rendering.loras import parse_lora
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.renderer import BatchConstants, RenderJob
from gift_shared.errors import ConfigError

GUIDANCE, STEPS = 5.0, 2
JOBS = [RenderJob(caption, number, GUIDANCE, STEPS) for number, caption in enumerate(("a picture of a dog", "the letter Y"))]


def renderer(model: Path, **changes: Any) -> DiffusersRenderer:
    return DiffusersRenderer(ModelOptions(**{"model": str(model), "device": "cpu", "batch_size": 2} | changes))


def pixels(made: DiffusersRenderer) -> np.ndarray:
    return np.stack([one.pixels for one in made.render(JOBS)]).astype(int)


@pytest.fixture(scope="module")
def sd(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("sd")


@pytest.fixture(scope="module")
def pipeline(sd: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(sd)


@pytest.fixture(scope="module")
def expected(sd: Path) -> np.ndarray:
    return pixels(renderer(sd))


@pytest.fixture
def copy(sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd, tmp_path / "model"))


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_half_precision_that_is_all_there_is_loads_and_is_recorded(pipeline: Any, expected: np.ndarray, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model", variant="fp16")
    for variant in (None, "fp16"):
        made = renderer(tmp_path / "model", variant=variant)
        assert made.settings["variant"] == "fp16"
        assert np.array_equal(pixels(made), expected)


def test_weights_in_parts_are_the_same_weights(pipeline: Any, expected: np.ndarray, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    assert len(list((tmp_path / "model" / "unet").glob("*.safetensors"))) > 2
    assert np.array_equal(pixels(renderer(tmp_path / "model")), expected)


def test_a_variant_that_is_not_there_is_refused(sd: Path) -> None:
    with pytest.raises(ConfigError, match=r"--variant fp16: .* has no weights named so"):
        renderer(sd, variant="fp16")


def test_weights_are_read_in_the_dtype_asked_for(sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in single precision first: a transformer of 24 GB would take 48 on the host."""
    cast: list[torch.dtype] = []
    to = torch.nn.Module.to

    def spy(module: torch.nn.Module, *given: Any, **others: Any) -> torch.nn.Module:
        if module.__class__.__name__ in ("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"):
            cast.append(next(module.parameters()).dtype)
        return to(module, *given, **others)

    monkeypatch.setattr(torch.nn.Module, "to", spy)
    made = renderer(sd, dtype="bfloat16")
    assert set(cast) == {torch.bfloat16}
    assert {part.dtype for part in (made._pipeline.unet, made._pipeline.vae, made._pipeline.text_encoder)} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("component", "file"), [("text_encoder", "model.safetensors"), ("unet", "diffusion_pytorch_model.safetensors")]
)  # fmt: skip
def test_a_weight_that_no_file_holds_is_an_error(copy: Path, component: str, file: str) -> None:
    weights = load_file(copy / component / file)
    lost = next(name for name in weights if name.endswith("bias"))
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, copy / component / file, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"{component}: its files have no weights for 1 tensors \('{lost}'\), which would be random"):
        renderer(copy)


def test_a_model_that_does_not_say_its_size_is_told_one(copy: Path, expected: np.ndarray) -> None:
    change(copy / "unet" / "config.json", sample_size=None)
    with pytest.raises(ConfigError, match=r"does not say for which size it was made .* give --height and --width"):
        renderer(copy)
    assert np.array_equal(pixels(renderer(copy, height=16, width=16)), expected)


def test_a_pipeline_without_a_tokenizer_is_an_error(copy: Path, tiny_checkpoint: Callable, tmp_path: Path) -> None:
    change(copy / "model_index.json", tokenizer=[None, None])
    with pytest.raises(ConfigError, match="lists no tokenizer"):
        renderer(copy)
    optional = Path(shutil.copytree(tiny_checkpoint("sdxl"), tmp_path / "sdxl"))
    change(optional / "model_index.json", tokenizer=[None, None])
    with pytest.raises(ConfigError, match="has no tokenizer, so it cannot read captions"):
        renderer(optional)


def test_stable_diffusion_3_does_without_t5(tiny_checkpoint: Callable, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_checkpoint("sd3"), tmp_path / "model"))
    change(model / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    without = renderer(model)
    assert np.any(pixels(without) != pixels(renderer(tiny_checkpoint("sd3"))))
    assert without.overlong(["a " * 15]) == ["a " * 15], "CLIP alone reads"


@pytest.fixture(scope="module")
def lora(pipeline: Any, sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large changes of all attentions of the U-Net."""
    folder = tmp_path_factory.mktemp("lora")
    changed = diffusers.DiffusionPipeline.from_pretrained(sd)
    torch.manual_seed(1)
    changed.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    for name, weight in changed.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(changed.unet))
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_lora_is_added_as_plain_diffusers_adds_it(sd: Path, lora: Path, expected: np.ndarray, scale: float) -> None:
    made = renderer(sd, loras=[parse_lora(f"{lora}={scale}")])
    plain = diffusers.DiffusionPipeline.from_pretrained(sd)
    plain.load_lora_weights(lora.parent)
    plain.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    plain.set_progress_bar_config(disable=True)
    image = plain(
        JOBS[0].caption, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(0),
        cross_attention_kwargs={"scale": scale}, output_type="np",
    ).images[0]  # fmt: skip
    assert np.abs(pixels(made)[0] - np.rint(image * 255)).max() <= 1
    assert np.abs(pixels(made) - expected).mean() > 1
    assert [one["scale"] for one in made.settings["loras"]] == [scale]


def test_two_loras_add_up(sd: Path, lora: Path) -> None:
    twice = pixels(renderer(sd, loras=[parse_lora(f"{lora}=0.25"), parse_lora(f"{lora}=0.75")]))
    assert np.abs(twice - pixels(renderer(sd, loras=[parse_lora(str(lora))]))).max() <= 1


@pytest.mark.parametrize("kind", ["sdxl", "flux-dev"])
def test_a_lora_of_another_model_is_refused(tiny_checkpoint: Callable, lora: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"--lora .*pytorch_lora_weights.safetensors does not fit this model"):
        renderer(tiny_checkpoint(kind), loras=[parse_lora(str(lora))], height=16, width=16)


def test_a_consistency_lora_asks_for_its_solver(sd: Path, lora: Path, tmp_path: Path) -> None:
    named = Path(shutil.copy(lora, tmp_path / "lcm.safetensors"))
    with pytest.raises(ConfigError, match="add --scheduler LCMScheduler"):
        renderer(sd, loras=[parse_lora(str(named))])
    made = renderer(sd, loras=[parse_lora(str(named))], scheduler="LCMScheduler")
    assert made.check([BatchConstants(1.0, 4)]) == ["solver  LCMScheduler (asked for), 4 steps, guidance 1 (off)"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("x.safetensors", "there is none of that name"),
        ("x.safetensors=much", "expected FILE or FILE=SCALE with a number"),
        ("=1", "expected FILE or FILE=SCALE"),
        ("x.bin", "expected a .safetensors file"),
    ],
)
def test_what_is_no_lora_is_one_line(command: Callable, plan: Path, tmp_path: Path, argument: str, message: str) -> None:
    result = command("render", "--plan", plan, "--out", tmp_path / "out", "--model", "flat-color", "--lora", argument)
    assert result.code == 2
    assert message in result.err.splitlines()[-1]


def test_another_decoder_comes_from_a_folder_or_a_file(sd: Path, tiny_checkpoint: Callable, expected: np.ndarray, tmp_path: Path) -> None:
    brighter = diffusers.AutoencoderKL.from_pretrained(sd / "vae")
    torch.nn.init.constant_(brighter.decoder.conv_out.bias, 0.5)
    brighter.save_pretrained(tmp_path / "vae")
    other = tmp_path / "vae"
    folder = renderer(sd, vae=other)
    file = renderer(sd, vae=other / "diffusion_pytorch_model.safetensors")
    assert np.array_equal(pixels(folder), pixels(file))
    assert np.abs(pixels(folder) - expected).mean() > 1
    assert folder.settings["vae_sha256"] != file.settings["vae_sha256"], "the folder's configuration is a part of it"
    tiny = renderer(sd, vae=tiny_checkpoint("sd-taesd") / "vae")
    assert tiny._pipeline.vae.__class__.__name__ == "AutoencoderTiny"
    assert tiny.check([BatchConstants(GUIDANCE, STEPS)])


@pytest.mark.parametrize(
    ("place", "message"), [("unet", "is a UNet2DConditionModel, which decodes no images"), ("nowhere", "config.json is missing")]
)
def test_what_is_no_decoder_is_one_line(sd: Path, place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        renderer(sd, vae=sd / place)


@pytest.fixture(scope="module")
def single(pipeline: Any, sd: Path, one_file: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny Stable Diffusion as one file, and the folder that is left of it without weights."""
    folder = tmp_path_factory.mktemp("single")
    save_file(one_file(pipeline), folder / "model.safetensors")
    shutil.copytree(sd, folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder / "model.safetensors", folder / "config"


def test_one_file_gives_the_pictures_of_its_folder(single: tuple[Path, Path], expected: np.ndarray) -> None:
    assert np.array_equal(pixels(renderer(single[0], model_config=single[1])), expected)


@pytest.mark.parametrize("lost", ["model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_in.bias", "cond_stage_model"])
def test_a_weight_that_one_file_lacks_is_an_error(single: tuple[Path, Path], tmp_path: Path, lost: str) -> None:
    weights = load_file(single[0])
    save_file({name: tensor for name, tensor in weights.items() if not name.startswith(lost)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"x.safetensors cannot be loaded|no weights for"):
        renderer(tmp_path / "x.safetensors", model_config=single[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revision": "main"}, "--revision does not go with a single file"),
        ({"variant": "fp16"}, "--variant does not go with a single file"),
    ],
)
def test_options_that_one_file_has_no_use_for_are_refused(single: tuple[Path, Path], changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        renderer(single[0], model_config=single[1], **changes)


def test_options_of_other_models_are_refused_with_a_folder(sd: Path) -> None:
    with pytest.raises(ConfigError, match="--revision goes with a hub id"):
        renderer(sd, revision="main")
    with pytest.raises(ConfigError, match=r"--model-config goes with one .safetensors file"):
        renderer(sd, model_config=sd)


@pytest.mark.parametrize(("kind", "family"), [("sd-turbo", "sd-turbo"), ("sdxl-turbo", "sdxl-turbo")])
def test_a_distilled_model_keeps_its_solver_and_refuses_guidance(tiny_checkpoint: Callable, kind: str, family: str) -> None:
    made = renderer(tiny_checkpoint(kind))
    advice = FAMILIES[family]
    assert made.settings["scheduler"] == type(made._pipeline.scheduler).__name__
    assert made._solvers.for_steps(4) is made._pipeline.scheduler
    (line,) = made.check([BatchConstants(advice.guidance_scale, advice.denoising_steps)])
    assert line.endswith("(the model's own), 1 step, guidance 0 (off)")
    with pytest.raises(ConfigError, match=rf"is distilled .* plan with --model-family {family} \(1 step, guidance 0\)"):
        made.check([BatchConstants(7.5, 1)])
    assert any("50 steps are many for a distilled model" in line for line in made.check([BatchConstants(0.0, 50)]))


def test_a_solver_that_was_named_is_taken_at_the_users_word(tiny_checkpoint: Callable) -> None:
    made = renderer(tiny_checkpoint("sd-turbo"), scheduler="EulerDiscreteScheduler")
    lines = made.check([BatchConstants(7.5, 50)])
    assert lines[0] == "solver  EulerDiscreteScheduler (asked for), 50 steps, guidance 7.5"
    assert lines[1].startswith("warning: ")


@pytest.mark.parametrize("kind", ["lcm", "lcm-as-sd"])
def test_a_consistency_model_keeps_its_solver_takes_any_guidance_and_refuses_more_steps_than_it_knows(
    tiny_checkpoint: Callable, kind: str
) -> None:
    made = renderer(tiny_checkpoint(kind))
    assert made.check([BatchConstants(8.0, 4)]) == ["solver  LCMScheduler (the model's own), 4 steps, guidance 8"]
    with pytest.raises(ConfigError, match="LCMScheduler does not take the 60 steps of the plan"):
        made.check([BatchConstants(8.0, 60)])


def test_noise_that_no_seed_decides_is_refused(tiny_checkpoint: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(shutil.copytree(tiny_checkpoint("sd3"), tmp_path / "model"))
    change(model / "scheduler" / "scheduler_config.json", stochastic_sampling=True)
    with pytest.raises(ConfigError, match="stochastic_sampling draws noise that no seed of an image decides"):
        renderer(model).check([BatchConstants(GUIDANCE, 4)])
    made = renderer(tiny_checkpoint("sd"))
    solver = made._solvers.for_steps(STEPS)
    step = solver.step
    monkeypatch.setattr(
        solver, "step", lambda noise, time, latents, **others: step(noise, time, latents + torch.randn_like(latents), **others)
    )
    with pytest.raises(ConfigError, match="two images of one caption and seed differ"):
        made.check([BatchConstants(GUIDANCE, STEPS)])


def test_what_cannot_be_rendered_leaves_no_folder_and_the_advice_is_taken(
    command: Callable, tiny_checkpoint: Callable, tmp_path: Path
) -> None:
    plan, out = tmp_path / "p.parquet", tmp_path / "out"
    flags = ("--out", out, "--model", tiny_checkpoint("sd-turbo"), "--device", "cpu")
    assert command("plan", "--out", plan, "--images-per-task", 1).code == 0
    result = command("render", "--plan", plan, *flags)
    assert result.code == 2
    assert "plan with --model-family sd-turbo" in result.err
    assert not out.exists()
    assert command("plan", "--out", plan, "--images-per-task", 1, "--model-family", "sd-turbo").code == 0
    result = command("render", "--plan", plan, *flags)
    assert result.code == 0, result.err
    assert "solver  EulerDiscreteScheduler (the model's own), 1 step, guidance 0 (off)" in result.err
    settings = json.loads((out / "render.json").read_text())["settings"]
    assert settings["scheduler"] == "EulerDiscreteScheduler"


def test_the_safety_checker_can_be_left_out_and_need_not_be_there(copy: Path, expected: np.ndarray) -> None:
    change(
        copy / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    with pytest.raises(ConfigError, match="lacks the component feature_extractor"):
        renderer(copy)
    made = renderer(copy, safety_checker="off")
    assert made.settings["has_safety_checker"] is False
    assert np.array_equal(pixels(made), expected)
