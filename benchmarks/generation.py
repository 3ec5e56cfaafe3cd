"""Images per second: ours against one diffusers call an image, and what each approximation gains and costs.

python benchmarks/generation.py [--quick] [--compile] [--device cuda]

CPU: the embedded mini Stable Diffusion. The plain way is the published code's: one pipeline call and one JPEG file an image, with
torch's own number of threads. Ours: as many worker processes as cores, one thread each, shards on disk in the end. Same plan, same
scheduler, same weights, in turns. Loading is outside the time on both sides. A GPU gets Stable Diffusion v1.5's architecture with random
weights at 512 x 512 pixels; `--quick` on a CPU runs that once, small, to show that it runs.
"""

import argparse
import dataclasses
import functools
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from measure import Finding, report, seconds_each
from PIL import Image
from sd15 import save_random_sd15

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.output.shard_writer import write_shard
from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest
from gift_generate.rendering.factory import open_renderer
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.renderer import RenderJob
from gift_shared.manifests import Manifests
from gift_shared.schema import PlanKind, SampleStatus

Rows = list[dict[str, Any]]
MINI = ModelOptions(model="mini", device="cpu")
FULL_STEPS = 50
APPROXIMATIONS: dict[str, tuple[int, dict[str, Any]]] = {  # name -> denoising steps, options
    "25 steps": (25, {}),
    "12 steps": (12, {}),
    "guidance until 0.8": (FULL_STEPS, {"guidance_until": 0.8}),
    "guidance until 0.5": (FULL_STEPS, {"guidance_until": 0.5}),
    "features every 2nd step": (FULL_STEPS, {"feature_interval": 2}),
    "features every 3rd step": (FULL_STEPS, {"feature_interval": 3}),
    "both, 0.5 and 2nd": (FULL_STEPS, {"guidance_until": 0.5, "feature_interval": 2}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images; on a CPU one small batch of SD v1.5 besides")
    parser.add_argument("--compile", action="store_true", help="measure --compile too: minutes more")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--readme", action="store_true", help="what README claims: half as many images, each turn once, no approximations")
    parser.add_argument("--pictures", type=Path, help="write the pictures of every approximation side by side to this file")
    arguments = parser.parse_args()
    findings: list[Finding] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.device == "cuda":
            findings += sd15_findings(details, Path(folder), 16 if arguments.quick else 64, measures_compiled=arguments.compile)
        else:
            with Workers(os.cpu_count() or 1, Path(folder)) as workers:
                size = Size(is_quick=arguments.quick, is_readme=arguments.readme)
                findings += speed_findings(details, workers, size, arguments.compile)
                if not arguments.readme:
                    findings += approximation_findings(details, workers, 12 if arguments.quick else 48, arguments.pictures)
            if arguments.quick and not arguments.readme:
                details["sd15_small"] = sd15_runs(Path(folder))
    report("generation", findings, details, is_quick=arguments.quick, device=arguments.device)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    is_quick: bool
    is_readme: bool

    def images(self, whole: int) -> int:
        """So many at most; a batch of 16 for each of two workers is the least that is as fast as more."""
        return min(whole, 4 if self.is_readme else 16) if self.is_quick else min(whole, 32) if self.is_readme else whole

    def rounds(self, whole: int) -> int:
        """Timed turns."""
        return 1 if self.is_quick or self.is_readme else whole


class Workers:
    """Processes that render and write shards, each with a thread of its own, as `torchrun` starts them; they load a model once."""

    def __init__(self, count: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.processor_seconds = 0.0  # of all workers together, in the last call of `render`
        self.folder = folder
        self._ends: list[Connection] = []
        self._processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            self._ends.append(ours)
            self._processes.append(context.Process(target=serve, args=(theirs, folder, f"worker{number}-00000")))
            self._processes[-1].start()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join()

    def render(self, options: ModelOptions, rows: Rows, image_format: str = "jpg") -> list[bytes]:
        """The files of all rows, in their order; each worker renders a stretch of them."""
        cuts = np.linspace(0, len(rows), len(self._ends) + 1).astype(int)
        for end, first, last in zip(self._ends, cuts, cuts[1:], strict=False):
            end.send((options, rows[first:last], image_format))
        answers = [end.recv() for end in self._ends]
        self.processor_seconds = sum(seconds for _, seconds in answers)
        return [content for contents, _ in answers for content in contents]


def serve(pipe: Connection, folder: Path, shard: str) -> None:
    """A worker's life: rows in, a shard on disk, its files back."""
    renderers: dict[ModelOptions, Any] = {}
    while (order := pipe.recv()) is not None:
        options, rows, image_format = order
        if options not in renderers:
            renderers[options] = open_renderer(options)
        source = RenderedImages(renderers[options], ImageEncoder(image_format), max_attempts=1)
        started = time.process_time()
        pictures = source.pictures(rows, lambda count: None)
        write_shard(folder, shard, rows, pictures, {})
        pipe.send(([picture.content for picture in pictures], time.process_time() - started))


def mini_rows(num_images: int, guidance_scale: float, steps: int) -> Rows:
    """Class-name captions of all six tasks of the mini world, in turn."""
    request = PlanRequest(
        kind=PlanKind.POOL,
        order=None,
        datasets=Manifests().order("mini").tasks,
        images_per_class=max(1, num_images // 30),
        guidance_scale=guidance_scale,
        denoising_steps=steps,
    )
    rows = make_plan(request, Manifests())[0].to_pylist()
    chosen = np.linspace(0, len(rows) - 1, num_images).round().astype(int)
    return [rows[number] for number in chosen]


def plain_pipeline(model: Path, steps: int, device: str = "cpu") -> Any:
    """What the published generation script sets up: below 50 steps multistep DPM-Solver, else the checkpoint's own scheduler."""
    import diffusers
    import torch

    diffusers.utils.logging.set_verbosity_error()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model, use_safetensors=True)
    pipeline = pipeline.to(device, torch.float16 if device == "cuda" else torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if steps < FULL_STEPS:
        pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def plain_images(pipeline: Any, rows: Rows, folder: Path, **size: int) -> None:
    """One call and one file an image."""
    import torch

    for row in rows:
        generator = torch.Generator().manual_seed(row["sample_seed"])
        image = pipeline(
            row["caption"],
            num_inference_steps=row["denoising_steps"],
            guidance_scale=row["guidance_scale"],
            generator=generator,
            **size,
        ).images[0]
        image.save(folder / f"{row['sample_key']}.jpg")


def speed_findings(details: dict[str, Any], workers: Workers, size: Size, is_compiled: bool) -> list[Finding]:
    """The mini model: the demo's plan (12 steps) and the paper's (50 steps)."""
    from gift_mini.locations import stable_diffusion_folder

    findings = []
    for steps, guidance_scale, num_images, rounds in ((12, 3.0, 64, 3), (FULL_STEPS, 7.5, 32, 2)):
        rows = mini_rows(size.images(num_images), guidance_scale, steps)
        pipeline = plain_pipeline(stable_diffusion_folder(), steps)
        variants: dict[str, Callable[[], Any]] = {
            "plain": functools.partial(plain_images, pipeline, rows, workers.folder),
            "ours": functools.partial(workers.render, MINI, rows),
        }
        if is_compiled:
            compiled = dataclasses.replace(MINI, is_compiled=True)
            workers.render(compiled, rows)
            variants["ours, compiled"] = functools.partial(workers.render, compiled, rows)
        seconds = seconds_each(variants, rounds=size.rounds(rounds))
        rates = {name: len(rows) / taken for name, taken in seconds.items()}
        details[f"mini, {steps} steps"] = {"images": len(rows), "images_per_second": rates} | floor(pipeline, rows[0], rates["ours"])
        findings.append(Finding(what=f"mini, {steps} steps: one call an image", value=rates["plain"], unit="images/s"))
        for name in list(rates)[1:]:
            findings.append(Finding(what=f"mini, {steps} steps: {name}", value=rates[name], unit="images/s"))
            findings.append(
                Finding(what=f"mini, {steps} steps: {name} against plain", value=rates[name] / rates["plain"], unit="x", target=4)
            )
    return findings


def floor(pipeline: Any, row: dict[str, Any], images_per_second: float) -> dict[str, Any]:
    """How near a rate comes to what the multiplications alone take, and where one worker's time goes."""
    import torch
    from products import best_rate

    cores = os.cpu_count() or 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rate = best_rate(1024, 1024, 1024, "cpu", torch.float32) * cores
    flops = image_flops(open_renderer(MINI), row)
    parts = time_by_part(pipeline, row["denoising_steps"])
    torch.set_num_threads(threads)
    return {
        "gigaflop_per_image": flops / 1e9,
        "gigaflop_per_second_of_matrix_products": rate / 1e9,
        "share_of_the_floor": images_per_second * flops / rate,
        "milliseconds_of_one_image_in_a_batch_of_16_by_part": parts,
    }


def image_flops(renderer: Any, row: dict[str, Any]) -> float:
    """Multiplications and additions that our renderer makes for one image; what it spares does not count."""
    from products import count_flops
    from torch.nn.attention import SDPBackend, sdpa_kernel

    job = RenderJob(row["caption"], row["sample_seed"], row["guidance_scale"], row["denoising_steps"])
    renderer.render([job])  # its texts are encoded
    with sdpa_kernel(SDPBackend.MATH):
        return float(count_flops(lambda: renderer.render([job])))


def time_by_part(pipeline: Any, steps: int) -> dict[str, float]:
    """Milliseconds an image takes in each part when 16 are rendered together; the processor's own time, so other processes matter less."""
    import torch

    spent = {"unet": 0.0, "vae": 0.0}
    size = 16
    latents = torch.randn(2 * size, pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2)
    text = torch.randn(2 * size, pipeline.tokenizer.model_max_length, pipeline.unet.config.cross_attention_dim)
    pipeline.scheduler.set_timesteps(steps)
    with torch.inference_mode():
        calls = {"unet": lambda: pipeline.unet(latents, 5, text), "vae": lambda: pipeline.vae.decode(latents[:size])}
        for name, times in (("unet", len(pipeline.scheduler.timesteps)), ("vae", 1)):
            calls[name]()
            taken = []
            for _ in range(5):
                started = time.process_time()
                calls[name]()
                taken.append(time.process_time() - started)
            spent[name] = 1000 * min(taken) * times / size
    return spent


def approximation_findings(details: dict[str, Any], workers: Workers, num_images: int, pictures: Path | None) -> list[Finding]:
    """Every approximation beside the full run of the same rows: processor time, pixels, and what the mini CLIP sees in them."""
    full_rows = mini_rows(num_images, 3.0, FULL_STEPS)
    variants = {"full run": (MINI, full_rows)}
    for name, (steps, changes) in APPROXIMATIONS.items():
        variants[name] = (dataclasses.replace(MINI, **changes), [row | {"denoising_steps": steps} for row in full_rows])
    files: dict[str, list[bytes]] = {}
    seconds: dict[str, float] = {}
    for name, (options, rows) in variants.items():
        workers.render(options, rows[:2])  # load
        files[name] = workers.render(options, rows, image_format="png")
        seconds[name] = workers.processor_seconds
    images = {name: np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in contents]) for name, contents in files.items()}
    seen = {name: predictions(each, full_rows) for name, each in images.items()}
    labels = np.array([row["class_index"] for row in full_rows])
    findings = []
    for name in variants:
        effect = {
            "times_as_fast": seconds["full run"] / seconds[name],
            "mean_absolute_pixel_difference": float(np.abs(images[name].astype(int) - images["full run"].astype(int)).mean()),
            "zero_shot_agreement_percent": 100 * float((seen[name] == seen["full run"]).mean()),
            "zero_shot_accuracy_percent": 100 * float((seen[name] == labels).mean()),
        }
        details.setdefault("approximations", {"images": num_images})[name] = effect
        findings.append(Finding(what=f"{name}: against the full run", value=effect["times_as_fast"], unit="x"))
        findings.append(Finding(what=f"{name}: pixel difference", value=effect["mean_absolute_pixel_difference"], unit="of 255"))
        findings.append(Finding(what=f"{name}: zero-shot accuracy", value=effect["zero_shot_accuracy_percent"], unit="%"))
    if pictures is not None:
        side_by_side(images, pictures)
    return findings


def predictions(images: np.ndarray, rows: Rows) -> np.ndarray:
    """The class of its own task that the mini CLIP gives each image [N, H, W, 3]."""
    import torch

    from gift_train.clip.load import load_backbone
    from gift_train.clip.zero_shot import most_similar, zero_shot_scores

    clip = load_backbone("mini", None)
    tasks = [row["source"] for row in rows]
    labels = np.full(len(rows), -1)
    with torch.no_grad():
        for task in dict.fromkeys(tasks):
            own = np.array([number for number, name in enumerate(tasks) if name == task])
            pixels = torch.from_numpy(images[own]).permute(0, 3, 1, 2)
            labels[own] = most_similar(zero_shot_scores(clip, Manifests().task(task)))(clip.place_images(pixels)).numpy()
    return labels


def side_by_side(images: dict[str, np.ndarray], path: Path) -> None:
    """A row for the full run and for each approximation, the same twelve images in each, enlarged."""
    rows = [np.concatenate(list(each[:: max(1, len(each) // 12)][:12]), axis=1) for each in images.values()]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * 3, sheet.height * 3), Image.Resampling.NEAREST).save(path)


def sd15_rows(count: int, steps: int) -> Rows:
    """As many captions as images."""
    return [row | {"guidance_scale": 7.5, "denoising_steps": steps} for row in mini_rows(count, 7.5, steps)]


def sd15_findings(details: dict[str, Any], folder: Path, num_images: int, *, measures_compiled: bool) -> list[Finding]:
    """On a GPU: 50 steps at 512 x 512 in half precision, one process on either side, the batch as large as fits."""
    import torch
    from products import best_rate

    save_random_sd15(folder / "model")
    rows = sd15_rows(num_images, FULL_STEPS)
    pipeline = plain_pipeline(folder / "model", FULL_STEPS, "cuda")
    options = ModelOptions(model=str(folder / "model"), device="cuda", batch_size=None)
    renderers = {"ours": open_renderer(options)}
    if measures_compiled:
        options = dataclasses.replace(options, is_compiled=True, batch_size=renderers["ours"].batch_size)
        renderers["ours, compiled"] = open_renderer(options)

    def plain() -> None:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True):  # as torch has them
            plain_images(pipeline, rows[:8], folder)

    def ours(renderer: Any) -> None:
        pictures = RenderedImages(renderer, ImageEncoder(), max_attempts=1).pictures(rows, lambda count: None)
        assert all(picture.status == SampleStatus.OK for picture in pictures)  # one that failed would be spared its encoding
        write_shard(folder, "sd15-00000", rows, pictures, {})

    seconds = seconds_each({"plain": plain, **{name: functools.partial(ours, each) for name, each in renderers.items()}}, rounds=2)
    rates = {name: (8 if name == "plain" else len(rows)) / taken for name, taken in seconds.items()}
    flops, rate = image_flops(renderers["ours"], rows[0]), best_rate(8192, 8192, 8192, "cuda", torch.float16)
    details["sd15"] = {"images_per_second": rates, "gigaflop_per_image": flops / 1e9, "batch_size": renderers["ours"].batch_size}
    findings = [Finding(what="SD v1.5: one call an image", value=rates["plain"], unit="images/s")]
    for name in renderers:
        findings += [
            Finding(what=f"SD v1.5: {name}", value=rates[name], unit="images/s"),
            Finding(what=f"SD v1.5: {name} against plain", value=rates[name] / rates["plain"], unit="x", target=6),
            Finding(what=f"SD v1.5: {name}: share of the floor by FLOPs", value=100 * rates[name] * flops / rate, unit="%", target=45),
        ]
    return findings


def sd15_runs(folder: Path) -> dict[str, Any]:
    """On a CPU: two images of 128 x 128 pixels, one step. Shows that the path runs, and measures nothing worth a target."""
    save_random_sd15(folder / "model")
    renderer = open_renderer(ModelOptions(model=str(folder / "model"), device="cpu", dtype="float32", batch_size=2, height=128, width=128))
    rows = sd15_rows(2, 1)
    started = time.perf_counter()
    pictures = RenderedImages(renderer, ImageEncoder(), max_attempts=1).pictures(rows, lambda count: None)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "statuses": [str(picture.status) for picture in pictures], "sizes": sizes(pictures)}


def sizes(pictures: Sequence[Any]) -> list[tuple[int | None, int | None]]:
    """Width and height of each."""
    return [(picture.width, picture.height) for picture in pictures]


if __name__ == "__main__":
    main()
