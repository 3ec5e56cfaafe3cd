"""What a task replays, as a recipe asks for it."""

from dataclasses import dataclass

from gift_shared.errors import ConfigError, unknown_name
from gift_train.data.score_rules import NO_RULES, ScoreRules

CAPTION_RULES = ("all", "pretraining-only")


@dataclass(frozen=True, kw_only=True)
class ReplaySelection:
    """How many pictures a task replays and whose captions they may carry.

    captions: "all" = pre-training source and earlier tasks; "pretraining-only" = the pre-training source alone.
    seed: decides the draw from a pool; a per-task plan was drawn when it was planned.
    by_score: which of them may be taken at all, by how well they show their captions.
    """

    num_images: int
    captions: str
    seed: int
    by_score: ScoreRules = NO_RULES

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ConfigError(f"[replay] num_images must be at least 1, found {self.num_images}.")
        if self.captions not in CAPTION_RULES:
            raise ConfigError("[replay] " + unknown_name("captions", self.captions, CAPTION_RULES))
