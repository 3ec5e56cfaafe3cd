"""Where the images and texts come from that a method looks at beside its tasks."""

from enum import StrEnum
from typing import Literal

Draw = Literal["even", "proportion"]
"""How images of several datasets are mixed: as many of each, or as many as it has."""


class ReplaySource(StrEnum):
    """Where a method's second stream of images comes from; all of it goes through the evaluation transform."""

    NONE = "none"
    SYNTHETIC = "synthetic"  # images and captions selected from the shards, as the recipe's [replay] says
    TASK = "task"  # the current task's training images, shuffled apart from the task batches
    REFERENCE = "reference"  # the folder or tars given by --reference-images
    MEMORY = "memory"  # training images of earlier tasks that the method keeps, in the order of `Method.memory`


class TextSource(StrEnum):
    """Which texts `TaskContext.reference_tokens` holds."""

    NONE = "none"
    CLASSES = "classes"  # the current task's class prompts
    RANDOM = "random"  # strings of random tokens, drawn once per task
    CAPTIONS = "captions"  # every distinct caption of the task's synthetic images
    FILE = "file"  # the sentences of the file given by --reference-captions, repeats included
    PRETRAINING_CLASSES = "pretraining-classes"  # first-template prompts of the order's pretraining source


class NoTaskSource(StrEnum):
    """Where images come from that stand for "no task of the order"."""

    NONE = "none"
    REFERENCE = "reference"  # the folder or shards given by --reference-images
    SYNTHETIC = "synthetic"  # the synthetic images of the pretraining source's captions
