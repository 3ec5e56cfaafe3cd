"""Looks at a model in diffusers format before anything heavy is loaded: is it whole, is it safe to load, which weights is it.

Works on file names and small JSON files alone, so that it serves a folder and a listing of the hub alike. Imports no model library.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift_shared.errors import ConfigError

MODEL_INDEX = "model_index.json"
# Libraries, and those modules of diffusers' own pipelines that hold components. Any other name would be Python code from the folder.
LIBRARIES = ("diffusers", "transformers", "stable_diffusion", "deepfloyd_if", "kandinsky", "kolors", "latent_diffusion", "wuerstchen")
WITHOUT_WEIGHTS = re.compile(r"(Scheduler|Tokenizer|TokenizerFast|TokenizersBackend|Processor|ProcessorFast|FeatureExtractor)$")
CONFIGURATION_SUFFIXES = (".json", ".model", ".txt")
WEIGHTS_SUFFIX = ".safetensors"
# diffusers-style and transformers-style names, whole or in numbered parts; a variant stands before the number, in old ones behind it.
WEIGHTS_NAME = re.compile(r"(?P<stem>[^.]+?)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<old_variant>\w+))?\.safetensors")
HALF_PRECISION = ".fp16."
SAFETY_COMPONENTS = ("safety_checker", "feature_extractor")  # the second prepares images for the first


@dataclass(frozen=True)
class ModelIndex:
    """What a model_index.json says: the pipeline's class, and library and class of every component that is not null."""

    path: Path
    class_name: str
    components: dict[str, tuple[str, str]]

    def without(self, names: Collection[str]) -> "ModelIndex":
        """As if the index did not list these components."""
        return ModelIndex(self.path, self.class_name, {name: kind for name, kind in self.components.items() if name not in names})


def read_index(path: Path) -> ModelIndex:
    """Raises ConfigError for what is no index, or asks for code that is not diffusers' or transformers' own."""
    if not path.is_file():
        raise ConfigError(f"{path.parent} has no {path.name}, so it is no model folder in diffusers format.")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        class_name = index.get("_class_name")
        entries = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2 and key[:1] != "_"}
    except (ValueError, RecursionError, AttributeError) as error:
        raise ConfigError(f"{path} is not a JSON object: {error}.") from error
    if not isinstance(class_name, str):
        raise ConfigError(f"{path} names no pipeline class of diffusers ({class_name!r}); code that ships with a model is never run.")
    components = {name: (str(library), str(kind)) for name, (library, kind) in entries.items() if library is not None}
    for name, (library, _) in components.items():
        if library not in LIBRARIES:
            raise ConfigError(f"{path.parent}: component {name} comes from {library!r}; code that ships with a model is never run.")
        if not re.fullmatch(r"\w+", name):
            raise ConfigError(f"{path}: {name!r} is no name of a component.")
    return ModelIndex(path, class_name, components)


def check_model_folder(folder: Path, index: ModelIndex, variant: str | None) -> None:
    """Every component is there, with all of its weights in safetensors. Raises ConfigError naming what is not."""
    for name, (library, class_name) in index.components.items():
        component = folder / name
        names = sorted(path.name for path in component.iterdir()) if component.is_dir() else []
        if not names:
            raise ConfigError(f"{folder} lacks the component {name}, which its {MODEL_INDEX} lists. Copy the folder {name}/ there.")
        if f"{library}.py" in names:
            raise ConfigError(f"{component / library}.py would be loaded; code that ships with a model is never run. Remove it.")
        if has_weights(class_name):
            require_parts(component, loaded_weights(names, variant, component))


def has_weights(class_name: str) -> bool:
    """Whether a component of that class has weights."""
    return not WITHOUT_WEIGHTS.search(class_name)


