"""A CLIP's weights in a file of any kind, put into a network: safetensors, torch's pickles, OpenAI's archives, big_vision's arrays.

What is not of our forms is made to fit as open_clip's own loading does, by functions that it does not promise to keep.
What training wraps around names goes: `module.` of DistributedDataParallel and of averaged models, `_orig_mod.` of torch.compile ...
"""

import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gift_shared.atomic import atomic_path
from gift_shared.errors import ConfigError
from gift_train.clip.model import check_same_model
from gift_train.clip.model_config import METADATA_KEY, ModelConfig, check
from gift_train.clip.openai_files import openai_weights

BIG_VISION = (".npz", ".npy")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # anywhere in a name
INNER = ("state_dict", "model_state_dict", "model")  # of a training checkpoint, where its weights are; open_clip's own first
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # beside them in some
_COUNT = "n_averaged"  # of torch's AveragedModel, whose weights are under `module.`
_TRANSFORMERS_MARK = "text_model.embeddings.token_embedding.weight"
_POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")

_log = logging.getLogger(__name__)


def config_of_file(path: Path) -> ModelConfig | None:
    """The model that a safetensors file of ours says it holds the weights of; None for all other files. Raises ConfigError."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get(METADATA_KEY)
    if told is None:
        return None
    advice = "The file is damaged, or not ours: copy it again."
    try:
        config: Any = json.loads(told)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: its metadata {METADATA_KEY!r} is not JSON ({error}). {advice}") from error
    check(config, f"{path}, {METADATA_KEY}", path.stat().st_size, "the file", advice)
    return dict(config)


def put_weights(network: torch.nn.Module, path: Path, model: str) -> None:
    """Load a file into the network of which it holds the weights, all of them; `model` is how errors call it.

    Raises: ConfigError, or what torch, safetensors and zipfile raise, if it holds others or is damaged.
    """
    if path.suffix in BIG_VISION:
        open_clip.load_checkpoint(network, str(path))
        return
    tensors = openai_weights(path)
    if tensors is None:
        tensors = unwrapped(load_file(path) if path.suffix == ".safetensors" else _unpickled(path), path)
    put_tensors(network, tensors, str(path), model)


def put_tensors(network: Any, tensors: Mapping[str, Tensor], where: str, model: str) -> None:
    """The tensors into the network, with what open_clip's own loading makes fit: older names, scales of one number, other grids."""
    if _TRANSFORMERS_MARK in tensors:
        raise ConfigError(f"{where} has the names of transformers' CLIPModel: give its folder, with config.json, as --model instead.")
    weights = dict(convert_state_dict(network, dict(tensors)))
    if "positional_embedding" in weights and not hasattr(network, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    own = network.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in weights and name in own and weights[name].ndim != own[name].ndim:
            weights[name] = weights[name].reshape(own[name].shape)
    weights.pop("text.transformer.embeddings.position_ids", None)  # counts, which transformers no longer keeps
    before = {name: tuple(weights[name].shape) for name in _POSITIONS if name in weights}
    resize_pos_embed(weights, network)
    resize_text_pos_embed(weights, network)
    for name, shape in before.items():
        if tuple(weights[name].shape) != shape:
            _log.warning("%s: %s is stretched from %d to %d positions, as open_clip does.", where, name, shape[0], len(weights[name]))
    counts = [name for name in own if name.endswith("num_batches_tracked")]  # which nobody reads
    try:
        check_same_model(own, weights, may_lack=counts)
    except ConfigError as error:
        raise ConfigError(f"{where} holds no {model}. {error}") from error
    network.load_state_dict(weights, strict=False)  # halves become floats


def unwrapped(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by their plain names. Raises ConfigError if there are none."""
    inner = next((checkpoint[key] for key in INNER if isinstance(checkpoint.get(key), Mapping)), checkpoint)
    averages = [key for key in AVERAGES if isinstance(checkpoint.get(key), Mapping)]
    if averages:
        taken = "the averages are passed over" if inner is not checkpoint else "they alone are there"
        _log.warning("%s holds averaged weights as well (%s): %s.", path, ", ".join(averages), taken)
        inner = checkpoint[averages[0]] if inner is checkpoint else inner
    weights = {name: tensor for name, tensor in inner.items() if name != _COUNT}
    if not weights or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()):
        raise ConfigError(f"{path} holds no weights: expected names and tensors, or a checkpoint with them under {' or '.join(INNER)}.")
    for wrapper in WRAPPERS:
        weights = {name.replace(wrapper, ""): tensor for name, tensor in weights.items()}
    while all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return weights


def _unpickled(path: Path) -> Any:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, Mapping):
        raise ConfigError(f"{path} holds no weights: expected names and tensors, found {type(checkpoint).__name__}.")
    return checkpoint


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all; contiguous tensors on the CPU. Raises OSError."""
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:
            if "os error 28" in str(error):  # the library tells a full disk in words only
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
