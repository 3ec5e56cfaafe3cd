"""Looks at a Stable Diffusion folder before anything heavy is loaded: is it whole, is it safe to load, which weights is it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from gift_shared.errors import ConfigError

MODEL_INDEX = "model_index.json"
PIPELINE_CLASS = "StableDiffusionPipeline"
REQUIRED_COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
COMPONENTS_WITH_WEIGHTS = ("image_encoder", "safety_checker", "text_encoder", "unet", "vae")
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # any other name would be Python code from the folder


def check_model_folder(folder: Path) -> None:
    """Every component is there, in safetensors, and from a known library. Raises ConfigError naming what is not."""
    components = _components(folder)
    for name in REQUIRED_COMPONENTS:
        if name not in components:
            raise ConfigError(f"{folder / MODEL_INDEX} lists no {name}. A Stable Diffusion needs {', '.join(REQUIRED_COMPONENTS)}.")
    for name, library in components.items():
        if library not in LIBRARIES:
            raise ConfigError(f"{folder}: component {name} comes from {library!r}; code that ships with a model is never run.")
        if not (folder / name).is_dir() or not any((folder / name).iterdir()):
            raise ConfigError(f"{folder} lacks the component {name}, which its {MODEL_INDEX} lists. Copy the folder {name}/ there.")
        if name in COMPONENTS_WITH_WEIGHTS and not any((folder / name).glob("*.safetensors")):
            pickled = sorted(path.name for path in (folder / name).glob("*.bin"))
            found = f"found {', '.join(pickled)}: pickled weights are not loaded, convert them" if pickled else "none found"
            raise ConfigError(f"{folder / name} must hold .safetensors weights; {found}.")


def _components(folder: Path) -> dict[str, str]:
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise ConfigError(f"{folder} has no {MODEL_INDEX}, so it is no model folder in diffusers format.")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        class_name = index.get("_class_name")
        entries = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    except (ValueError, RecursionError, AttributeError) as error:
        raise ConfigError(f"{path} is not a JSON object: {error}.") from error
    if class_name != PIPELINE_CLASS:
        raise ConfigError(f"{path} describes a {class_name}; expected a {PIPELINE_CLASS}.")
    return {name: str(library) for name, (library, _) in entries.items() if library is not None}


def fingerprint(folder: Path) -> str:
    """sha256 over names and contents of all configurations and weights that are loaded, wherever the folder lies.

    Pickled copies and the half-precision variant that some folders carry besides are no part of it: they are not loaded.
    """
    digest = hashlib.sha256()
    for name in [None, *sorted(_components(folder))]:
        for path in sorted((folder / name if name else folder).iterdir()):
            if path.suffix not in (".json", ".txt", ".safetensors") or ".fp16." in path.name or not path.is_file():
                continue
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{name}/{path.name} {content}\n".encode())
    return digest.hexdigest()
