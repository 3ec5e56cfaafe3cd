"""Families whose denoiser is a transformer: Stable Diffusion 3, FLUX, PixArt and Sana."""

import inspect
import math
from typing import Any

from gift_generate.rendering.families.base import Batch, Encoded, EncodingFamily, Pipeline, Size, size_of_latents


class StableDiffusion3(EncodingFamily):
    """SD 3 and SD 3.5: two CLIPs and T5, which a copy may lack."""

    half = "bfloat16"
    guidance_tensors = ("prompt_embeds", "pooled_prompt_embeds")
    needs = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "transformer", "vae", "scheduler")
    may_lack = ("text_encoder_3", "tokenizer_3")
    LONGEST_TEXT = 256  # tokens of T5, the pipeline's own number

    @property
    def own_size(self) -> Size | None:
        """As the transformer's configuration has it."""
        return size_of_latents(self.pipeline, self.pipeline.transformer.config.sample_size)

    @property
    def size_step(self) -> int:
        """A patch of latents."""
        return int(self.pipeline.vae_scale_factor * self.pipeline.transformer.config.patch_size)

    @property
    def reader(self) -> tuple[Any, int] | None:
        """T5, which reads more of a caption than CLIP, where it is there."""
        if self.pipeline.text_encoder_3 is None or self.pipeline.tokenizer_3 is None:
            return self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length
        return self.pipeline.tokenizer_3, self.LONGEST_TEXT

    def encode(self, text: str) -> Encoded:
        """Hidden states [1, 77 + 256, D] and pooled text [1, P]."""
        encoded = self.pipeline.encode_prompt(
            text, None, None, device=self.pipeline.device, do_classifier_free_guidance=False, max_sequence_length=self.LONGEST_TEXT
        )
        return {"prompt_embeds": encoded[0], "pooled_prompt_embeds": encoded[2]}


class Flux(EncodingFamily):
    """FLUX.1: guidance is a number that the transformer of `dev` takes in, and nothing to that of `schnell`."""

    half = "bfloat16"
    takes_negative_prompt = False
    needs = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "transformer", "vae", "scheduler")

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self.takes_guidance = bool(pipeline.transformer.config.guidance_embeds)

    @property
    def own_size(self) -> Size | None:
        """The pipeline's own number: the configuration has none."""
        return size_of_latents(self.pipeline, self.pipeline.default_sample_size)

    @property
    def size_step(self) -> int:
        """A patch of two latents a side."""
        return int(self.pipeline.vae_scale_factor * 2)

    @property
    def longest_text(self) -> int:
        """Tokens of T5: `schnell` was trained for half of what `dev` reads."""
        return 512 if self.takes_guidance else 256

    @property
    def reader(self) -> tuple[Any, int] | None:
        """T5; CLIP gives the pooled text alone."""
        return self.pipeline.tokenizer_2, self.longest_text

    def is_guided(self, guidance_scale: float) -> bool:
        """Never by a second pass."""
        return False

    def encode(self, text: str) -> Encoded:
        """Hidden states of T5 [1, N, D] and CLIP's pooled text [1, P]."""
        hidden, pooled, _ = self.pipeline.encode_prompt(text, None, device=self.pipeline.device, max_sequence_length=self.longest_text)
        return {"prompt_embeds": hidden, "pooled_prompt_embeds": pooled}


class _MaskedText(EncodingFamily):
    """One text encoder, whose padding a mask hides. Pictures have the size asked for: no other one is made and scaled."""

    needs = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")

    @property
    def own_size(self) -> Size | None:
        """As the transformer's configuration has it."""
        return size_of_latents(self.pipeline, self.pipeline.transformer.config.sample_size)

    @property
    def longest_text(self) -> int:
        """Tokens, the pipeline's own number."""
        return int(_default(self.pipeline.__call__, "max_sequence_length"))

    @property
    def reader(self) -> tuple[Any, int] | None:
        """The one there is."""
        return self.pipeline.tokenizer, self.longest_text

    def encode(self, text: str) -> Encoded:
        """Hidden states [1, N, D] and their mask [1, N]."""
        return self._masked(text)

    def _masked(self, text: str, **others: Any) -> Encoded:
        hidden, mask, *_ = self.pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, device=self.pipeline.device, max_sequence_length=self.longest_text, **others
        )
        return {"prompt_embeds": hidden, "prompt_attention_mask": mask}

    def extra_arguments(self, batch: Batch) -> dict[str, Any]:
        """`clean_caption` needs packages that may be missing, and captions are clean."""
        return {"negative_prompt": None, "clean_caption": False, "use_resolution_binning": False}


class PixArt(_MaskedText):
    """PixArt-alpha and PixArt-sigma: T5."""

    @property
    def size_step(self) -> int:
        """A patch of latents, and what the pipeline asks for."""
        return math.lcm(8, self.pipeline.vae_scale_factor * self.pipeline.transformer.config.patch_size)


class Sana(_MaskedText):
    """Sana: a language model reads the caption behind an instruction, which the pipeline has at hand."""

    half = "bfloat16"

    @property
    def size_step(self) -> int:
        """A patch of latents, and what the pipeline asks for."""
        return math.lcm(32, self.pipeline.vae_scale_factor * self.pipeline.transformer.config.patch_size)

    def encode(self, text: str) -> Encoded:
        """Behind the instruction, of which the masked states keep nothing but what they have taken in."""
        return self._masked(text, complex_human_instruction=_default(self.pipeline.__call__, "complex_human_instruction"))

    def encode_negative(self, text: str) -> Encoded:
        """Without the instruction."""
        return self.remembered(f"negative {text}", lambda: self._masked(text, complex_human_instruction=None))


def _default(call: Any, name: str) -> Any:
    return inspect.signature(call).parameters[name].default
