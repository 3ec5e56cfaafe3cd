"""What whoever makes images says of itself, so that an output folder can be bound to it: settings, and the machine for the record."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any


class Reproducible(ABC):
    """Something whose images follow from its settings and from what it is asked for. An implementation says what is its own.

    The defaults are those of one that is the same on every machine and leaves nothing open.
    """

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides bytes besides what is asked for; an output folder holds images of one setting only."""

    @property
    def machine(self) -> dict[str, str]:
        """Hardware and versions, for the record."""
        return {}

    def adopt(self, settings: dict[str, Any]) -> None:
        """Take over, from the settings that a folder is bound to, what was left open here, such as an automatic batch size."""
        return


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A name for settings: equal ones have the same on every machine. What is null counts as not there."""
    given = {name: value for name, value in settings.items() if value is not None}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
