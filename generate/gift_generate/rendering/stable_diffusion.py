"""Any Stable Diffusion in diffusers format as a Renderer. The only importer of diffusers in stage 1."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors import SafetensorError

from gift_generate.rendering.approximations import FeatureReuse, guidance_ends
from gift_generate.rendering.batch_size import largest_batch, largest_batch_on_cpu
from gift_generate.rendering.compilation import compile_pipeline
from gift_generate.rendering.exact_savings import compute_text_once, feed_forward_in_pieces, first_layers_once
from gift_generate.rendering.model_card import license_of
from gift_generate.rendering.model_folder import check_model_folder, fingerprint
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.onednn import has_onednn, multiply_by_onednn
from gift_generate.rendering.renderer import OutOfMemory, Rendered, Renderer, RenderJob
from gift_shared.errors import ConfigError, MachineError, first_line, unknown_name
from gift_shared.processor import favours_onednn, processor_name

FEWEST_STEPS_OF_OWN_SCHEDULER = 50  # below, the authors' code switches to multistep DPM-Solver (METHODS 3.1)
MOST_CACHED_CAPTIONS = 2048  # 0.1 MB each for SD v1.5 in half precision
# cuDNN passes over every algorithm whose workspace does not fit, and then has none left; cuBLAS cannot make its handle.
OUT_OF_MEMORY = (
    "out of memory", "unable to find an engine", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory", "not enough memory",  # of a CPU
)  # fmt: skip
Pipeline = Any  # a StableDiffusionPipeline: its components are known at run time alone
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


class StableDiffusionRenderer(Renderer):
    """A diffusers pipeline that draws every image's noise from its own generator and encodes every caption once.

    Captions are encoded one at a time, so an embedding cannot depend on which captions came before it or with it.
    """

    def __init__(self, options: ModelOptions) -> None:
        for library in (diffusers, transformers):
            _be_quiet(library)
        folder = _model_folder(options.model)
        check_model_folder(folder)
        self._device = _device(options.device)
        if self._device.type == "cpu":
            torch.set_num_threads(options.cpu_threads)
        self._dtype_name = options.dtype
        if options.dtype == "auto":
            self._dtype_name = "float16" if self._device.type == "cuda" else "float32"
        # Cast after loading: the name of the dtype argument differs between versions, and the values are the same.
        self._pipeline = _load(folder).to(self._device, getattr(torch, self._dtype_name))
        self._pipeline.set_progress_bar_config(disable=True)
        _speed_up(self._pipeline, options)
        self._reuse = FeatureReuse(self._pipeline.unet, options.feature_interval) if options.feature_interval > 1 else None
        self._own_scheduler: Any = self._pipeline.scheduler
        self._options = options
        self._schedulers: dict[str, Any] = {}
        if options.scheduler is not None:
            self._other_scheduler(options.scheduler)  # a wrong name is told before work
        self._embeddings: dict[str, torch.Tensor] = {}
        self._generator_device = torch.device("cpu") if options.generator_device == "cpu" else self._device
        own_height, own_width = _own_size(self._pipeline)
        self._height = options.height or own_height
        self._width = options.width or own_width
        self._batch_size = options.batch_size
        self._model_sha256 = fingerprint(folder)
        self._license = license_of(folder)

    @property
    def settings(self) -> dict[str, Any]:
        """What is off unless asked for is named only where it is on."""
        options = self._options
        asked = {
            "compiled": options.is_compiled,
            "decodes_one_by_one": options.decodes_one_by_one,
            "guidance_until": options.guidance_until if options.guidance_until < 1 else None,
            "feature_interval": options.feature_interval if options.feature_interval > 1 else None,
        }
        return {
            "model_sha256": self._model_sha256,
            "dtype": self._dtype_name,
            "scheduler": options.scheduler or f"{type(self._own_scheduler).__name__}, below 50 steps multistep DPM-Solver",
            "cpu_threads": options.cpu_threads if self._device.type == "cpu" else None,
            "generator_device": self._generator_device.type,
            "has_safety_checker": self._pipeline.safety_checker is not None,
            "height": self._height,
            "width": self._width,
            **{name: value for name, value in asked.items() if value},
        }

    @property
    def machine(self) -> dict[str, str]:
        """The model by its name, its licence where its card tells it, device, what torch takes of the processor, and library versions."""
        return {
            "model": self._options.model,
            **self._license,
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else processor_name(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),  # also where a GPU renders: noise is drawn on the CPU
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        }

    @property
    def batch_size(self) -> int:
        """As asked; else the largest that the device holds, found out by rendering."""
        if self._batch_size is None:
            if self._device.type == "cuda":
                self._batch_size = largest_batch(self._fits)
            else:
                self._batch_size = largest_batch_on_cpu(self._try)
        return self._batch_size

    def adopt(self, settings: dict[str, Any]) -> None:
        """Take the batch size of the folder where none was asked for."""
        if self._options.batch_size is None and isinstance(settings.get("batch_size"), int):
            self._batch_size = settings["batch_size"]

    def _fits(self, batch_size: int) -> bool:
        try:
            self._try(batch_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            return False
        return True

    @torch.inference_mode()
    def _try(self, batch_size: int) -> None:
        """As much memory as any batch of this size takes: guidance on, two steps."""
        self._render([RenderJob("", 0, 7.5, 2)] * batch_size, batch_size)

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
        """Classifier-free guidance is on above a guidance scale of 1. Raises OutOfMemory if the batch does not fit in memory."""
        try:
            return self._render(jobs, self.batch_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        # Out here, where the error no longer holds what the batch took.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self._options.is_compiled:
            raise MachineError(f"A batch does not fit in the device's memory ({reason}), and --compile makes every batch as large.")
        raise OutOfMemory(reason)

    def _render(self, jobs: Sequence[RenderJob], batch_size: int) -> list[Rendered]:
        guidance_scale, denoising_steps = jobs[0].guidance_scale, jobs[0].denoising_steps
        assert all((job.guidance_scale, job.denoising_steps) == (guidance_scale, denoising_steps) for job in jobs)
        num_jobs = len(jobs)
        if self._options.is_compiled:  # a graph is compiled for one size: a short batch is filled up with its last job
            jobs = [*jobs, *[jobs[-1]] * (batch_size - num_jobs)]
        is_guided = guidance_scale > 1
        self._pipeline.scheduler = self._scheduler_for(denoising_steps)
        if self._reuse is not None:
            self._reuse.begin()
        ends_early = is_guided and self._options.guidance_until < 1
        # A compiled graph is made for the layers as they are.
        with contextlib.nullcontext() if self._options.is_compiled else first_layers_once(self._pipeline):
            result = self._pipeline(
                prompt_embeds=torch.cat([self._embedding(job.caption) for job in jobs]),
                negative_prompt_embeds=self._embedding("").expand(len(jobs), -1, -1) if is_guided else None,
                height=self._height,
                width=self._width,
                guidance_scale=guidance_scale,
                num_inference_steps=denoising_steps,
                generator=[torch.Generator(self._generator_device).manual_seed(job.seed) for job in jobs],
                output_type="pt",
                callback_on_step_end=guidance_ends(self._options.guidance_until) if ends_early else None,
                callback_on_step_end_tensor_inputs=["prompt_embeds"],
            )
        is_flagged = result.nsfw_content_detected or [False] * len(jobs)
        return _as_rendered(result.images, is_flagged)[:num_jobs]

    def _embedding(self, caption: str) -> torch.Tensor:
        if caption not in self._embeddings:
            if len(self._embeddings) >= MOST_CACHED_CAPTIONS:
                del self._embeddings[next(iter(self._embeddings))]
            self._embeddings[caption] = self._pipeline.encode_prompt(caption, self._device, 1, False)[0]
        return self._embeddings[caption]

    def _scheduler_for(self, denoising_steps: int) -> Any:
        if self._options.scheduler is not None:
            return self._other_scheduler(self._options.scheduler)
        if denoising_steps >= FEWEST_STEPS_OF_OWN_SCHEDULER:
            return self._own_scheduler
        return self._other_scheduler(DPMSolverMultistepScheduler.__name__)

    def _other_scheduler(self, name: str) -> Any:
        """A scheduler set up as the checkpoint's own. Raises ConfigError if the two do not fit, or it needs a package that is not there."""
        valid = {kind.__name__: kind for kind in [type(self._own_scheduler), *self._own_scheduler.compatibles]}
        if name not in valid:
            raise ConfigError(unknown_name("scheduler for this model", name, sorted(valid)))
        if name not in self._schedulers:
            try:
                self._schedulers[name] = valid[name].from_config(self._own_scheduler.config)
            except ImportError as error:
                raise ConfigError(f"--scheduler {name} cannot be set up: {first_line(error)}") from error
        return self._schedulers[name]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, or a library of NVIDIA's behind it that has no error class of its own for this, found too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _be_quiet(library: Any) -> None:
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()


