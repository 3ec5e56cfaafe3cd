"""Which LoRAs a command names: files and folders of `gift-generate adapt`, and whose captions each is for. Imports nothing heavy."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gift_generate.rendering.model_folder import WEIGHTS_SUFFIX
from gift_shared.documents import read_json_object
from gift_shared.errors import ConfigError, unknown_name

ADAPT_FILE = "adapt.json"  # beside a LoRA of ours: what it was made of
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name, by which load_lora_weights finds it
RECORD = {"settings": {"task": str}}


@dataclass(frozen=True)
class Lora:
    """Low-rank changes of a model's weights, in one file, and how much of them is added.

    source: whose captions are painted with it, as in a plan's column `source`; None: all. A folder as path stands for what
    `gift-generate adapt` wrote there, see `files_of`.
    """

    path: Path
    scale: float
    source: str | None = None

    def __str__(self) -> str:
        return f"{'' if self.source is None else f'{self.source}='}{self.path}={self.scale:g}"


def parse_lora(argument: str) -> Lora:
    """`style.safetensors` (scale 1), `style.safetensors=0.8`, `cars=cars.safetensors=0.8`, or a folder. Raises ConfigError."""
    head, _, last = argument.rpartition("=")
    scale = _number(last)
    place = argument if scale is None else head
    source = None
    if "=" in place and not Path(place).exists():
        source, _, place = place.partition("=")
    path = Path(place)
    is_folder = path.is_dir() and bool(place)
    if not place or source == "" or ("=" in argument and path.suffix != WEIGHTS_SUFFIX and not is_folder):
        raise ConfigError(
            f"--lora {argument!r}: expected FILE or FILE=SCALE with a number for the scale, TASK= before it for a task's captions alone, "
            "or a folder of gift-generate adapt."
        )
    if not is_folder and (path.suffix != WEIGHTS_SUFFIX or not path.is_file()):
        raise ConfigError(f"--lora {place}: expected a {WEIGHTS_SUFFIX} file or a folder, and there is none of that name.")
    return Lora(path, 1.0 if scale is None else scale, source)


def files_of(loras: Iterable[Lora]) -> list[Lora]:
    """The same with every folder replaced by the files in it: a task's, or one for each task. Raises ConfigError."""
    return [file for lora in loras for file in (_files_in(lora) if lora.path.is_dir() else [lora])]


def check_sources(loras: Sequence[Lora], sources: Sequence[str]) -> list[str]:
    """Lines that tell which of a plan's sources are painted with a LoRA of their own; none if no LoRA is for one source alone.

    Raises: ConfigError for a LoRA that was named for captions of which the plan has none. Of a folder that is told.
    """
    for source in sorted({lora.source for lora in loras if lora.source is not None}):
        if source not in sources:
            raise ConfigError("--lora: " + unknown_name("source of the plan's captions", source, sources))
    own = {file.source for file in files_of(loras) if file.source is not None}
    if not own:
        return []
    painted, plain = ([source for source in sources if (source in own) is has_own] for has_own in (True, False))
    without = f"; without: {', '.join(plain)}" if plain else ""
    unused = f"; no caption for: {', '.join(sorted(own - set(sources)))}" if own - set(sources) else ""
    return [f"loras   for captions of {', '.join(painted) or 'none of the plan'}{without}{unused}"]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _files_in(lora: Lora) -> list[Lora]:
    folders = [lora.path] if (lora.path / ADAPT_FILE).is_file() else sorted(path.parent for path in lora.path.glob(f"*/{ADAPT_FILE}"))
    if not folders or (lora.source is not None and folders != [lora.path]):
        what = f"no {ADAPT_FILE}" if not folders else "LoRAs of several tasks, and one is asked for"
        raise ConfigError(f"--lora {lora.path} holds {what}. Give a folder that gift-generate adapt wrote, or a {WEIGHTS_SUFFIX} file.")
    return [_file_in(folder, lora) for folder in folders]


def _file_in(folder: Path, lora: Lora) -> Lora:
    record = read_json_object(folder / ADAPT_FILE, RECORD, ConfigError, "Run gift-generate adapt again.")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"--lora: the training in {folder} is not finished, {WEIGHTS_FILE} is missing. Run gift-generate adapt again.")
    return replace(lora, path=folder / WEIGHTS_FILE, source=lora.source or record["settings"]["task"])
