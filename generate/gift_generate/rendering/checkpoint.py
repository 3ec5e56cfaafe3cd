"""Which files a model is loaded from: a folder, a repository of the hub, or one file beside a folder of configurations."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gift_generate.rendering.model_folder import (
    MODEL_INDEX,
    SAFETY_COMPONENTS,
    ModelIndex,
    check_model_folder,
    configuration_sha256,
    file_sha256,
    fingerprint,
    names_by_component,
    only_variant,
    read_index,
    require_variant,
)
from gift_generate.rendering.model_options import SINGLE_FILE_SUFFIX, ModelOptions
from gift_shared.errors import ConfigError

MINI = "mini"
Judge = Callable[[ModelIndex], None]  # raises for a pipeline that cannot be used


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Files that are all there. `index` lists what is loaded from them; `file`, if given, holds the weights of it."""

    folder: Path
    index: ModelIndex
    variant: str | None = None
    file: Path | None = None
    commit: str | None = None  # of a repository of the hub

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return str(self.file or self.folder)

    def sha256(self) -> str:
        """Of all that is loaded."""
        if self.file is None:
            return fingerprint(self.folder, self.index, self.variant)
        return hashlib.sha256(f"{file_sha256(self.file)} {configuration_sha256(self.folder, self.index)}".encode()).hexdigest()


def find_checkpoint(options: ModelOptions, judge: Judge, infer: Callable[[Path], str]) -> Checkpoint:
    """Have the model's files here, and be sure that none is missing. Raises ConfigError, before any weight is downloaded where it can.

    `judge` is asked about the pipeline's class first; `infer` tells of a single file whose configuration it needs, as a name of the hub.
    """
    path = Path(options.model)
    if path.suffix == SINGLE_FILE_SUFFIX:
        return _single_file(path, options, judge, infer)
    if options.model_config is not None:
        raise ConfigError(f"--model-config goes with one {SINGLE_FILE_SUFFIX} file as --model: a folder has its own.")
    if options.model == MINI:
        from gift_mini.locations import stable_diffusion_folder

        path = Path(stable_diffusion_folder())
    if path.is_dir():
        if options.revision is not None:
            raise ConfigError(f"--revision goes with a hub id: {options.model} is a folder here.")
        return _whole(Checkpoint(folder=path, index=_wanted(path, options, judge)), options)
    if path.is_file():
        raise ConfigError(f"--model {options.model}: of single files those in {SINGLE_FILE_SUFFIX} are loaded; pickled weights are not.")
    if options.model.count("/") != 1 or options.model.startswith((".", "/", "~")):
        raise ConfigError(
            f"--model {options.model!r} is no folder; expected a folder in diffusers format, a {SINGLE_FILE_SUFFIX} file, "
            "a hub id like owner/name, or mini."
        )
    return _from_hub(options, judge)


def _from_hub(options: ModelOptions, judge: Judge) -> Checkpoint:
    from gift_generate.rendering import hub  # its library reads the environment when imported

    model = hub.look_up(options.model, options.revision)
    index = _wanted(model.folder, options, judge)
    variant = hub.download(model, index, options.variant)
    return _whole(Checkpoint(folder=model.folder, index=index, variant=variant, commit=model.commit), options)


def _single_file(path: Path, options: ModelOptions, judge: Judge, infer: Callable[[Path], str]) -> Checkpoint:
    if not path.is_file():
        raise ConfigError(f"--model {path}: there is no such file.")
    for flag, value in (("--revision", options.revision), ("--variant", options.variant)):
        if value is not None:
            raise ConfigError(f"{flag} does not go with a single file: {path} is all there is.")
    folder = options.model_config
    if folder is None:
        folder = _configuration_from_hub(path, infer(path), options, judge)
    return Checkpoint(folder=folder, index=_wanted(folder, options, judge), file=path)


def _configuration_from_hub(path: Path, name: str, options: ModelOptions, judge: Judge) -> Path:
    from gift_generate.rendering import hub

    try:
        model = hub.look_up(name, None)
        hub.download(model, _wanted(model.folder, options, judge), None, with_weights=False)
    except ConfigError as error:
        raise ConfigError(
            f"{path} holds weights alone, and their configuration, that of {name}, cannot be had: {error} "
            "Or give --model-config FOLDER: a model of the same architecture in diffusers format; its weights are not needed."
        ) from error
    return model.folder


def _wanted(folder: Path, options: ModelOptions, judge: Judge) -> ModelIndex:
    """What of a model is loaded: the rest need not be there."""
    index = read_index(folder / MODEL_INDEX)
    judge(index)
    left_out = [*(SAFETY_COMPONENTS if options.safety_checker == "off" else ()), *(("vae",) if options.vae is not None else ())]
    return index.without(left_out)


def _whole(checkpoint: Checkpoint, options: ModelOptions) -> Checkpoint:
    """With the variant that is loaded decided. Raises ConfigError if a file is missing."""
    names = names_by_component(checkpoint.folder, checkpoint.index)
    variant = options.variant or checkpoint.variant or only_variant(checkpoint.index, names)
    if options.variant is not None:
        require_variant(checkpoint.index, names, options.variant, checkpoint.name)
    check_model_folder(checkpoint.folder, checkpoint.index, variant)
    return replace(checkpoint, variant=variant)
