"""Whether what a worker makes first is usable at all: a model that makes nothing is told after a few batches, not after the plan."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from gift_shared.errors import ShardError
from gift_shared.schema import SampleStatus

Judgement = tuple[SampleStatus, str]  # of one image, and why it is not ok
MOST_UNUSABLE = 32  # images a worker makes before it doubts the model
SPREAD_ROWS = 32  # images from all over the plan that then decide: one usable among them, and the captions were to blame


class NothingUsable(ShardError):
    """A model or machine that makes no usable image. What it made is not worth keeping: another one may do better."""


class FirstImages:
    """Counts what was made until one is usable. From then on the model is trusted, and images that are not usable are rows as any other.

    `try_spread` makes images from all over the plan, batch by batch: a plan may well begin with captions that are always flagged.
    """

    def __init__(self, try_spread: Callable[[], Iterator[Sequence[Judgement]]]) -> None:
        self._try_spread = try_spread
        self._is_trusted = False
        self._counts: Counter[str] = Counter()
        self._message = ""

    def made(self, judgements: Sequence[Judgement]) -> None:
        """Hear of a batch. Raises NothingUsable once too many came out, none of them usable, nor one from elsewhere in the plan."""
        if self._is_trusted:
            return
        self._count(judgements)
        if self._counts.total() >= MOST_UNUSABLE:
            self._decide()

    def finished(self, judgements: Sequence[Judgement]) -> None:
        """Hear of what became of a whole shard, which may be smaller than what `made` waits for. Raises NothingUsable likewise."""
        if not self._is_trusted and judgements and all(status is not SampleStatus.OK for status, _ in judgements):
            self._counts = self._counts or Counter(str(status) for status, _ in judgements)
            self._message = self._message or judgements[-1][1]
            self._decide()

    def _count(self, judgements: Sequence[Judgement]) -> None:
        for status, message in judgements:
            if status is SampleStatus.OK:
                self._is_trusted = True
                return
            self._counts[str(status)] += 1
            self._message = message

    def _decide(self) -> None:
        num_first = self._counts.total()
        for judgements in self._try_spread():
            self._count(judgements)
            if self._is_trusted:
                return
        counts = ", ".join(f"{count} {status}" for status, count in self._counts.items())
        num_spread = self._counts.total() - num_first
        elsewhere = f", nor one of {num_spread} from all over the plan" if num_spread else ""
        raise NothingUsable(
            f"None of the first {num_first} images is usable{elsewhere} ({counts}; {self._message}). "
            "The model or its settings are at fault and not the captions. None of it was written."
        )
