"""A fixture of golden numbers as files: inputs, and numbers that a published implementation computed on them.

A fixture is `<name>.safetensors` (inputs, and a probe of the final weights per variant) with `<name>.json` beside it (the optimizer, and
per variant the losses of every step). All sizes are read off the tensors. Further variants on the same inputs are a fixture of their own,
whose numbers name the file of the inputs by its path from there (`inputs`).
"""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gift_shared.documents import read_json_object, shape_fault
from gift_shared.errors import ConfigError, DataError, NonFiniteError
from gift_train.recipes.recipe import OptimizerSettings
from gift_train.training.loop import Schedule

_NUMBERS = {
    "optimizer": {
        "lr": float, "warmup": int, "total": int, "betas": [float], "eps": float, "weight_decay": float, "label_smoothing": float,
    },
    "stride": int,
    "inputs?": str,
    "variants": {str: {"losses?": [{"loss": float}]}},
}  # fmt: skip


class Fixture:
    """Inputs and golden numbers. Raises DataError for a file that is not such a fixture."""

    def __init__(self, path: Path) -> None:
        tensors_file, numbers_file = locate(path)
        self.path = tensors_file
        self.tensors, self.numbers = read_fixture(tensors_file, numbers_file)
        fault = shape_fault(self.numbers, _NUMBERS)
        if fault is not None:
            raise DataError(f"{numbers_file} lacks or garbles a number of the fixture{fault}.")
        if "inputs" in self.numbers:
            self.tensors = read_tensors(tensors_file.parent / self.numbers["inputs"]) | self.tensors
        settings, betas = self.numbers["optimizer"], self.numbers["optimizer"]["betas"]
        fractions = [settings["label_smoothing"], *betas]
        if len(betas) != 2 or not all(0 <= fraction < 1 for fraction in fractions) or not 0 <= settings["warmup"] < settings["total"]:
            raise DataError(f"{numbers_file}: two betas and label_smoothing from 0 to below 1, and warmup below total, are expected.")
        if min(settings["lr"], settings["eps"], settings["weight_decay"], self.numbers["stride"] - 1) < 0:
            raise DataError(f"{numbers_file}: lr, eps and weight_decay are 0 or more, stride 1 or more.")
        self.label_smoothing = float(settings["label_smoothing"])
        self.schedule = Schedule(peak=settings["lr"], warmup_steps=settings["warmup"], total_steps=settings["total"])
        self.optimizer = OptimizerSettings(beta1=betas[0], beta2=betas[1], epsilon=settings["eps"], weight_decay=settings["weight_decay"])
        self.stride = int(self.numbers["stride"])
        self.golden: Mapping[str, Mapping[str, Any]] = self.numbers["variants"]
        with telling(tensors_file):
            self._check_tensors()

    def tensor(self, name: str) -> Tensor:
        """An input by name. Raises DataError if it is missing."""
        if name not in self.tensors:
            raise DataError(f"{self.path} has no tensor {name!r}; a parity fixture needs it.")
        return self.tensors[name]

    def weights(self, which: str) -> dict[str, Tensor]:
        """`initial` or `previous` weights by parameter name."""
        return {name.removeprefix(f"{which}/"): tensor for name, tensor in self.tensors.items() if name.startswith(f"{which}/")}

    def _check_tensors(self) -> None:
        images, labels = self.tensor("task_images"), self.tensor("task_labels")
        for name, dimensions in (("task_images", 5), ("task_labels", 2), ("class_tokens", 2), ("synthetic_images", 5)):
            if self.tensor(name).ndim != dimensions:
                raise DataError(f"{self.path}: {name!r} should have {dimensions} dimensions, found {list(self.tensor(name).shape)}.")
        if images.shape[:2] != labels.shape or self.tensor("synthetic_captions").shape != self.tensor("synthetic_images").shape[:2]:
            raise DataError(f"{self.path}: images and their labels or captions disagree in steps or batch size.")
        if self.tensor("synthetic_captions").max() >= len(self.tensor("caption_tokens")):
            raise DataError(f"{self.path}: a synthetic image names a caption that 'caption_tokens' does not hold.")
        counted = [labels, *(self.tensor(name) for name in ("class_tokens", "caption_tokens", "synthetic_captions"))]
        if any(tensor.is_floating_point() or not tensor.numel() or tensor.min() < 0 for tensor in counted):
            raise DataError(f"{self.path}: labels, captions and tokens must be whole numbers from 0.")
        vocabulary = len(self.tensor("previous/token_embedding.weight"))
        if max(int(self.tensor(name).max()) for name in ("class_tokens", "caption_tokens")) >= vocabulary:
            raise DataError(f"{self.path}: a token is not among the {vocabulary} of 'previous/token_embedding.weight'.")
        if labels.max() >= len(self.tensor("class_tokens")):
            raise DataError(f"{self.path}: a label has no row in 'class_tokens'.")
        if len(images) > self.schedule.total_steps + 1:
            raise DataError(f"{self.path} has {len(images)} batches; its schedule ends after {self.schedule.total_steps + 1} updates.")


@contextmanager
def telling(tensors_file: Path) -> Iterator[None]:
    """Tensors that do not fit each other, or train to infinity, are noticed by what computes with them."""
    try:
        yield
    except (ConfigError, NonFiniteError, RuntimeError, ValueError, LookupError, ArithmeticError) as error:
        reason = textwrap.shorten(str(error) or repr(error), 500)
        raise DataError(f"{tensors_file} cannot be replayed: {reason} Copy the fixture again, both its files.") from error


def read_fixture(tensors_file: Path, numbers_file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers. Raises DataError for what cannot be read."""
    return read_tensors(tensors_file), read_json_object(numbers_file, {}, DataError)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """By name. Raises DataError for what is no safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable fixture: {error}.") from error


def locate(path: Path) -> tuple[Path, Path]:
    """The two files of the fixture that a folder or its tensors' file stands for. Raises ConfigError, or DataError if one lacks."""
    tensors_file = path / "fixture.safetensors" if path.is_dir() else path
    if tensors_file.suffix != ".safetensors":
        raise ConfigError(f"{path} is neither a folder with fixture.safetensors nor a .safetensors file.")
    numbers_file = tensors_file.with_suffix(".json")
    for file in (tensors_file, numbers_file):
        if not file.is_file():
            raise DataError(f"{file} is missing; a fixture is a .safetensors file with a .json of the same name beside it.")
    return tensors_file, numbers_file
