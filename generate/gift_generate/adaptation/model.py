"""Stable Diffusion whose weights stand still, and beside them the LoRA that learns. The only importer of peft."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.training_utils import cast_training_params
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from gift_generate.adaptation.denoising import denoising_loss, training_schedule
from gift_generate.adaptation.options import AdaptOptions
from gift_generate.adaptation.record import full_disk_told
from gift_generate.rendering.checkpoint import find_checkpoint
from gift_generate.rendering.devices import find_device
from gift_generate.rendering.families.registry import family_of
from gift_generate.rendering.families.unet import StableDiffusion
from gift_generate.rendering.image_size import image_size
from gift_generate.rendering.loading import be_quiet, infer_configuration, judge, load_pipeline
from gift_generate.rendering.model_folder import ModelIndex
from gift_generate.rendering.solvers import distilled
from gift_shared.atomic import atomic_path
from gift_shared.errors import ConfigError
from gift_shared.processor import processor_name
from gift_shared.version import installed_versions

ATTENTION = {"unet": ("to_q", "to_k", "to_v", "to_out.0"), "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj")}


class AdaptedModel:
    """A model that captions are painted with, whose LoRA is begun, trained and saved task after task.

    Raises: ConfigError for a checkpoint that is not whole, and for one whose LoRAs are not trained here.
    """

    def __init__(self, options: AdaptOptions) -> None:
        be_quiet()
        self._options = options
        self.device = find_device(options.device)
        if self.device.type == "cpu":
            torch.set_num_threads(options.cpu_threads)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        self._is_bf16 = _is_bf16(options.mixed_precision, self.device)
        self._checkpoint = find_checkpoint(options.model_options, _judge, infer_configuration)
        self._sha256 = self._checkpoint.sha256()
        self._pipeline = load_pipeline(self._checkpoint, options.model_options, torch.float32)
        self._family = StableDiffusion(self._pipeline)
        _require_trainable(self._family, options)
        self._schedule = training_schedule(self._pipeline.scheduler, options.model)
        self.size = image_size(self._family, options.model_options)
        for name in ("vae", "unet", "text_encoder"):
            getattr(self._pipeline, name).requires_grad_(False).eval()
        self._pipeline.to(self.device)
        if self._is_bf16:
            self._pipeline.unet.to(torch.bfloat16)
        if options.gradient_checkpointing:
            self._pipeline.unet.enable_gradient_checkpointing()

    @property
    def settings(self) -> dict[str, Any]:
        """What of a LoRA's bytes the model and the way it runs decide."""
        return {
            "model_sha256": self._sha256,
            "height": self.size[0],
            "width": self.size[1],
            "mixed_precision": "bf16" if self._is_bf16 else "no",
            "cpu_threads": self._options.cpu_threads if self.device.type == "cpu" else None,
        }

    @property
    def machine(self) -> dict[str, str]:
        """The model by its name, device and versions, for the record."""
        asked = {"order": self._options.order, "revision": self._options.revision, "commit": self._checkpoint.commit}
        return {
            "model": self._options.model,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else processor_name(),
            **installed_versions(("torch", "diffusers", "transformers", "peft")),
            **{name: value for name, value in asked.items() if value is not None},
        }

    @property
    def encoder(self) -> Any:
        """What turns images into latents; float32."""
        return self._pipeline.vae

    @property
    def num_timesteps(self) -> int:
        """Strengths of noise."""
        return int(self._schedule.config.num_train_timesteps)

    def begin(self, seed: int) -> dict[str, torch.nn.Parameter]:
        """Lay a LoRA beside the weights that changes nothing yet: one of its matrices is random, the other 0.

        Returns: what is to be trained, float32, by name.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in self._parts:
                rank = self._options.rank
                config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(ATTENTION[name]))
                part = getattr(self._pipeline, name)
                part.add_adapter(config)
                cast_training_params(part, torch.float32)
        return {
            f"{name}.{parameter}": weight
            for name in self._parts
            for parameter, weight in getattr(self._pipeline, name).named_parameters()
            if weight.requires_grad
        }

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor, captions: Sequence[str]) -> Tensor:
        """See `denoising_loss`; captions: [B], "" for an image that is painted without."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            texts = self._read(captions)

            def predict(noisy: Tensor, at: Tensor) -> Tensor:
                unet = self._pipeline.unet
                answer: Tensor = unet(noisy.to(unet.dtype), at, texts.to(unet.dtype), return_dict=False)[0]
                return answer

            return denoising_loss(predict, self._schedule, latents, noise, timesteps)

    def save(self, path: Path) -> None:
        """Write the LoRA as `load_lora_weights` of diffusers takes it, whole or not at all."""
        writer: Any = diffusers.StableDiffusionPipeline
        renamed: Any = convert_state_dict_to_diffusers  # it has no types
        weights = {f"{name}_lora_layers": renamed(get_peft_model_state_dict(getattr(self._pipeline, name))) for name in self._parts}
        with atomic_path(path) as temporary, full_disk_told(path):
            writer.save_lora_weights(temporary.parent, weight_name=temporary.name, **weights)

    def end(self) -> None:
        """Take the LoRA away: the weights are the checkpoint's again."""
        self._pipeline.unload_lora_weights()

    @property
    def _parts(self) -> list[str]:
        return ["unet", "text_encoder"] if self._options.trains_text_encoder else ["unet"]

    def _read(self, captions: Sequence[str]) -> Tensor:
        """Hidden states [B, L, D]; while the text encoder stands still, of each caption once, alone."""
        if self._options.trains_text_encoder:
            states: Tensor = self._pipeline.encode_prompt(list(captions), self.device, 1, False)[0]
            return states
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):  # as a render reads them
            return torch.cat([self._family.encoded(caption)["prompt_embeds"] for caption in captions])


def _judge(index: ModelIndex) -> None:
    judge(index)
    if family_of(index.class_name) is not StableDiffusion:
        raise ConfigError(
            f"{index.path} describes a {index.class_name}: gift-generate adapt trains LoRAs of Stable Diffusion 1 and 2 alone. "
            "render --lora takes one of this model that was trained elsewhere."
        )


def _require_trainable(family: StableDiffusion, options: AdaptOptions) -> None:
    """Raises ConfigError for a model that is of the right kind and yet does not learn so."""
    pipeline = family.pipeline
    made_for_few_steps = distilled(family, options.model_options)
    if made_for_few_steps is not None:
        raise ConfigError(
            f"--model {options.model} is distilled ({made_for_few_steps.because}), which training on noise of any strength would undo: "
            "train the model that it was distilled from."
        )
    num_latents = pipeline.vae.config.get("latent_channels")
    if not isinstance(pipeline.vae, diffusers.AutoencoderKL):
        raise ConfigError(f"--model {options.model}: its {type(pipeline.vae).__name__} makes no latents to train on.")
    if pipeline.unet.config.in_channels != num_latents:
        raise ConfigError(
            f"--model {options.model}: its U-Net takes {pipeline.unet.config.in_channels} channels and its image encoder gives "
            f"{num_latents}, so it is no plain text-to-image model."
        )
    if not isinstance(pipeline.text_encoder, transformers.CLIPTextModel):
        raise ConfigError(f"--model {options.model}: its text encoder is a {type(pipeline.text_encoder).__name__} and no CLIPTextModel.")


def _is_bf16(asked: str, device: torch.device) -> bool:
    if asked == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return asked == "bf16"
