"""The weight files OpenAI published, and what people made of them: a TorchScript archive (ViT-B-16.pt), or its state dict.

A TorchScript archive is a zip with code, and torch has no way of opening one that runs none of it. So its tensors are read here: the
pickle that lists them through an unpickler that knows tensors and nothing else, their bytes from the zip. The code is never looked at.
"""

import io
import logging
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MARKS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's state dicts hold these sizes as tensors
_COMPUTED = "attn_mask"  # which a CLIP makes itself; an archive may hold it
_STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_MOST_PICKLE_BYTES = 2**24  # of the list of tensors: that of the largest CLIP takes 100 kB
_MOST_TENSORS = 100_000  # names of one archive; modules that hold each other would never end

_log = logging.getLogger(__name__)


def openai_weights(path: Path) -> dict[str, Tensor] | None:
    """The weights of a file that carries OpenAI's marks, by their names in open_clip's CLIP; None for any other weights file.

    Such a model was trained with QuickGELU. Marks: TorchScript, or the tensors MARKS in a state dict, which are left out here.
    Raises: pickle.UnpicklingError, KeyError, RuntimeError ... for damaged files, as torch.load does.
    """
    if not is_openai_file(path):
        return None
    if _is_torchscript(path):
        tensors = read_torchscript(path)
        if not tensors.keys() >= set(MARKS):
            _log.warning("%s is TorchScript without the sizes that OpenAI's files hold. It is read as one of theirs, with QuickGELU.", path)
    else:
        tensors = dict(_state_dict(torch.load(path, map_location="cpu", weights_only=True)))
    return {name: tensor for name, tensor in tensors.items() if name not in MARKS and name.rpartition(".")[2] != _COMPUTED}


def is_openai_file(path: Path) -> bool:
    """Whether a weights file carries OpenAI's marks; its numbers are not read. Raises what torch.load does for damaged files."""
    if path.suffix in (".safetensors", ".npz", ".npy"):
        return False
    return _is_torchscript(path) or _state_dict(torch.load(path, map_location="meta", weights_only=True)).keys() >= set(MARKS)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """All tensors of a TorchScript archive by their dotted names: parameters, buffers and other tensors that its modules hold.

    Raises: pickle.UnpicklingError if the archive names anything but modules and tensors, or its tensors do not lie in it.
    """
    with zipfile.ZipFile(path) as archive:
        root = _root(archive)
        if archive.getinfo(f"{root}data.pkl").file_size > _MOST_PICKLE_BYTES:
            raise pickle.UnpicklingError(f"its data.pkl is longer than {_MOST_PICKLE_BYTES} bytes")
        content = archive.read(f"{root}data.pkl")
        _check_sizes(content)
        module = _Tensors(io.BytesIO(content), archive, root).load()
    return _flat(module)


def _state_dict(checkpoint: Any) -> Mapping[str, Any]:
    inner = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else {}
    return inner if isinstance(inner, Mapping) else {}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def _root(archive: zipfile.ZipFile) -> str:
    """The one folder of the archive, with its slash."""
    for name in archive.namelist():
        if name.count("/") == 1 and name.endswith("/data.pkl"):
            return name.removesuffix("data.pkl")
    raise pickle.UnpicklingError("it holds no data.pkl")


def _check_sizes(content: bytes) -> None:
    """Refuse a pickle that claims more than it is long: Python allocates what it claims. Raises ValueError if it is none."""
    for code, argument, _ in pickletools.genops(content):
        if "PUT" in code.name and isinstance(argument, int) and argument > len(content):
            raise pickle.UnpicklingError(f"it claims to remember {argument} objects in {len(content)} bytes")


class _Module:
    """What any class of the archive is here: its attributes."""

    def __new__(cls, *_: object) -> "_Module":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Tensors(pickle.Unpickler):
    """Builds modules without behaviour and tensors over the archive's own bytes. Any other name in the pickle ends it."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__" or module == "torch.jit._pickle":  # the latter tags lists with their types
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of weights; it is refused")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"it refers to {pid!r}, which is no storage of numbers")
        if key not in self._storages:
            member = self._archive.getinfo(f"{self._root}data/{key}")
            if member.compress_type != zipfile.ZIP_STORED:  # torch never compresses numbers; a bomb would
                raise pickle.UnpicklingError(f"its member {member.filename} is compressed")
            content = bytearray(self._archive.read(member))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if self._storages[key].dtype != dtype:
            raise pickle.UnpicklingError(f"its storage {key} has two types")
        return self._storages[key]


def _rebuilt(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    """A view of the storage; torch refuses one that reaches out of it."""
    return storage.as_strided(size, stride, offset)


def _flat(module: object) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    todo = [("", module)]
    num_seen = 0
    while todo:
        prefix, value = todo.pop()
        num_seen += 1
        if num_seen > _MOST_TENSORS:
            raise pickle.UnpicklingError(f"it holds more than {_MOST_TENSORS} modules and tensors")
        if isinstance(value, Tensor):
            found[prefix.removesuffix(".")] = value
        elif isinstance(value, _Module):
            todo += [(f"{prefix}{name}.", inner) for name, inner in getattr(value, "attributes", {}).items()]
    return found
