"""What a checkpoint's own card (README.md, YAML front matter) says of its licence, for the record: no byte of an image needs it."""

import re
from pathlib import Path
from typing import Any

import yaml

from gift_shared.cards import CARD_FILE

MOST_CARD_BYTES = 2**20
LICENSE_KEYS = ("license", "license_name", "license_link")  # the last two name a licence that is "other"
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.IGNORECASE)
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)


def license_of(folder: Path) -> dict[str, str]:
    """`{"license": "creativeml-openrail-m"}` and what else of LICENSE_KEYS the card in a model folder has.

    Empty if it names no licence or there is no card: the hub is not asked here, so that a machine without a network does not wait for it.
    """
    facts = _front_matter(_card_text(folder / CARD_FILE))
    license_id = facts.get("license")
    if not isinstance(license_id, str) or not _LICENSE_ID.fullmatch(license_id):
        return {}
    return {key: value for key in LICENSE_KEYS if isinstance(value := facts.get(key), str) and value.strip()}


def _card_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MOST_CARD_BYTES)
    except OSError:
        return ""


def _front_matter(text: str) -> dict[str, Any]:
    match = _FRONT_MATTER.match(text.removeprefix("\ufeff"))
    try:
        facts = yaml.safe_load(match[1]) if match else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