def loaded_weights(names: Iterable[str], variant: str | None, where: Path | str) -> list[str]:
    """Of a component's files the weights that are loaded: the variant's if there are any, else the plain ones. Raises ConfigError."""
    names = sorted(names)
    by_variant: dict[str | None, list[str]] = {}
    for name in names:
        if (match := WEIGHTS_NAME.fullmatch(name)) is not None:
            by_variant.setdefault(match["variant"] or match["old_variant"], []).append(name)
    for wanted in (variant, None):
        if wanted in by_variant:
            return by_variant[wanted]
    if by_variant:
        known = ", ".join(sorted(filter(None, by_variant)))
        raise ConfigError(f"{where} holds its weights as variant {known} alone: give --variant, one of these.")
    pickled = [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    found = f"found {', '.join(pickled)}: pickled weights are not loaded, convert them" if pickled else "none found"
    raise ConfigError(f"{where} must hold .safetensors weights; {found}.")


def only_variant(index: ModelIndex, names_of: dict[str, list[str]]) -> str | None:
    """The variant of a model some component of which has no other weights, if that is one and the same for all of them."""
    variants: set[str] = set()
    for component, (_, class_name) in index.components.items():
        if has_weights(class_name):
            matches = [match for name in names_of.get(component, ()) if (match := WEIGHTS_NAME.fullmatch(name))]
            found = {match["variant"] or match["old_variant"] for match in matches}
            variants |= found if None not in found else set()
    return variants.pop() if len(variants) == 1 else None


def names_by_component(folder: Path, index: ModelIndex) -> dict[str, list[str]]:
    """File names of every component that is there."""
    return {name: [path.name for path in (folder / name).iterdir()] for name in index.components if (folder / name).is_dir()}


def require_variant(index: ModelIndex, names_of: dict[str, list[str]], variant: str, model: str) -> None:
    """Raises ConfigError if no component has weights of that variant."""
    for names in names_of.values():
        for name in names:
            match = WEIGHTS_NAME.fullmatch(name)
            if match is not None and variant in (match["variant"], match["old_variant"]):
                return
    raise ConfigError(f"--variant {variant}: {model} has no weights named so, such as model.{variant}.safetensors; leave it out.")


def require_parts(component: Path, weights: Collection[str]) -> None:
    """Every part that an index of split weights names is there. Raises ConfigError."""
    for path in component.glob("*.safetensors.index*.json"):
        try:
            listed = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no index of weights: {error}.") from error
        missing = sorted(name for name in listed if not (component / str(name)).is_file())
        if missing and listed & set(weights):  # else it is the index of a variant that is not loaded
            raise ConfigError(f"{component} lacks {missing[0]}, one of {len(missing)} parts that {path.name} lists. Copy them there.")


def fingerprint(folder: Path, index: ModelIndex, variant: str | None) -> str:
    """sha256 over names and contents of all configurations and weights that are loaded, wherever the folder lies.

    Pickled copies and other variants that some folders carry besides are no part of it: they are not loaded.
    """
    digest = hashlib.sha256()
    for name, path in _loaded_files(folder, index, variant):
        digest.update(f"{name}/{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _loaded_files(folder: Path, index: ModelIndex, variant: str | None) -> Iterator[tuple[str | None, Path]]:
    for name in [None, *sorted(index.components)]:
        place = folder / name if name else folder
        paths = sorted(path for path in place.iterdir() if path.suffix in (*CONFIGURATION_SUFFIXES, WEIGHTS_SUFFIX) and path.is_file())
        if variant is None:
            yield from ((name, path) for path in paths if HALF_PRECISION not in path.name)
        else:
            weights = [path.name for path in paths if path.suffix == WEIGHTS_SUFFIX]
            loaded = loaded_weights(weights, variant, place) if name and weights else []
            yield from ((name, path) for path in paths if path.suffix != WEIGHTS_SUFFIX or path.name in loaded)


def configuration_sha256(folder: Path, index: ModelIndex) -> str:
    """sha256 over the configurations, where the weights are in one file elsewhere, and over text encoders, which it may lack."""
    digest = hashlib.sha256()
    for name in [None, *sorted(index.components)]:
        place = folder / name if name else folder
        suffixes = (*CONFIGURATION_SUFFIXES, *([WEIGHTS_SUFFIX] if name and name.startswith("text_encoder") else ()))
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.suffix in suffixes and path.is_file():
                digest.update(f"{name}/{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Of its bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
