"""The methods by name. One module is imported when its method is asked for, so an import error surfaces as itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from gift_shared.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from gift_train.methods.base import Method

# In the paper's order, and the upper bound.
METHOD_NAMES = ("zero_shot", "finetune", "l2", "lwf", "icarl", "lwf_vr", "wise_ft", "zscl", "moe_adapter", "gift", "joint")

_REGISTRY: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: make a method known under `name`, which is also its file's and its recipe's name."""

    def decorate(method_class: type[Method]) -> type[Method]:
        method_class.name = name
        _REGISTRY[name] = method_class
        return method_class

    return decorate


def method_class(name: str) -> type[Method]:
    """The method of that name; imports its one module. Raises ConfigError if there is none."""
    if name not in METHOD_NAMES:
        raise ConfigError(unknown_name("method", name, METHOD_NAMES))
    importlib.import_module(f"gift_train.methods.{name}")
    return _REGISTRY[name]
