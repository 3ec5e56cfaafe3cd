"""Texts -> token ids as a model reads them, and nothing of the model: processes that load captions are handed this, and no weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class BoundTokenizer:
    """A tokenizer of open_clip's, bound to the length that its model reads. Can be pickled."""

    encode: Callable[..., Tensor]
    context_length: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[K, L] on the CPU, padded to the context length; longer texts are cut (see `Backbone.too_long`)."""
        return self.encode(list(texts), context_length=self.context_length)