def _as_rendered(images: torch.Tensor, is_flagged: Sequence[bool]) -> list[Rendered]:
    """Images [B, 3, H, W], 0-1, any dtype. They become bytes on the device: a fraction of the floats crosses over."""
    images = images.float()
    is_finite = images.isfinite().flatten(1).all(dim=1).tolist()
    pixels = (images.nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Rendered(*one) for one in zip(np.ascontiguousarray(pixels), map(bool, is_flagged), is_finite, strict=True)]


def _speed_up(pipeline: Pipeline, options: ModelOptions) -> None:
    """Same values up to the last bits.

    On a GPU memory laid out as its convolutions like it, and one product for queries, keys and values: a CPU gains nothing from either
    (measured on the mini model). On a CPU pieces that fit its cache.
    """
    # The fastest convolution is chosen by timing; which one wins may differ from run to run, and the bytes with it.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if pipeline.device.type == "cuda":
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        pipeline.fuse_qkv_projections()
    if options.decodes_one_by_one:
        pipeline.vae.enable_slicing()
    if options.is_compiled:
        compile_pipeline(pipeline)
    else:  # a compiled graph does not look at which tensor it is given, and is laid out by its compiler
        if pipeline.device.type == "cpu" and has_onednn() and favours_onednn():
            multiply_by_onednn(pipeline.unet)
        compute_text_once(pipeline.unet)
        if pipeline.device.type == "cpu":
            feed_forward_in_pieces(pipeline.unet)


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
        raise ConfigError(f"--model {model!r} is no folder here and cannot be had from the hub: {first_line(error)}") from error


def _load(folder: Path) -> Pipeline:
    try:
        loader: Any = StableDiffusionPipeline  # from_pretrained is untyped
        return loader.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except LOADING_ERRORS as error:
        raise ConfigError(f"{folder} cannot be loaded as a Stable Diffusion: {first_line(error)}") from error


def _own_size(pipeline: Pipeline) -> tuple[int, int]:
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _device(name: str) -> torch.device:
    """`cuda` without a number is the GPU of this process among those of its node, as under torchrun and SLURM; so is auto."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is none: expected auto, cpu, cuda, cuda:1 ... or mps.") from error
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_there.get(device.type, True):
        raise ConfigError(f"--device {name}: this machine has no such device that torch can use; try --device auto.")
    if device.type == "cuda" and device.index is None:
        local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return device
