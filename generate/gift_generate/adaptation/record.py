"""The folder of one task's LoRA: what it is made of, written first; the state of its training; at the end the LoRA."""

import errno
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gift_generate.rendering.loras import ADAPT_FILE, WEIGHTS_FILE
from gift_generate.rendering.reproducible import settings_digest
from gift_shared.atomic import atomic_path, json_text, write_once
from gift_shared.documents import read_json_object
from gift_shared.errors import ConfigError, DataError

STATE_FILE = "state.safetensors"
LOCK_FILE = ".lock"
VERSION = 1  # of adapt.json, see docs/formats.md
SHAPE = {"gift_adapt_version": int, "settings": {}}


class AdaptationFolder:
    """OUT/<task>/: adapt.json, state.safetensors while it is trained, pytorch_lora_weights.safetensors at its end."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """`settings`: all that decides the LoRA's bytes."""
        self.path = path
        self._settings = dict(settings)
        self.weights = path / WEIGHTS_FILE
        self._state = path / STATE_FILE

    @property
    def lock(self) -> Path:
        """What a process holds while it trains here."""
        return self.path / LOCK_FILE

    @property
    def is_done(self) -> bool:
        """Whether the LoRA is there."""
        return self.weights.is_file()

    def require_own(self) -> None:
        """Raises ConfigError if the folder holds a LoRA of other settings, or one that nothing is known of."""
        record = self.path / ADAPT_FILE
        if not record.is_file():
            if self.is_done:
                raise ConfigError(f"{self.path} holds a {WEIGHTS_FILE} without {ADAPT_FILE}: another program's. Choose another --out.")
            return
        found = read_json_object(record, SHAPE, ConfigError, "Remove the folder to begin anew.")
        if found["gift_adapt_version"] != VERSION:
            raise ConfigError(f"{record} is of version {found['gift_adapt_version']}, this program writes {VERSION}. Choose another --out.")
        for name in sorted(found["settings"].keys() | self._settings.keys()):
            if found["settings"].get(name) != self._settings.get(name):
                raise ConfigError(
                    f"{self.path} holds another LoRA: its {name} is {found['settings'].get(name)!r}, this command says "
                    f"{self._settings.get(name)!r}. Give the same settings to go on, or choose another --out."
                )

    def bind(self, machine: Mapping[str, str]) -> None:
        """Write what is trained here, unless it is written. Raises ConfigError as `require_own`."""
        content = json_text({"gift_adapt_version": VERSION, "settings": self._settings, "machine": dict(machine)})
        if not write_once(self.path / ADAPT_FILE, content.encode()):
            self.require_own()

    def save_state(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep all that the update `step` depends on."""
        on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = {"step": str(step), "settings_sha256": settings_digest(self._settings)}
        with atomic_path(self._state) as temporary, full_disk_told(self._state):
            save_file(on_host, temporary, about | {"crc32": _checksum(about, on_host)})

    def load_state(self) -> tuple[int, dict[str, Tensor]] | None:
        """The update to go on with and what it depends on; None if nothing is kept. Raises DataError for a damaged file."""
        if not self._state.is_file():
            return None
        try:
            with safe_open(self._state, framework="pt") as file:
                about = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step, crc32 = int(about["step"]), about.pop("crc32")
        except (SafetensorError, OSError, LookupError, ValueError) as error:
            raise DataError(f"{self._state} cannot be read: {error}. Remove it to train this task anew.") from error
        if about["settings_sha256"] != settings_digest(self._settings) or crc32 != _checksum(about, tensors):
            raise DataError(f"{self._state} is damaged, or of another training. Remove it to train this task anew.")
        return step, tensors

    def drop_state(self) -> None:
        """Once the LoRA is there."""
        self._state.unlink(missing_ok=True)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Where safetensors writes a file. Raises OSError for a full disk, which that library tells in words only."""
    try:
        yield
    except SafetensorError as error:
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _checksum(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of what a state says of itself and of all tensors: the format would not notice a flipped bit."""
    found = zlib.crc32(repr(sorted(about.items())).encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, zlib.crc32(name.encode(), found))
    return f"{found:08x}"
