"""What commands are told, each thing described once: from these classes follow options, run.json and the words of submitted runs.

A class that more than one command has describes it for all of them, so that no two can drift apart. Imports nothing heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from gift_shared.errors import ConfigError, unknown_name
from gift_shared.manifests import LABEL_SPACES, LabelSpace
from gift_shared.options import as_words

IMAGE_CACHE_GB = 0.2  # a thousand images of 224 pixels, which is what a task replays, take 0.15

Order = Annotated[str, typer.Option(help="Order of tasks, by name or as a .toml file.")]
Datasets = Annotated[list[str] | None, typer.Argument(help="Datasets by name.  [default: those of --order]", show_default=False)]
DataRoot = Annotated[Path, typer.Option(help="Folder that holds the datasets.")]
ManifestFolders = Annotated[list[Path] | None, typer.Option("--manifests", help="A folder of your own manifests; repeatable.")]
Pretrained = Annotated[str | None, typer.Option(help="With an open_clip name: a tag (openai), a weights file, or random.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe, for trials; repeatable.")]
QuickGelu = Annotated[
    Literal["yes", "no"] | None,
    typer.Option(help="Whether the weights were trained with QuickGELU, where neither names nor files say so.", show_default=False),
]
MethodFiles = Annotated[
    list[Path] | None, typer.Option("--method-file", help="Python file with a method of your own; repeatable.", show_default=False)
]
LABEL_SPACE_HELP = (
    "Among which classes labels are looked for: known (the dataset's own), union-seen (those of tasks learned so far too), union-all "
    "(those of all tasks); repeatable."
)
MODEL_HELP = "mini, an open_clip name (ViT-B-16), a folder in open_clip's or transformers' form, or hf-hub:owner/name."


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where datasets are and how they are loaded. Changes no number."""

    data_root: DataRoot = Path("data")
    manifests: ManifestFolders = None
    num_workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that load images; they change no number."
            "  [default: on a GPU one for each core of this process's share, 8 at most; 0 on the CPU]",
            show_default=False,
        ),
    ] = None
    worker_start_method: Annotated[
        Literal["fork", "forkserver", "spawn"] | None,
        typer.Option(help="How Python starts them.  [default: fork on Linux, spawn on macOS]", show_default=False),
    ] = None
    image_cache_gb: Annotated[
        float,
        typer.Option(min=0, max=1e15, help="Memory for decoded images: of each dataset's training, its test and the replayed images."),
    ] = IMAGE_CACHE_GB
    evaluation_cache: Annotated[
        Path | None, typer.Option(help="Keep test images there as the model sees them; evaluations and runs share the folder.")
    ] = None

    @property
    def image_cache_bytes(self) -> int:
        """Memory for the decoded images of each set of images."""
        return round(self.image_cache_gb * 1e9)


