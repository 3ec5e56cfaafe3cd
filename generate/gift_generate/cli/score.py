"""gift-generate score: judges the pictures of a folder by a CLIP. Imports nothing heavy: another program does it."""

import importlib.util
import os
import sys

from gift_shared.errors import ConfigError
from gift_shared.options import as_words, takes_options
from gift_shared.score_options import ScoreOptions


@takes_options
def score(options: ScoreOptions) -> None:
    """Note how well a CLIP finds that each picture shows its caption; a recipe's [replay] may select by it.

    OUT/scores/NAME.parquet gets the cosine of picture and own caption, and that caption's rank among all of the plan. Any number of workers
    may score one folder; stopped at any moment, the same command goes on. gift-train, which knows every kind of CLIP, does the work.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise ConfigError('Scoring loads CLIPs as gift-train does: pip install "gift-cl[train]".')
    # In this program's place: signals, exit code and output are that program's.
    os.execv(sys.executable, [sys.executable, "-m", "gift_train.cli", "score", *as_words(options)])
