"""Sentences of random tokens for any tokenizer: what stands around a text is asked of the tokenizer itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gift_shared.errors import ConfigError

NUM_RANDOM_SENTENCES = 1000
RANDOM_SENTENCE_LENGTH = 10
Tokenize = Callable[[Sequence[str]], Tensor]  # texts -> token ids [K, L]


@dataclass(frozen=True)
class TextFrame:
    """The token ids before a text, and those after it: the end first, then padding for as long as the context goes on."""

    before: Tensor
    after: Tensor


def text_frame(tokenize: Tokenize) -> TextFrame:
    """What a tokenizer puts around a text, read off an empty one and a short one.

    OpenAI's: start | end, zeros. Of Hugging Face's: <s> | </s>, <pad>s; [CLS] | [SEP], [PAD]s; T5's: nothing | </s>, <pad>s.
    Raises: ConfigError if that is not how the two texts differ, as where padding comes first.
    """
    empty, short = tokenize(["", "a"]).cpu()
    differs = (empty != short).nonzero().flatten()
    start = int(differs[0]) if len(differs) else len(empty)
    for length in range(1, len(empty) - start):
        if torch.equal(short[start + length :], empty[start : len(empty) - length]):
            return TextFrame(empty[:start], empty[start:])
    raise ConfigError("This model's tokenizer does not say where a text begins and ends, which random sentences need: take another method.")


def random_sentences(frame: TextFrame, vocabulary_size: int, num_sentences: int = NUM_RANDOM_SENTENCES) -> Tensor:
    """Token rows [N, L]: the frame around ten ids uniform over the whole vocabulary (METHODS 2.5, B5). From torch's global generator."""
    context_length = len(frame.before) + len(frame.after)
    length = min(RANDOM_SENTENCE_LENGTH, len(frame.after) - 1)
    words = torch.randint(vocabulary_size, (num_sentences, length))
    before, after = frame.before.expand(num_sentences, -1), frame.after.expand(num_sentences, -1)
    return torch.cat([before, words, after], dim=1)[:, :context_length]
