"""A folder in open_clip's form, open_clip_config.json and weights: what it says, checked before anything is built from it."""

from pathlib import Path

from gift_shared.documents import read_json_object
from gift_shared.errors import ConfigError
from gift_train.clip.model_config import SHAPE, ModelConfig, check

CONFIG_FILE = "open_clip_config.json"
# In open_clip's own order of preference.
WEIGHTS_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth",
    "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
_ADVICE = "Copy the folder again; its configuration must describe the weights beside it."


def read_config(folder: Path, *, with_weights: bool = True) -> ModelConfig:
    """`folder`'s open_clip_config.json. Raises: ConfigError if it is missing, not a CLIP's, or of a model larger than the folder.

    with_weights: whether the weights must be there too.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"Model folder {folder} has no {CONFIG_FILE} beside its weights, nor config.json of transformers' CLIPModel.")
    config = read_json_object(path, SHAPE, ConfigError, _ADVICE)
    check(config, str(path), num_bytes(folder) if with_weights and weights_file(folder) else None, str(folder), _ADVICE)
    return config


def weights_file(folder: Path) -> Path:
    """The file its weights are in. Raises ConfigError if there is none, or several and none of open_clip's names."""
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth", ".pt") and path.is_file())
    if len(found) == 1:
        return found[0]
    others = f"; it has {', '.join(path.name for path in found)}" if found else ""
    raise ConfigError(f"Model folder {folder} has no weights called {WEIGHTS_FILES[0]}{others}.")


def num_bytes(folder: Path) -> int:
    """Of all files in a folder, not below it."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
