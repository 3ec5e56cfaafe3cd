"""From a checkpoint's files to a pipeline of diffusers whose every weight came from a file, in the dtype that was asked for."""

import hashlib
import inspect
import logging
import re
from pathlib import Path
from typing import Any

import diffusers
import diffusers.pipelines
import torch
import transformers
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
from safetensors import SafetensorError, safe_open

from gift_generate.rendering.checkpoint import Checkpoint
from gift_generate.rendering.families.base import Pipeline
from gift_generate.rendering.families.generic import requires_more_than_text
from gift_generate.rendering.families.registry import family_of
from gift_generate.rendering.lora_weights import fuse
from gift_generate.rendering.model_folder import ModelIndex, file_sha256, has_weights
from gift_generate.rendering.model_options import ModelOptions
from gift_shared.console import some_of
from gift_shared.documents import read_json_object
from gift_shared.errors import ConfigError

LOADING_ERRORS = (
    OSError, ValueError, LookupError, RuntimeError, AttributeError, TypeError, ImportError, SafetensorError, SingleFileComponentError,
)  # fmt: skip
WITHOUT_WEIGHT = "meta tensor"  # torch's words when one that no file filled is moved
CHANGES_IMAGES = re.compile("Inpaint|Img2Img|ControlNet|Upscale|Depth2Img|Pix2Pix")


def be_quiet() -> None:
    """Have the libraries say nothing of their own: what goes wrong is an error of ours, told once."""
    for library in (diffusers, transformers):
        logs: Any = library.utils.logging
        logs.set_verbosity(logging.CRITICAL)
        logs.disable_progress_bar()


def judge(index: ModelIndex) -> None:
    """Raises ConfigError for a pipeline that this diffusers does not have, or that makes no images of texts alone."""
    pipeline_class = getattr(diffusers, index.class_name, None)
    if not isinstance(pipeline_class, type) or not issubclass(pipeline_class, diffusers.DiffusionPipeline):
        raise ConfigError(
            f"{index.path}: diffusers {diffusers.__version__} has no pipeline {index.class_name}; a newer diffusers may have it."
        )
    reason = requires_more_than_text(pipeline_class)
    if CHANGES_IMAGES.search(index.class_name):
        reason = "it begins with an image"
    if reason is not None:
        raise ConfigError(f"{index.path} describes a {index.class_name}, which makes no images of texts alone: {reason}.")
    known = {"self", *pipeline_class._optional_components, *family_of(index.class_name).may_lack, *index.components}
    for parameter in inspect.signature(pipeline_class.__init__).parameters.values():
        is_needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if is_needed and parameter.name not in known:
            raise ConfigError(
                f"{index.path} lists no {parameter.name}, which a {index.class_name} needs. Take a complete copy of the model."
            )


def infer_configuration(file: Path) -> str:
    """The repository of the hub with the configuration of a single file, by its weights' names and shapes. Raises ConfigError."""
    try:
        with safe_open(file, framework="pt") as weights:
            shapes = {name: torch.empty(weights.get_slice(name).get_shape(), device="meta") for name in weights.keys()}  # noqa: SIM118
        guess: Any = fetch_diffusers_config  # it has no types
        return str(guess(shapes)["pretrained_model_name_or_path"])
    except LOADING_ERRORS as error:
        raise ConfigError(f"{file} cannot be read as a model: {_said(error)}.") from error


def load_pipeline(checkpoint: Checkpoint, options: ModelOptions, dtype: torch.dtype) -> Pipeline:
    """Raises ConfigError in one line for whatever does not fit together, a weight that no file has among it."""
    try:
        pipeline = _from_file(checkpoint, options, dtype) if checkpoint.file else _from_folder(checkpoint, options, dtype)
        if for_all := [lora for lora in options.loras or () if lora.source is None]:
            fuse(pipeline, for_all)
    except LOADING_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise  # a full disk or missing rights
        said = "it holds no weights for some of the tensors, which would be random" if WITHOUT_WEIGHT in str(error) else _said(error)
        raise ConfigError(f"{checkpoint.name} cannot be loaded as a {checkpoint.index.class_name}: {said}") from error
    return pipeline


