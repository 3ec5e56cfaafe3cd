"""Ways to denoise with less work and other pictures: off unless asked for, and part of what binds an output folder."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]  # what a diffusers pipeline calls after each step


def guidance_ends(fraction: float, halved: Sequence[str] = ("prompt_embeds",)) -> StepEnd:
    """Guide the first `fraction` of the steps only; the rest ask the denoiser for the captions alone, which halves its batch.

    `halved` are the tensors of a step that have a half for the negative prompts and one for the captions.

    Kynkäänniemi et al. (arXiv 2404.07724) guide an interval of noise levels; this is the end of it that saves time, since guidance
    hardly matters at low noise. Their other end, no guidance at the highest noise, is not followed.
    """

    def after_step(pipeline: Any, step: int, _: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step + 1 == math.ceil(fraction * pipeline.num_timesteps):
            pipeline._guidance_scale = 1.0  # the way that diffusers' own guide shows
            for name in halved:
                tensors[name] = tensors[name].chunk(2)[1]  # unconditional first, captions second
        return tensors

    return after_step


class FeatureReuse:
    """Run the whole U-Net at every `interval`-th step, and between them only what is nearest to its input and output.

    DeepCache (Ma et al., arXiv 2312.00858) with its shallowest branch: the last layer of the last up block gets this step's first
    convolution beside the deep features of the last whole step. Replaces the U-Net's forward; `begin` belongs before each batch.
    """

    def __init__(self, unet: Any, interval: int) -> None:
        self._unet = unet
        self._interval = interval
        self._whole_forward = unet.forward
        self._step = 0
        self._deep: Tensor | None = None
        unet.forward = self._forward
        self._unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(self._keep_deep)

    def begin(self) -> None:
        """Forget the batch before."""
        self._step = 0
        self._deep = None

    def _forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any) -> Any:
        step, self._step = self._step, self._step + 1
        if step % self._interval == 0:
            return self._whole_forward(sample, timestep, encoder_hidden_states, **others)
        return (self._shallow_forward(sample, timestep, encoder_hidden_states, others),)

    def _keep_deep(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """What the layer reads is deep features and the first convolution, one after the other along the channels."""
        self._deep = arguments[0][:, : -self._unet.conv_in.out_channels]

    def _shallow_forward(self, sample: Tensor, timestep: Tensor, text: Tensor, others: dict[str, Any]) -> Tensor:
        unet = self._unet
        assert self._deep is not None
        deep = self._deep[-len(sample) :]  # guidance may have ended since: the captions' half is the second
        embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), others.get("timestep_cond"))
        conditions = others.get("added_cond_kwargs") or {}
        augmentation = unet.get_aug_embed(emb=embedding, encoder_hidden_states=text, added_cond_kwargs=conditions)
        if augmentation is not None:
            embedding = embedding + augmentation
        last = unet.up_blocks[-1]
        hidden = last.resnets[-1](torch.cat([deep, unet.conv_in(sample)], dim=1), embedding)
        if getattr(last, "attentions", None):
            hidden = last.attentions[-1](hidden, encoder_hidden_states=text, return_dict=False)[0]
        answer: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return answer