@dataclass(frozen=True, kw_only=True)
class BesideOptions:
    """What is evaluated beside the tasks of the order: how much is kept of the rest of the model. Changes no other number."""

    also_evaluate: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A dataset beside the order, evaluated too and told apart; repeatable.")
    ] = None
    retrieval: Annotated[
        list[Path] | None,
        typer.Option(help="Image-caption pairs for retrieval: a folder, a caption file or tars; repeatable. See docs/protocols.md."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """What the towers run on and how. `precision` and `compiles` change last bits, or more."""

    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto takes an accelerator if there is one.")] = "auto"
    precision: Annotated[
        str | None,
        typer.Option(
            help="Over the recipe's: fp32, bf16 (towers) or tf32 (all products). Losses and weights stay fp32.",
            show_default=False,
        ),
    ] = None
    compiles: Annotated[bool, typer.Option("--compile", help="Compile the towers' blocks: faster, other last bits.")] = False


@dataclass(frozen=True, kw_only=True)
class MachineOptions(DataOptions, ComputeOptions):
    """All that a run needs to know of the machine; a table passes it on to each of its runs.

    `micro_batch_size` and `gradient_checkpointing` save memory and change last bits.
    """

    compiles_step: Annotated[
        bool,
        typer.Option(
            "--compile-step",
            help="--compile, and each training loss with its gradient as one graph (a CUDA graph on a GPU): the host asks for less.",
        ),
    ] = False

    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images, or rows of texts, that pass the model at once in training; the loss stays that of the batch.  [default: all]",
            show_default=False,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute the towers' blocks again in the backward pass: less memory.")
    ] = False
    shard_cache: Annotated[
        Path | None,
        typer.Option(envvar="GIFT_SHARD_CACHE", help="Where shards of a URL are kept for a while.  [default: ~/.cache/gift/shards]"),
    ] = None
    shard_cache_gb: Annotated[
        float | None, typer.Option(envvar="GIFT_SHARD_CACHE_GB", min=0, help="How much is kept there.  [default: 20]")
    ] = None
    tracker: Annotated[list[str] | None, typer.Option(help="tensorboard, wandb, trackio ... (accelerate's trackers); repeatable.")] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions(MachineOptions, BesideOptions):
    """One run: what `gift-train run` is told, and what every other command that makes runs tells it."""

    order: Order = "mini"
    method: Annotated[str | None, typer.Option(help="Method by name, with its recipe for the order's benchmark.")] = None
    recipe: Annotated[str | None, typer.Option(help="Recipe by name or as a .toml file; instead of --method.")] = None
    method_files: MethodFiles = None
    out: Annotated[Path, typer.Option("--out", help="Run folder; given again, the run goes on where it stopped.", show_default=False)]
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "mini"
    pretrained: Pretrained = None
    quick_gelu: QuickGelu = None
    shards: Annotated[
        str | None, typer.Option(help="Output folder of gift-generate render, or its URL (http, https, s3, hf://datasets/owner/name).")
    ] = None
    reference_images: Annotated[
        Path | None, typer.Option(help="Folder or tars of images beside the tasks: no task (moe_adapter), reference set (zscl).")
    ] = None
    reference_captions: Annotated[
        Path | None, typer.Option(help="Sentences of the reference set (zscl): caption files as for gift-generate plan.")
    ] = None
    label_space: Annotated[list[str] | None, typer.Option(help=f"{LABEL_SPACE_HELP} Beside the order's own.", show_default=False)] = None
    seed: Annotated[int, typer.Option(help="Decides data order, crops and the choice from a pool.")] = 42
    overrides: Overrides = None
    stop_after: Annotated[int | None, typer.Option(help="Stop after so many tasks; the same command goes on.")] = None

    def __post_init__(self) -> None:
        if (self.method is None) == (self.recipe is None):
            raise ConfigError("Give either --method NAME or --recipe NAME_OR_FILE.")
        if self.stop_after is not None and self.stop_after < 1:
            raise ConfigError(f"--stop-after counts tasks and must be at least 1, found {self.stop_after}.")
        if not -(2**63) <= self.seed < 2**64:
            raise ConfigError(f"--seed must be a number of 64 bits, from -2^63 to below 2^64, found {self.seed}.")
        label_spaces(self.label_space)

    @property
    def recipe_argument(self) -> str:
        """The recipe's name or file; a method's own recipe bears its name."""
        return str(self.method or self.recipe)

    @property
    def recipe_overrides(self) -> list[str]:
        """What is set over the recipe, by --set and by flags of their own."""
        return recipe_overrides(self.overrides, self.precision)

    def command_line(self) -> list[str]:
        """The words of the `gift-train run` that is told the same."""
        return ["gift-train", "run", *as_words(self)]


@dataclass(frozen=True, kw_only=True)
class TableOptions(MachineOptions, BesideOptions):
    """A table of runs. `only`: recipes to run; the table still shows all of its rows. What is evaluated besides concerns new runs alone."""

    world: Annotated[str, typer.Option(help="mtil, the datasets that numbers are printed of, or mini, the embedded world.")] = "mtil"
    order: Annotated[
        str | None, typer.Option(help="Another order of tasks than the table's, by name or as a .toml file; instead of --world.")
    ] = None
    runs: Annotated[Path, typer.Option(help="Folder of run folders; new ones are RUNS/<order>/<recipe>-seed<seed>.")] = Path("runs")
    seeds: Annotated[str, typer.Option(help="Seeds of every row, with commas between them.")] = "42"
    label_space: Annotated[
        list[str] | None, typer.Option(help=f"{LABEL_SPACE_HELP} Beside the order's own, of the runs that are made.", show_default=False)
    ] = None
    only: Annotated[list[str] | None, typer.Option(help="Run only this recipe of the table; repeatable.")] = None
    method_files: MethodFiles = None
    shards: Annotated[
        list[str] | None,
        typer.Option(help="Output folder of gift-generate render; repeatable as LABEL=FOLDER where rows differ by their images."),
    ] = None
    reference_images: Annotated[
        list[str] | None,
        typer.Option(help="Folder or tars as for run; repeatable as METHOD=FOLDER where moe_adapter and zscl look at different images."),
    ] = None
    reference_captions: Annotated[Path | None, typer.Option(help="Caption file as for run (zscl).")] = None
    model: Annotated[
        str | None, typer.Option(help="As for run.  [default: ViT-B-16 with openai, mini on the mini world]", show_default=False)
    ] = None
    pretrained: Pretrained = None
    quick_gelu: QuickGelu = None
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value over every recipe, for trials; repeatable.")] = None
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the table as .txt, .md, .tex, .csv.  [default: RUNS/<order>/tables]")
    ] = None

    @property
    def recipe_overrides(self) -> list[str]:
        """What is set over every recipe."""
        return recipe_overrides(self.overrides, self.precision)

    def __post_init__(self) -> None:
        label_spaces(self.label_space)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataOptions, ComputeOptions, BesideOptions):
    """An evaluation of a model or a checkpoint. What is None is as in the checkpoint's run."""

    order: Annotated[
        str | None, typer.Option(help="Order of tasks, by name or as a .toml file.  [default: the run's, or mini]", show_default=False)
    ] = None
    model: Annotated[str | None, typer.Option(help=f"{MODEL_HELP}  [default: the run's, or mini]", show_default=False)] = None
    pretrained: Pretrained = None
    quick_gelu: QuickGelu = None
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of a run, RUN/checkpoints/task-*.safetensors: read as that run reads them.")
    ] = None
    method_files: MethodFiles = None
    label_space: Annotated[list[str] | None, typer.Option(help=f"{LABEL_SPACE_HELP}  [default: the order's]", show_default=False)] = None
    num_learned: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="For union-seen: tasks of the order that are learned.  [default: what the checkpoint says, or 0]",
            show_default=False,
        ),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass.  [default: the run's, or 256]", show_default=False)
    ] = None

    def __post_init__(self) -> None:
        label_spaces(self.label_space)


def label_spaces(told: Sequence[str] | None) -> tuple[LabelSpace, ...]:
    """What `--label-space` names, each once and as it was given first. Raises ConfigError for a name that is none."""
    found: dict[LabelSpace, None] = {}
    for name in told or ():
        if name not in LABEL_SPACES:
            raise ConfigError("--label-space: " + unknown_name("label space", name, LABEL_SPACES))
        found[LABEL_SPACES[LABEL_SPACES.index(name)]] = None
    return tuple(found)


def is_quick_gelu(told: str | None) -> bool | None:
    """What `--quick-gelu` says."""
    return None if told is None else told == "yes"


def recipe_overrides(overrides: Sequence[str] | None, precision: str | None) -> list[str]:
    """`key=value` pairs: those given, and a flag that is one."""
    return [*(overrides or ()), *([] if precision is None else [f"precision={precision}"])]