def _said(error: BaseException) -> str:
    """The first line of a library's error, and the next where that one only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].rstrip().endswith(":") else 1])


def _from_folder(checkpoint: Checkpoint, options: ModelOptions, dtype: torch.dtype) -> Pipeline:
    """Components with weights one by one, since only so does one learn which weights were missing."""
    components: dict[str, Any] = {
        name: _component(checkpoint.folder / name, library, class_name, checkpoint.variant, dtype)
        for name, (library, class_name) in checkpoint.index.components.items()
        if has_weights(class_name)
    }
    loader: Any = diffusers.DiffusionPipeline
    return loader.from_pretrained(
        checkpoint.folder, local_files_only=True, use_safetensors=True, **components, **_replaced(checkpoint, options, dtype)
    )


def _from_file(checkpoint: Checkpoint, options: ModelOptions, dtype: torch.dtype) -> Pipeline:
    pipeline_class: Any = getattr(diffusers, checkpoint.index.class_name)
    if not hasattr(pipeline_class, "from_single_file"):
        raise ConfigError(f"A {checkpoint.index.class_name} is not read from one file: give its folder in diffusers format.")
    assert checkpoint.file is not None
    pipeline = pipeline_class.from_single_file(
        str(checkpoint.file),
        config=str(checkpoint.folder),
        local_files_only=True,
        torch_dtype=dtype,
        **_replaced(checkpoint, options, dtype),
    )
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            _require_all_loaded(name, [key for key, tensor in part.state_dict().items() if tensor.device.type == "meta"])
    return pipeline


def _replaced(checkpoint: Checkpoint, options: ModelOptions, dtype: torch.dtype) -> dict[str, Any]:
    """Components that are given to the pipeline in place of the checkpoint's."""
    parameters = inspect.signature(getattr(diffusers, checkpoint.index.class_name).__init__).parameters
    replaced: dict[str, Any] = dict.fromkeys(set(family_of(checkpoint.index.class_name).may_lack) - checkpoint.index.components.keys())
    if options.safety_checker == "off" and "safety_checker" in parameters:
        replaced |= {"safety_checker": None, "feature_extractor": None}
        if "requires_safety_checker" in parameters:
            replaced["requires_safety_checker"] = False
    if options.vae is not None:
        if "vae" not in parameters:
            raise ConfigError(f"--vae: a {checkpoint.index.class_name} has no image decoder of that name to replace.")
        replaced["vae"] = _vae(options.vae, checkpoint, dtype)
    return replaced


def _component(folder: Path, library: str, class_name: str, variant: str | None, dtype: torch.dtype) -> Any:
    """A model with its weights read in the dtype that it is to have, so that memory holds them once."""
    modules: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
    module = modules.get(library) or getattr(diffusers.pipelines, library)
    kind = getattr(module, class_name, None)
    if kind is None:
        raise ConfigError(f"{folder} is a {class_name}, which the installed {library} does not have; a newer one may.")
    is_transformers = issubclass(kind, transformers.PreTrainedModel)
    has_variant = variant is not None and any(f".{variant}" in path.name for path in folder.glob("*.safetensors"))
    model, found = kind.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        variant=variant if has_variant else None,
        output_loading_info=True,
        **{"dtype" if is_transformers else "torch_dtype": dtype},
    )
    _require_all_loaded(str(folder), found["missing_keys"])
    return model


def _require_all_loaded(where: str, missing: Any) -> None:
    if missing:
        raise ConfigError(
            f"{where}: its files have no weights for {len(missing)} tensors ({some_of(sorted(missing))}), which would be random. "
            "Weights and configuration are of different models, or the file is not whole."
        )


def _vae(path: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    if path.is_file():
        config = checkpoint.folder / "vae" / "config.json"
        if not config.is_file():
            raise ConfigError(f"--vae {path}: {checkpoint.folder} has no vae/config.json to read a single file by; give a folder instead.")
        single_file: Any = diffusers.AutoencoderKL
        return single_file.from_single_file(
            str(path), config=str(checkpoint.folder), subfolder="vae", local_files_only=True, torch_dtype=dtype
        )
    advice = "--vae takes a .safetensors file, or the folder of an image decoder in diffusers format."
    class_name = read_json_object(path / "config.json", {"_class_name": str}, ConfigError, advice)["_class_name"]
    if not class_name.startswith("Autoencoder"):
        raise ConfigError(f"--vae {path} is a {class_name}, which decodes no images.")
    return _component(path, "diffusers", class_name, None, dtype)


def vae_sha256(path: Path) -> str:
    """Of a file, or over configuration and weights of a folder."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()
