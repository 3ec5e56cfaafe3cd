"""Which model renders and how it runs: the options of the command and the object that renderers read. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gift_generate.rendering.batch_size import parse_batch_size
from gift_generate.rendering.loras import Lora, parse_lora
from gift_shared.errors import ConfigError, unknown_name

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "float16", "bfloat16")
GENERATOR_DEVICES = ("cpu", "device")
SWITCH = ("on", "off")
SINGLE_FILE_SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it runs. Sizes in pixels; None = the model's own. Raises ConfigError for what no renderer can do."""

    model: Annotated[
        str,
        typer.Option(
            help="Hub id or folder in diffusers format, one .safetensors file, mini, mini-drawings (control) or flat-color (dry run)."
        ),
    ] = "mini"
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.  [default: main]")] = None
    variant: Annotated[str | None, typer.Option(help="Weights named so, as fp16 in model.fp16.safetensors.  [default: the plain ones]")] = (
        None
    )
    model_config: Annotated[
        Path | None,
        typer.Option(help="For a single file: a folder in diffusers format of the same architecture, for all but the weights."),
    ] = None
    vae: Annotated[Path | None, typer.Option(help="Another image decoder: its folder in diffusers format, or a .safetensors file.")] = None
    loras: Annotated[
        list[Lora] | None,
        typer.Option(
            "--lora",
            parser=parse_lora,
            metavar="<list[str]>",
            help="FILE[=SCALE], a .safetensors LoRA, TASK=FILE[=SCALE] for that task's captions, or a folder of adapt; repeatable.",
        ),
    ] = None
    negative_prompt: Annotated[str, typer.Option(help="What guided images shall not show, where the plan has none of its own.")] = ""
    safety_checker: Annotated[str, typer.Option(help="on: the model's, if it has one. off: it costs host time and judges nothing.")] = "on"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (each process of a node takes its own), cuda:1, mps.")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto (float16 on a GPU), float32, float16 or bfloat16.")] = "auto"
    # None: the largest that the machine holds.
    batch_size: Annotated[
        int | None,
        typer.Option(parser=parse_batch_size, metavar="<str>", help="Images rendered at once; auto: as many as the device holds."),
    ] = 16
    # Another number changes last bits, so it must not follow the launcher.
    cpu_threads: Annotated[
        int, typer.Option("--threads", help="CPU threads of this worker, where the model runs on the CPU; changes last bits.")
    ] = 1
    scheduler: Annotated[
        str | None,
        typer.Option(help="Another of diffusers that fits.  [default: the model's own; SD 1 and 2 below 50 steps: multistep DPM-Solver]"),
    ] = None
    height: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]")] = None
    width: Annotated[int | None, typer.Option(help="Pixels.  [default: the model's]")] = None
    # The same seed gives other noise on a GPU.
    generator_device: Annotated[str, typer.Option(help="Where noise is drawn: cpu, or device (as the authors did).")] = "cpu"
    is_compiled: Annotated[bool, typer.Option("--compile", help="U-Net and image decoder through torch.compile; changes last bits.")] = (
        False
    )
    decodes_one_by_one: Annotated[
        bool, typer.Option("--vae-slices", help="Decode one image at a time: less memory; changes last bits.")
    ] = False
    guidance_until: Annotated[float, typer.Option(help="Share of the steps that are guided; below 1 an approximation.")] = 1.0
    feature_interval: Annotated[int, typer.Option(help="Steps from one run of the whole U-Net to the next; above 1 an approximation.")] = 1

    def __post_init__(self) -> None:
        for kind, value, valid in (
            ("device", self.device.partition(":")[0], DEVICES),
            ("dtype", self.dtype, DTYPES),
            ("generator device", self.generator_device, GENERATOR_DEVICES),
            ("safety checker", self.safety_checker, SWITCH),
        ):
            if value not in valid:
                raise ConfigError(unknown_name(kind, value, valid))
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, found {self.batch_size}.")
        if self.cpu_threads < 1:
            raise ConfigError(f"--threads must be at least 1, found {self.cpu_threads}.")
        for side in (self.height, self.width):
            if side is not None and (side < 8 or side % 8):
                raise ConfigError(f"--height and --width must be multiples of 8 pixels, found {side}.")
        if not 0 < self.guidance_until <= 1:
            raise ConfigError(f"--guidance-until must be above 0 and at most 1, found {self.guidance_until:g}.")
        if self.feature_interval < 1:
            raise ConfigError(f"--feature-interval must be at least 1, found {self.feature_interval}.")
        if self.feature_interval > 1 and self.is_compiled:
            raise ConfigError("--feature-interval and --compile do not go together: a compiled U-Net runs whole. Leave one of them out.")
