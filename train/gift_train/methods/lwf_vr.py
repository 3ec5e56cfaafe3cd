"""Learning without Forgetting with a virtual vocabulary: random sentences in place of class prompts."""

from gift_train.clip.model import Backbone
from gift_train.clip.random_sentences import text_frame
from gift_train.data.sources import TextSource
from gift_train.methods.lwf import LearningWithoutForgetting
from gift_train.methods.registry import register


@register("lwf_vr")
class LearningWithoutForgettingVr(LearningWithoutForgetting):
    """LwF in all but its texts: R = 1,000 strings of random tokens, drawn once per task (METHODS 2.5)."""

    summary = "Distils the previous model on the new task's own images and random sentences."
    texts = TextSource.RANDOM

    def check_model(self, student: Backbone) -> None:
        text_frame(student.tokenize)  # refuses a tokenizer that has none
