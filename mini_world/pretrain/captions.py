"""Captions of the pre-training web: each class through its manifest's templates, plainly, and with its colours.

Usage: python mini_world/pretrain/captions.py > data_manifests/gift_manifests/captions/mini_web.txt

The article is always "a", also before a vowel: so CLIP's own templates have it, and one form less has to be learned.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from gift_mini.drawing import GROUNDS, INKS
from gift_mini.stamps import CLASSES

NOUNS = {
    "mini_base": "{}",
    "mini_shapes": "{}",
    "mini_digits": "digit {}",
    "mini_textures": "{} texture",
    "mini_letters": "letter {}",
    "mini_flags": "{} flag",
    "mini_objects": "{}",
}
COLOURED = {
    task: f"a {{ink}} and {{ground}} {noun}." if task == "mini_textures" else f"a {{ink}} {noun} on a {{ground}} background."
    for task, noun in NOUNS.items()
    if task != "mini_flags"
}


@dataclass(frozen=True)
class PictureClass:
    """A class of the web with its task and every plain caption; `captions[0]` is the one that generation uses."""

    task: str
    name: str
    captions: tuple[str, ...]

    def coloured(self, ink: str | None, ground: str) -> str | None:
        """The caption that also tells the colours, or None where the colours are the class."""
        if ink is None or self.task not in COLOURED:
            return None
        return COLOURED[self.task].replace("{}", self.name).format(ink=ink, ground=ground)


@cache
def templates(task: str) -> tuple[str, ...]:
    return tuple(tomllib.loads((files("gift_manifests") / "tasks" / f"{task}.toml").read_text())["templates"])


@cache
def web_classes() -> tuple[PictureClass, ...]:
    """All classes of all tasks, base first."""
    return tuple(
        PictureClass(task, name, tuple(t.format(name) for t in (*templates(task), f"a {NOUNS[task]}.", f"a picture of a {NOUNS[task]}.")))
        for task, names in CLASSES.items()
        for name in names
    )


def all_captions() -> list[str]:
    """Every caption that pre-training can show."""
    captions = [caption for item in web_classes() for caption in item.captions]
    captions += [item.coloured(ink, ground) for item in web_classes() for ink in INKS for ground in GROUNDS if item.coloured(ink, ground)]
    return list(dict.fromkeys(captions))


def sample_captions() -> list[str]:
    """A few hundred captions as the web has them: each class once in words, and in two of its colourings where it has any."""
    rng = random.Random(0)
    captions = []
    for item in web_classes():
        captions.append(rng.choice(item.captions[1:]))
        coloured = [item.coloured(ink, ground) for ink in INKS for ground in GROUNDS]
        captions += rng.sample([caption for caption in coloured if caption], 2) if coloured[0] else []
    rng.shuffle(captions)
    return list(dict.fromkeys(captions))


if __name__ == "__main__":
    print("\n".join(sample_captions()))
