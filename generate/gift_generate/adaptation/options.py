"""What an adaptation is told: the options of the command and the object that the training reads. Imports nothing heavy."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gift_generate.rendering.model_options import DEVICES, ModelOptions
from gift_shared.errors import ConfigError, unknown_name

PRECISIONS = ("auto", "no", "bf16")


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """Which tasks, which model, and how it learns them. Raises ConfigError for what no training can do."""

    task: Annotated[list[str] | None, typer.Option(help="A task to train a LoRA for; repeatable.  [default: every task of --order]")] = None
    # None: datasets as their manifests have them.
    order: Annotated[str | None, typer.Option(help="Order of the tasks: gives templates, shots and steps where it has its own.")] = None
    data_root: Annotated[Path, typer.Option(help="Folder of the datasets, as gift-train's.")] = Path("data")
    model: Annotated[str, typer.Option(help="Stable Diffusion 1 or 2: hub id, folder in diffusers format, .safetensors file, or mini.")] = (
        "mini"
    )
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.  [default: main]")] = None
    variant: Annotated[str | None, typer.Option(help="Weights named so, as fp16 in model.fp16.safetensors.  [default: the plain ones]")] = (
        None
    )
    model_config: Annotated[
        Path | None,
        typer.Option(help="For a single file: a folder in diffusers format of the same architecture, for all but the weights."),
    ] = None
    rank: Annotated[int, typer.Option(help="Of the LoRA's matrices.")] = 16
    trains_text_encoder: Annotated[bool, typer.Option("--text-encoder", help="Train the text encoder's attention too.")] = False
    steps: Annotated[int, typer.Option(help="Updates a task.")] = 1000
    batch_size: Annotated[int, typer.Option(help="Images an update.")] = 8
    learning_rate: Annotated[float, typer.Option(help="Of AdamW at the first update; falls to 0 as a cosine.")] = 1e-4
    caption_dropout: Annotated[float, typer.Option(help="Share of captions that are left empty, for guidance.")] = 0.1
    seed: Annotated[
        int, typer.Option(help="Decides the LoRA's start, batches and noise; in an order with shots the images, as a run's.")
    ] = 42
    height: Annotated[int | None, typer.Option(help="Pixels of the training images.  [default: the model's]")] = None
    width: Annotated[int | None, typer.Option(help="Pixels of the training images.  [default: the model's]")] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (each process of a node takes its own), cuda:1, mps.")] = "auto"
    mixed_precision: Annotated[str, typer.Option(help="no, bf16, or auto: bf16 on a GPU that has it. The LoRA itself is fp32.")] = "auto"
    cpu_threads: Annotated[int, typer.Option("--threads", help="CPU threads, where the model runs on the CPU; changes last bits.")] = 1
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for a third more time; same numbers.")
    ] = False
    checkpoint_every: Annotated[
        int, typer.Option(help="Updates from one saved state to the next, from which a killed training goes on.")
    ] = 100

    def __post_init__(self) -> None:
        if not self.task and self.order is None:
            raise ConfigError("Which task? Give --task, or --order for all tasks of an order.")
        for flag, number in (
            ("--rank", self.rank), ("--steps", self.steps), ("--batch-size", self.batch_size), ("--threads", self.cpu_threads),
            ("--checkpoint-every", self.checkpoint_every),
        ):  # fmt: skip
            if number < 1:
                raise ConfigError(f"{flag} must be at least 1, found {number}.")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"--learning-rate must be above 0, found {self.learning_rate:g}.")
        if not 0 <= self.caption_dropout < 1:
            raise ConfigError(f"--caption-dropout must be at least 0 and below 1, found {self.caption_dropout:g}.")
        for kind, value, valid in (
            ("device", self.device.partition(":")[0], DEVICES),
            ("mixed precision", self.mixed_precision, PRECISIONS),
        ):
            if value not in valid:
                raise ConfigError(unknown_name(kind, value, valid))

    @property
    def model_options(self) -> ModelOptions:
        """As a render's: the model whole and in float32, without what a training has no use for."""
        return ModelOptions(
            model=self.model, revision=self.revision, variant=self.variant, model_config=self.model_config, device=self.device,
            dtype="float32", cpu_threads=self.cpu_threads, height=self.height, width=self.width, safety_checker="off",
        )  # fmt: skip
