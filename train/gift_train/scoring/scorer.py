"""The CLIP that judges: any that can be loaded here, and what is recorded of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift_shared.errors import ConfigError
from gift_shared.keys import slug
from gift_shared.score_options import ScoreOptions
from gift_train.clip.description import HUB_PREFIX, MINI
from gift_train.clip.model import Backbone
from gift_train.methods.method_files import is_plain_clip
from gift_train.options import is_quick_gelu
from gift_train.records.checkpoint import checksum
from gift_train.records.files import RUN_FILE
from gift_train.records.restore import Asked, plain_clip, restore

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Scorer:
    """A frozen CLIP. `record`: which it is, by name and by a checksum of configuration and weights, and in what precision it looks."""

    backbone: Backbone
    record: dict[str, Any]


def load_scorer(options: ScoreOptions, device: str) -> Scorer:
    """Load what --clip names. Raises ConfigError if there is no such model, or its images are read by more than the two towers."""
    asked = Asked(
        model=options.clip,
        pretrained=options.pretrained,
        quick_gelu=is_quick_gelu(options.quick_gelu),
        precision=options.precision,
        device=device,
    )
    path = Path(options.clip)
    if (path / RUN_FILE).is_file():
        raise ConfigError(
            f"--clip {path} is a run folder: give the weights after one of its tasks, {path / CHECKPOINTS}/task-*.safetensors."
        )
    backbone = _of_checkpoint(path, asked) if path.is_file() else plain_clip(asked).student
    backbone.network.eval()
    backbone.keep_prepared()
    record = {
        "clip": _shown(path) if path.exists() and options.clip != MINI else options.clip,
        "pretrained": None if options.pretrained is None else _shown(Path(options.pretrained)),
        "weights": checksum(json.dumps(backbone.config, sort_keys=True), backbone.network.state_dict()),
        "precision": backbone.precision,
    }
    return Scorer(backbone, record)


def name_of(options: ScoreOptions) -> str:
    """What the scores are called: as told, or after the model. Raises ConfigError where that has no letter a file name may have."""
    if options.name is not None:
        return options.name
    path = Path(options.clip)
    told = _shown(path) if path.exists() and options.clip != MINI else options.clip.removeprefix(HUB_PREFIX)
    parts = [told.removesuffix(".safetensors"), Path(options.pretrained or "").stem]
    name = "-".join(filter(None, map(slug, parts)))
    if not name:
        raise ConfigError(f"--clip {options.clip} gives the scores no name: give them one with --name.")
    return name


def _of_checkpoint(path: Path, asked: Asked) -> Backbone:
    if path.suffix != ".safetensors":
        raise ConfigError(f"--clip {path} is a file without its model: give an open_clip name as --clip and the file as --pretrained.")
    restored = restore(
        path, Asked(pretrained=asked.pretrained, quick_gelu=asked.quick_gelu, precision=asked.precision, device=asked.device)
    )
    if not is_plain_clip(type(restored.method)):
        raise ConfigError(
            f"--clip {path}: {restored.method.name} reads images by more than two towers, so there is no one similarity to score by."
        )
    return restored.student


def _shown(path: Path) -> str:
    """Of a path what others may read: its last part, of a run's checkpoint the run's name too."""
    whole = path.resolve()
    return f"{whole.parent.parent.name}/{whole.name}" if whole.parent.name == CHECKPOINTS else whole.name
