"""Any text-to-image checkpoint of diffusers as a Renderer: a family says how it is asked, solvers which scheduler it is asked with."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from gift_generate.rendering.approximations import FeatureReuse, guidance_ends
from gift_generate.rendering.batch_size import largest_batch, largest_batch_on_cpu
from gift_generate.rendering.checkpoint import find_checkpoint
from gift_generate.rendering.compilation import compile_pipeline
from gift_generate.rendering.devices import find_device, is_out_of_memory
from gift_generate.rendering.exact_savings import compute_text_once, feed_forward_in_pieces, first_layers_once
from gift_generate.rendering.families.base import Batch, Family, Images
from gift_generate.rendering.families.registry import family_of
from gift_generate.rendering.image_size import image_size
from gift_generate.rendering.loading import be_quiet, infer_configuration, judge, load_pipeline, vae_sha256
from gift_generate.rendering.lora_weights import SourceWeights
from gift_generate.rendering.loras import Lora, files_of
from gift_generate.rendering.model_card import license_of
from gift_generate.rendering.model_folder import file_sha256
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.onednn import has_onednn, multiply_by_onednn
from gift_generate.rendering.pixels import as_bytes
from gift_generate.rendering.renderer import BatchConstants, OutOfMemory, Rendered, Renderer, RenderJob
from gift_generate.rendering.safety import show_on_device
from gift_generate.rendering.solvers import Solvers
from gift_shared.errors import ConfigError, MachineError, first_line
from gift_shared.processor import favours_onednn, processor_name

MOST_TWIN_DIFFERENCE = 2.0  # of 255, on average, between pictures of one caption and seed: rounding is far below, other noise far above
TRIAL_STEPS = 2
TRIAL_SIDE = 64  # pixels at most, unless the family's sizes are coarser
# What a pipeline's own code raises for parts, sizes or numbers that do not go together.
RENDERING_ERRORS = (ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError, LookupError, AssertionError, ImportError)


class DiffusersRenderer(Renderer):
    """A pipeline of diffusers that draws every image's noise from its own generator.

    Where its family allows, captions are encoded one at a time, so an embedding cannot depend on which captions came before or with it.
    """

    def __init__(self, options: ModelOptions) -> None:
        be_quiet()
        options = self._options = replace(options, loras=files_of(options.loras or ()))
        self._device = find_device(options.device)
        if self._device.type == "cpu":
            torch.set_num_threads(options.cpu_threads)
        checkpoint = find_checkpoint(options, judge, infer_configuration)
        family = family_of(checkpoint.index.class_name)
        self._dtype_name = options.dtype
        if options.dtype == "auto":
            self._dtype_name = family.half if self._device.type == "cuda" else "float32"
        self._pipeline = load_pipeline(checkpoint, options, getattr(torch, self._dtype_name))
        self._by_source = SourceWeights(self._pipeline, [lora for lora in options.loras or () if lora.source is not None])
        self._pipeline.to(self._device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._family: Family = family(self._pipeline)
        _require_possible(self._family, options)
        _speed_up(self._family, options)
        show_on_device(self._pipeline)
        self._reuse = FeatureReuse(self._pipeline.unet, options.feature_interval) if options.feature_interval > 1 else None
        self._solvers = Solvers(self._family, options)
        self._generator_device = torch.device("cpu") if options.generator_device == "cpu" else self._device
        self._size = image_size(self._family, options)
        self._batch_size = options.batch_size
        self._checkpoint = checkpoint
        self._sha256 = checkpoint.sha256()
        self._license = license_of(checkpoint.folder)

    @property
    def settings(self) -> dict[str, Any]:
        """What is off unless asked for is named only where it is on; so is a pipeline that is not Stable Diffusion's."""
        options = self._options
        asked = {
            "pipeline": self._checkpoint.index.class_name if self._checkpoint.index.class_name != "StableDiffusionPipeline" else None,
            "variant": self._checkpoint.variant,
            "vae_sha256": vae_sha256(options.vae) if options.vae is not None else None,
            "loras": [_lora_settings(lora) for lora in options.loras or ()],
            "negative_prompt": options.negative_prompt,
            "compiled": options.is_compiled,
            "decodes_one_by_one": options.decodes_one_by_one,
            "guidance_until": options.guidance_until if options.guidance_until < 1 else None,
            "feature_interval": options.feature_interval if options.feature_interval > 1 else None,
        }
        return {
            "model_sha256": self._sha256,
            "dtype": self._dtype_name,
            "scheduler": self._solvers.name,
            "cpu_threads": options.cpu_threads if self._device.type == "cpu" else None,
            "generator_device": self._generator_device.type,
            "has_safety_checker": getattr(self._pipeline, "safety_checker", None) is not None,
            "height": self._size[0] or None,
            "width": self._size[1] or None,
            **{name: value for name, value in asked.items() if value},
        }

    @property
    def machine(self) -> dict[str, str]:
        """The model by its name, its licence where its card tells it, device, what torch takes of the processor, and library versions."""
        options = self._options
        asked = {
            "revision": options.revision,
            "commit": self._checkpoint.commit,
            "vae": options.vae,
            "loras": ", ".join(map(str, options.loras or ())),
        }
        return {
            "model": options.model,
            **self._license,
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else processor_name(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),  # also where a GPU renders: noise is drawn on the CPU
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            **{name: str(value) for name, value in asked.items() if value},
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
        self._render([RenderJob("", 0, 7.5, TRIAL_STEPS)] * batch_size, batch_size)

    def adaptation_of(self, source: str) -> str:
        """The source itself, if a LoRA was given for it."""
        return source if source in self._by_source.sources else ""

    def overlong(self, captions: Iterable[str]) -> list[str]:
        """Captions of more tokens than the text encoder reads, start and end included; the pipeline cuts them."""
        listed = list(captions)
        if not listed or self._family.reader is None:
            return []
        tokenizer, limit = self._family.reader
        token_ids = tokenizer(listed, truncation=False, padding=False, verbose=False).input_ids
        return [caption for caption, ids in zip(listed, token_ids, strict=True) if len(ids) > limit]

    def check(self, constants: Sequence[BatchConstants]) -> list[str]:
        """The solver for each of the plan's numbers; a pair of small images is made, which must come out equal."""
        lines: dict[str, None] = {}
        for each in constants:
            self._require_size(each.height, each.width)
            lines.update(dict.fromkeys(self._solvers.check(each)))
            self._require_use_of_negatives(each)
        if self._options.negative_prompt and constants and not any(self._family.is_guided(each.guidance_scale) for each in constants):
            raise ConfigError("--negative-prompt changes nothing: no image of the plan is guided away from it. Leave it out.")
        if not self._family.is_unet:
            lines["savings none: those that change nothing are made for U-Nets (docs/checkpoints.md)"] = None
        if not self._options.is_compiled:  # a compiled graph is made for the real size and batch
            for each in {id(self._solvers.for_steps(each.denoising_steps)): each for each in constants}.values():
                self._require_own_noise(each)
        return list(lines)

    @property
    def _is_saving(self) -> bool:
        return self._family.is_unet and not self._options.is_compiled

    def _require_size(self, height: int | None, width: int | None) -> None:
        step = self._family.size_step
        for side in (height, width):
            if side is not None and not self._family.takes_size:
                raise ConfigError(f"A {type(self._pipeline).__name__} takes no size: leave --height and --width, or the plan's, out.")
            if side is not None and (side < step or side % step):
                raise ConfigError(f"Heights and widths are multiples of {step} pixels with this model, found {side}.")

    def _require_use_of_negatives(self, constants: BatchConstants) -> None:
        has_any = constants.has_negative_prompt or bool(self._options.negative_prompt)
        if has_any and not self._family.takes_negative_prompt:
            raise ConfigError(f"A {type(self._pipeline).__name__} takes no negative prompt: leave it out.")

    @torch.inference_mode()
    def _require_own_noise(self, constants: BatchConstants) -> None:
        """Two images of one caption and seed in one batch are one picture, unless noise is drawn that no image's seed decides."""
        steps = min(constants.denoising_steps, TRIAL_STEPS) if self._family.is_listed else constants.denoising_steps
        job = RenderJob("", 0, constants.guidance_scale, steps, height=self._trial_side(0), width=self._trial_side(1))
        try:
            first, second = self._render([job, job], 2)
        except RENDERING_ERRORS as error:
            if is_out_of_memory(error):
                return  # whoever renders knows what to do
            advice = " Try --dtype float32." if self._dtype_name != "float32" else ""
            raise ConfigError(f"{self._options.model} makes no image: {first_line(error)}{advice}") from error
        difference = np.abs(first.pixels.astype(int) - second.pixels.astype(int)).mean()
        if first.is_finite and second.is_finite and difference > MOST_TWIN_DIFFERENCE:
            raise ConfigError(
                f"{self._options.model}: two images of one caption and seed differ, so {type(self._pipeline).__name__} with this scheduler "
                "draws noise that no seed of an image decides. Name another --scheduler."
            )

    def _trial_side(self, axis: int) -> int | None:
        """Small, and possible."""
        if not self._family.takes_size:
            return None
        step = self._family.size_step
        return min(self._size[axis], max(step, TRIAL_SIDE // step * step))

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
        constants = _constants(jobs[0])
        assert all(_constants(job) == constants and job.adaptation == jobs[0].adaptation for job in jobs)
        if self._by_source.use(jobs[0].adaptation):
            self._family.forget_texts()
        num_jobs = len(jobs)
        if self._options.is_compiled:  # a graph is compiled for one size: a short batch is filled up with its last job
            jobs = [*jobs, *[jobs[-1]] * (batch_size - num_jobs)]
        solver = self._solvers.for_steps(constants.denoising_steps)
        if solver is not None:
            self._pipeline.scheduler = solver
        if self._reuse is not None:
            self._reuse.begin()
        # A compiled graph is made for the layers as they are.
        with first_layers_once(self._pipeline) if self._is_saving else contextlib.nullcontext():
            images = self._family.images(self._batch(jobs, constants))
        return _as_rendered(images)[:num_jobs]

    def _batch(self, jobs: Sequence[RenderJob], constants: BatchConstants) -> Batch:
        is_guided = self._family.is_guided(constants.guidance_scale)
        ends_early = is_guided and self._options.guidance_until < 1
        return Batch(
            captions=[job.caption for job in jobs],
            negative_prompts=[job.negative_prompt or self._options.negative_prompt for job in jobs],
            generators=[torch.Generator(self._generator_device).manual_seed(job.seed) for job in jobs],
            guidance_scale=constants.guidance_scale,
            denoising_steps=constants.denoising_steps,
            size=(constants.height or self._size[0], constants.width or self._size[1]),
            step_end=guidance_ends(self._options.guidance_until, self._family.guidance_tensors or ()) if ends_early else None,
        )


def _constants(job: RenderJob) -> BatchConstants:
    return BatchConstants(job.guidance_scale, job.denoising_steps, job.height, job.width)


def _lora_settings(lora: Lora) -> dict[str, Any]:
    for_one = {} if lora.source is None else {"source": lora.source}
    return {"sha256": file_sha256(lora.path), "scale": lora.scale, **for_one}


def _as_rendered(images: Images) -> list[Rendered]:
    """They become bytes on the device: a fraction of the floats crosses over."""
    is_finite = images.pictures.isfinite().flatten(1).all(dim=1).tolist()
    pixels = as_bytes(images.pictures).permute(0, 2, 3, 1).cpu().numpy()
    return [Rendered(*one) for one in zip(np.ascontiguousarray(pixels), images.is_flagged, is_finite, strict=True)]


def _require_possible(family: Family, options: ModelOptions) -> None:
    """Raises ConfigError for an option that this family has no use for."""
    kind = type(family.pipeline).__name__
    if options.feature_interval > 1 and not family.is_unet:
        raise ConfigError(f"--feature-interval reuses a U-Net's features, and a {kind} is asked without: leave it out.")
    if options.guidance_until < 1 and family.guidance_tensors is None:
        raise ConfigError(f"--guidance-until: the guidance of a {kind} cannot end early; leave it out.")
    decoder = getattr(family.pipeline, "vae", None)
    if options.is_compiled and (family.denoiser is None or getattr(decoder, "decoder", None) is None):
        raise ConfigError(f"--compile: a {kind} has no denoiser and image decoder that could be compiled; leave it out.")
    if options.decodes_one_by_one and not hasattr(decoder, "enable_slicing"):
        raise ConfigError(f"--vae-slices: the image decoder of this {kind} cannot; leave it out.")


def _speed_up(family: Family, options: ModelOptions) -> None:
    """Same values up to the last bits.

    On a GPU memory laid out as its convolutions like it, and one product for queries, keys and values: a CPU gains nothing from either
    (measured on the mini model). On a CPU pieces that fit its cache.
    """
    # The fastest convolution is chosen by timing; which one wins may differ from run to run, and the bytes with it.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    pipeline = family.pipeline
    if pipeline.device.type == "cuda" and family.is_unet:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        # One product has weights of its own, which are not those that are exchanged for a source's.
        if hasattr(pipeline, "fuse_qkv_projections") and all(lora.source is None for lora in options.loras or ()):
            pipeline.fuse_qkv_projections(vae=isinstance(pipeline.vae, diffusers.AutoencoderKL))
    if options.decodes_one_by_one:
        pipeline.vae.enable_slicing()
    if options.is_compiled:
        compile_pipeline(pipeline, family.denoiser)
    elif family.is_unet:  # a compiled graph does not look at which tensor it is given, and is laid out by its compiler
        if pipeline.device.type == "cpu" and has_onednn() and favours_onednn():
            multiply_by_onednn(pipeline.unet)
        compute_text_once(pipeline.unet)
        if pipeline.device.type == "cpu":
            feed_forward_in_pieces(pipeline.unet)
