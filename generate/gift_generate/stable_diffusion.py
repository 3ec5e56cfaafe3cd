"""Any Stable Diffusion in diffusers format behind the Renderer protocol. The only importer of torch and diffusers in stage 1."""

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin, StableDiffusionPipeline
from safetensors import SafetensorError

from gift_generate.model_folder import check_model_folder, fingerprint
from gift_generate.renderer import ModelOptions, Rendered, RenderJob
from gift_shared.errors import ConfigError, unknown_name

FEWEST_STEPS_OF_OWN_SCHEDULER = 50  # below, the authors' code switches to multistep DPM-Solver (METHODS 3.1)
MOST_CACHED_CAPTIONS = 2048  # 0.1 MB each for SD v1.5 in half precision
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


class StableDiffusionRenderer:
    """A diffusers pipeline that draws every image's noise from its own generator and encodes every caption once.

    Captions are encoded one at a time, so an embedding cannot depend on which captions came before it or with it.
    """

    def __init__(self, options: ModelOptions) -> None:
        diffusers.utils.logging.set_verbosity_error()
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.disable_progress_bar()
        folder = _model_folder(options.model)
        check_model_folder(folder)
        _check_scheduler(options.scheduler)
        self._device = _device(options.device)
        is_on_cpu = self._device.type == "cpu"
        if is_on_cpu:
            torch.set_num_threads(options.cpu_threads)
        dtype_name = options.dtype
        if dtype_name == "auto":
            dtype_name = "float16" if self._device.type == "cuda" else "float32"
        # Cast after loading: the name of the dtype argument differs between versions, and the values are the same.
        self._pipeline = _load(folder).to(self._device, getattr(torch, dtype_name))
        self._pipeline.set_progress_bar_config(disable=True)
        # The fastest convolution is chosen by timing; which one wins may differ from run to run, and the bytes with it.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        self._own_scheduler = self._pipeline.scheduler
        self._scheduler_name = options.scheduler
        self._schedulers: dict[str, SchedulerMixin] = {}
        self._embeddings: dict[str, torch.Tensor] = {}
        self._generator_device = torch.device("cpu") if options.generator_device == "cpu" else self._device
        own_height, own_width = _own_size(self._pipeline)
        self._height = options.height or own_height
        self._width = options.width or own_width
        self.batch_size = options.batch_size
        self.settings: dict[str, Any] = {
            "model_sha256": fingerprint(folder),
            "dtype": dtype_name,
            "scheduler": options.scheduler or f"{type(self._own_scheduler).__name__}, below 50 steps multistep DPM-Solver",
            "cpu_threads": options.cpu_threads if is_on_cpu else None,
            "generator_device": self._generator_device.type,
            "has_safety_checker": self._pipeline.safety_checker is not None,
            "height": self._height,
            "width": self._width,
        }
        self.machine = {
            "model": options.model,
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.machine(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        }

    def overlong(self, captions: Iterable[str]) -> list[str]:
        """Captions of more tokens than the tokenizer's context, start and end included; the pipeline cuts them."""
        tokenizer = self._pipeline.tokenizer
        listed = list(captions)
        if not listed:
            return []
        token_ids = tokenizer(listed, truncation=False, padding=False, verbose=False).input_ids
        return [caption for caption, ids in zip(listed, token_ids, strict=True) if len(ids) > tokenizer.model_max_length]

    @torch.inference_mode()
    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        """Classifier-free guidance is on above a guidance scale of 1. Raises ConfigError if the batch does not fit in memory."""
        guidance_scale, denoising_steps = jobs[0].guidance_scale, jobs[0].denoising_steps
        assert all((job.guidance_scale, job.denoising_steps) == (guidance_scale, denoising_steps) for job in jobs)
        embeddings = torch.cat([self._embedding(job.caption) for job in jobs])
        unconditional = self._embedding("").expand(len(jobs), -1, -1) if guidance_scale > 1 else None
        self._pipeline.scheduler = self._scheduler_for(denoising_steps)
        try:
            result = self._pipeline(
                prompt_embeds=embeddings,
                negative_prompt_embeds=unconditional,
                height=self._height,
                width=self._width,
                guidance_scale=guidance_scale,
                num_inference_steps=denoising_steps,
                generator=[torch.Generator(self._generator_device).manual_seed(job.seed) for job in jobs],
                output_type="np",
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"A batch of {len(jobs)} does not fit in the device's memory: take a smaller --batch-size.") from error
        is_flagged = result.nsfw_content_detected or [False] * len(jobs)
        return [_as_rendered(image, bool(flag)) for image, flag in zip(result.images, is_flagged, strict=True)]

    def _embedding(self, caption: str) -> torch.Tensor:
        if caption not in self._embeddings:
            if len(self._embeddings) >= MOST_CACHED_CAPTIONS:
                del self._embeddings[next(iter(self._embeddings))]
            self._embeddings[caption] = self._pipeline.encode_prompt(caption, self._device, 1, False)[0]
        return self._embeddings[caption]

    def _scheduler_for(self, denoising_steps: int) -> SchedulerMixin:
        name = self._scheduler_name
        if name is None:
            if denoising_steps >= FEWEST_STEPS_OF_OWN_SCHEDULER:
                return self._own_scheduler
            name = DPMSolverMultistepScheduler.__name__
        if name not in self._schedulers:
            self._schedulers[name] = getattr(diffusers, name).from_config(self._own_scheduler.config)
        return self._schedulers[name]


def _as_rendered(image: np.ndarray, is_flagged: bool) -> Rendered:
    is_finite = bool(np.isfinite(image).all())
    pixels = (np.nan_to_num(image) * 255).round().clip(0, 255).astype(np.uint8)
    return Rendered(pixels, is_flagged, is_finite)


def _model_folder(model: str) -> Path:
    if model == "mini":
        from gift_mini.locations import stable_diffusion_folder

        return Path(stable_diffusion_folder())
    if Path(model).is_dir():
        return Path(model)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ConfigError(f"--model {model!r} is no folder; expected a folder in diffusers format, a hub id like owner/name, or mini.")
    try:
        return Path(StableDiffusionPipeline.download(model, use_safetensors=True))
    except LOADING_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk or missing rights, not a wrong name
        raise ConfigError(f"--model {model!r} is no folder here and cannot be had from the hub: {_first_line(error)}") from error


def _load(folder: Path) -> StableDiffusionPipeline:
    try:
        return StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except LOADING_ERRORS as error:
        raise ConfigError(f"{folder} cannot be loaded as a Stable Diffusion: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _own_size(pipeline: StableDiffusionPipeline) -> tuple[int, int]:
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _check_scheduler(name: str | None) -> None:
    valid = [entry for entry in dir(diffusers) if entry.endswith("Scheduler") and not entry.startswith("Flax")]
    if name is not None and name not in valid:
        raise ConfigError(unknown_name("scheduler", name, valid))


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ConfigError(f"--device {name!r} is none: expected auto, cpu, cuda, cuda:1 ... or mps.") from error
        is_there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(device.type, lambda: True)()
        if not is_there:
            raise ConfigError(f"--device {name}: this machine has no such device that torch can use; try --device auto.")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
