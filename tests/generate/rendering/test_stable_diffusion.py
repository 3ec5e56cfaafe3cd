"""The renderer on the mini world's Stable Diffusion: real diffusers classes, few steps, small pictures."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.rendering import devices
from gift_generate.rendering.batch_size import LARGEST
from gift_generate.rendering.diffusers_renderer import DiffusersRenderer
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.renderer import OutOfMemory, RenderJob
from gift_mini.locations import stable_diffusion_folder

CAPTIONS = ["a picture of a heart.", "the letter Y.", "a picture of a sun.", "a radial texture."]
STEPS = 2


@pytest.fixture(scope="module")
def renderer() -> DiffusersRenderer:
    return DiffusersRenderer(options())


def options(**changes) -> ModelOptions:
    return ModelOptions(**{"model": "mini", "device": "cpu", "batch_size": 4} | changes)


def jobs(guidance_scale: float = 7.5, steps: int = STEPS) -> list[RenderJob]:
    return [RenderJob(caption, 10 + number, guidance_scale, steps) for number, caption in enumerate(CAPTIONS)]


def pixels(renderer: DiffusersRenderer, batch: list[RenderJob]) -> np.ndarray:
    return np.stack([rendered.pixels for rendered in renderer.render(batch)]).astype(int)


def plain_pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion_folder(), use_safetensors=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_a_picture_is_what_a_plain_pipeline_call_gives(renderer: DiffusersRenderer, guidance_scale: float) -> None:
    pipeline = plain_pipeline()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    job = jobs(guidance_scale)[0]
    image = pipeline(
        job.caption, num_inference_steps=STEPS, guidance_scale=guidance_scale, generator=torch.Generator().manual_seed(job.seed)
    ).images[0]  # fmt: skip
    # One level of 255: the pipeline encodes caption and empty text in another batch, which moves the last bits of a float.
    assert np.abs(pixels(renderer, [job])[0] - np.asarray(image).astype(int)).max() <= 1


def test_a_picture_does_not_depend_on_the_order_of_its_batch(renderer: DiffusersRenderer) -> None:
    forward = pixels(renderer, jobs())
    backward = pixels(renderer, jobs()[::-1])[::-1]
    assert np.abs(forward - backward).max() <= 1
    assert np.abs(forward[0] - forward[1]).max() > 1


def test_seed_and_caption_decide_the_picture(renderer: DiffusersRenderer) -> None:
    job = jobs()[0]
    same, again, other_seed, other_caption = pixels(renderer, [job, job, job._replace(seed=99), job._replace(caption=CAPTIONS[1])])
    assert np.abs(same - again).max() <= 1
    assert np.abs(same - other_seed).max() > 1
    assert np.abs(same - other_caption).max() >= 1


def test_below_fifty_steps_the_scheduler_is_multistep_dpm_solver_and_from_fifty_the_own(renderer: DiffusersRenderer) -> None:
    small = {"height": 8, "width": 8}
    default = DiffusersRenderer(options(**small))
    solver = DiffusersRenderer(options(scheduler="DPMSolverMultistepScheduler", **small))
    own = DiffusersRenderer(options(scheduler=type(plain_pipeline().scheduler).__name__, **small))
    few, many = jobs(steps=3)[:1], jobs(steps=50)[:1]
    assert np.array_equal(pixels(default, few), pixels(solver, few))
    assert not np.array_equal(pixels(default, few), pixels(own, few))
    assert np.array_equal(pixels(default, many), pixels(own, many))


def test_the_dtype_is_what_was_asked_and_recorded() -> None:
    renderer = DiffusersRenderer(options(dtype="bfloat16"))
    assert renderer.settings["dtype"] == "bfloat16"
    assert all(rendered.is_finite for rendered in renderer.render(jobs()))


def test_each_distinct_caption_is_encoded_once(renderer: DiffusersRenderer) -> None:
    fresh = DiffusersRenderer(options())
    encoded: list[int] = []
    fresh._pipeline.text_encoder.register_forward_hook(lambda module, arguments, output: encoded.append(len(output[0])))
    batch = [job._replace(caption=CAPTIONS[number % 2]) for number, job in enumerate(jobs())]
    first = pixels(fresh, batch)
    assert encoded == [1, 1, 1], "two captions and the empty text, each alone: an embedding has no batch to depend on"
    second = pixels(fresh, batch)
    assert encoded == [1, 1, 1]
    assert np.array_equal(first, second)
    assert np.array_equal(first, pixels(renderer, batch)), "what else was encoded before makes no difference"


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_attention_is_torchs_own_fused_one(renderer: DiffusersRenderer, component: str) -> None:
    processors = getattr(renderer._pipeline, component).attn_processors.values()
    assert {type(processor).__name__ for processor in processors} <= {"AttnProcessor2_0", "FusedAttnProcessor2_0"}


def test_decoding_in_slices_gives_the_pictures_up_to_last_bits_and_is_recorded(renderer: DiffusersRenderer) -> None:
    sliced = DiffusersRenderer(options(decodes_one_by_one=True))
    decoded: list[int] = []
    sliced._pipeline.vae.decoder.register_forward_hook(lambda module, arguments, output: decoded.append(len(output)))
    assert np.abs(pixels(sliced, jobs()) - pixels(renderer, jobs())).max() <= 1
    assert decoded == [1, 1, 1, 1]
    assert sliced.settings["decodes_one_by_one"] is True
    assert "decodes_one_by_one" not in renderer.settings


@pytest.mark.slow
def test_compiled_pictures_are_the_eager_ones_up_to_last_bits_whatever_fills_the_batch(renderer: DiffusersRenderer) -> None:
    compiled = DiffusersRenderer(options(is_compiled=True))
    whole = pixels(compiled, jobs())
    assert np.abs(whole - pixels(renderer, jobs())).max() <= 2
    assert np.array_equal(whole[:1], pixels(compiled, jobs()[:1])), "a short batch is filled up and runs the same graph"
    assert compiled.settings["compiled"] is True


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_line(tmp_path: Path) -> None:
    program = "from gift_generate.cli import main; import sys; sys.argv = ['gift-generate', *sys.argv[1:]]; main()"
    plan = tmp_path / "p.parquet"
    subprocess.run([sys.executable, "-c", program, "plan", "--out", plan, "--images-per-task", "1", "--steps", "1"], check=True)
    environment = os.environ | {"CXX": "/no/such/compiler", "PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    line = [sys.executable, "-c", program, "render", "--plan", plan, "--out", tmp_path / "out", "--device", "cpu", "--compile"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "--compile does not work here" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_on_a_gpu_the_pictures_are_close_to_the_cpus_and_the_same_each_time(renderer: DiffusersRenderer) -> None:
    on_gpu = DiffusersRenderer(options(device="cuda", dtype="float32"))
    first = pixels(on_gpu, jobs())
    assert np.array_equal(first, pixels(on_gpu, jobs()))
    assert np.abs(first - pixels(renderer, jobs())).mean() < 1
    assert all(rendered.is_finite for rendered in DiffusersRenderer(options(device="cuda")).render(jobs()))


@pytest.mark.gpu
def test_on_a_gpu_the_automatic_batch_is_halved_until_it_fits() -> None:
    automatic = DiffusersRenderer(options(device="cuda", batch_size=None, height=256, width=256))
    torch.cuda.set_per_process_memory_fraction(2e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        size = automatic.batch_size
        assert 1 <= size <= LARGEST
        assert len(automatic.render([jobs()[0]] * size)) == size
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_overlong_captions_are_named_and_rendered_all_the_same(renderer: DiffusersRenderer) -> None:
    overlong = [f"{number} " + "heart " * 200 for number in range(5)]
    warnings = RenderedImages(renderer, ImageEncoder(), 1).warnings([*CAPTIONS, *overlong])
    assert len(warnings) == 1
    assert warnings[0].startswith("5 captions are longer than the tokenizer's context and will be cut: '0 heart heart")
    assert warnings[0].endswith("and 2 more")
    assert renderer.render([RenderJob(overlong[0], 1, 7.5, STEPS)])[0].is_finite


def test_no_overlong_caption_gives_no_warning(renderer: DiffusersRenderer) -> None:
    assert RenderedImages(renderer, ImageEncoder(), 1).warnings(CAPTIONS) == []
    assert renderer.overlong([]) == []


@pytest.fixture
def real_plan(command, tmp_path: Path) -> Path:
    """12 images of the mini world in shards of 3, a batch of 2 leaving one over in each."""
    path = tmp_path / "mini.parquet"
    result = command("plan", "--out", path, "--images-per-task", 4, "--steps", STEPS, "--images-per-shard", 3)
    assert result.code == 0, result.err
    return path


def test_the_same_plan_gives_the_same_bytes_whatever_the_workers_and_whenever_resumed(command, real_plan: Path, tmp_path: Path) -> None:
    flags = ("--plan", real_plan, "--device", "cpu", "--batch-size", 2, "--image-format", "png")
    assert command("render", *flags, "--out", tmp_path / "one").code == 0
    for rank in (1, 0):
        assert command("render", *flags, "--out", tmp_path / "two", "--rank", rank, "--world-size", 2).code == 0
    (tmp_path / "two" / "shards" / "mini_digits-00001.parquet").unlink()
    assert command("render", *flags, "--out", tmp_path / "two").code == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name / "shards").iterdir()} for name in ("one", "two"))
    assert one == two
    assert (tmp_path / "one" / "index.parquet").read_bytes() == (tmp_path / "two" / "index.parquet").read_bytes()
    assert command("verify", "--out", tmp_path / "one").code == 0
    record = json.loads((tmp_path / "one" / "render.json").read_text())
    assert (record["settings"]["dtype"], record["settings"]["batch_size"]) == ("float32", 2)
    assert {"torch", "diffusers", "device"} <= record["machine"].keys()
    assert record["machine"]["license"] == "apache-2.0"  # as the card of the mini model says
    assert "\nlicense: apache-2.0\n" in (tmp_path / "one" / "README.md").read_text()


def test_the_number_of_cpu_threads_is_the_renders_and_not_the_launchers(command, real_plan: Path, tmp_path: Path) -> None:
    """With another number of threads a CPU gives other last bits, so it is a setting like any other."""
    torch.set_num_threads(2)
    flags = ("--plan", real_plan, "--device", "cpu", "--out", tmp_path / "out")
    assert command("render", *flags).code == 0
    assert torch.get_num_threads() == 1
    result = command("render", *flags, "--threads", 2)
    assert result.code == 2
    assert "made with cpu_threads = 1, this command says 2" in result.err


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(stable_diffusion_folder(), tmp_path / "model"))


def test_a_checker_that_objects_to_everything_is_told_and_nothing_is_written(
    command, real_plan: Path, model_copy: Path, tmp_path: Path
) -> None:
    add_safety_checker_that_objects_to_everything(model_copy)
    out = tmp_path / "flagged"
    result = command("render", "--plan", real_plan, "--out", out, "--model", model_copy, "--device", "cpu", "--max-attempts", 2)
    assert result.code == 2
    assert "None of the first 6 images is usable" in result.err
    assert "flagged; the model's safety checker objected" in result.err
    assert not (out / "shards").exists()


def add_safety_checker_that_objects_to_everything(model: Path) -> None:
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        projection_dim=8, vision_config=tower | {"image_size": 32, "patch_size": 16, "projection_dim": 8}, text_config=tower
    )  # fmt: skip
    checker = StableDiffusionSafetyChecker(config)
    torch.nn.init.constant_(checker.concept_embeds_weights, -2.0)  # every similarity is above its threshold
    checker.save_pretrained(model / "safety_checker")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(model / "feature_extractor")
    index = json.loads((model / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (model / "model_index.json").write_text(json.dumps(index))


def test_weights_cut_short_are_one_line(command, real_plan: Path, model_copy: Path, tmp_path: Path) -> None:
    os.truncate(model_copy / "unet" / "diffusion_pytorch_model.safetensors", 100_000)
    result = command("render", "--plan", real_plan, "--out", tmp_path / "out", "--model", model_copy)
    assert result.code == 2
    assert "cannot be loaded as a StableDiffusionPipeline" in result.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_model_folder_without_a_component_is_one_line(command, real_plan: Path, model_copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(model_copy / "tokenizer")
    result = command("render", "--plan", real_plan, "--out", tmp_path / "out", "--model", model_copy)
    assert result.code == 2
    assert "lacks the component tokenizer" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scheduler", "DDMScheduler"), "Unknown scheduler for this model 'DDMScheduler'. Did you mean 'DDPMScheduler'?"),
        (("--scheduler", "FlowMatchEulerDiscreteScheduler"), "Unknown scheduler for this model 'FlowMatchEulerDiscreteScheduler'."),
        (("--model", "./no-such-folder"), "--model './no-such-folder' is no folder"),
    ],
)
def test_names_that_do_not_exist_are_one_line(command, real_plan: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    result = command("render", "--plan", real_plan, "--out", tmp_path / "out", *arguments)
    assert result.code == 2
    assert message in result.err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device exists")
def test_a_device_that_is_not_there_is_one_line(command, real_plan: Path, tmp_path: Path) -> None:
    result = command("render", "--plan", real_plan, "--out", tmp_path / "out", "--device", "cuda")
    assert result.code == 2
    assert "this machine has no such device" in result.err


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
    ],
)
def test_too_little_memory_is_known_by_its_error(error: RuntimeError, is_it: bool) -> None:
    assert devices.is_out_of_memory(error) is is_it


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the address space by what /proc tells")
def test_a_batch_that_finds_too_little_memory_is_given_back_and_a_smaller_one_fits() -> None:
    renderer = DiffusersRenderer(ModelOptions(device="cpu", batch_size=64, height=256, width=256))
    jobs = [RenderJob("a picture of a heart.", seed, 1.0, 1) for seed in range(64)]
    child = os.fork()
    if child == 0:
        code = 0
        try:
            renderer.render(jobs[:1])
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + 150 * 2**20,) * 2)
            renderer.render(jobs)
        except OutOfMemory:
            code = 10 + len(renderer.render(jobs[:1]))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize(("variable", "number", "taken"), [("LOCAL_RANK", "3", 3), ("SLURM_LOCALID", "5", 1), (None, "", 0)])
def test_each_process_of_a_node_takes_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, number: str, taken: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for known in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(known, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, number)
    assert devices.find_device(name) == torch.device("cuda", taken)
    assert devices.find_device("cuda:2") == torch.device("cuda", 2)
