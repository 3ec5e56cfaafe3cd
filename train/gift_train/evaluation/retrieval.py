"""Zero-shot retrieval: is an image's caption among the texts nearest to it, and a caption's image among the nearest images? Recall@k.

Every image and every caption is a query, against all captions and all images. An image is found if any of its captions is; that is how
Flickr30k and COCO with five captions an image are counted.

Ties: what is equally similar comes in random order, and recall is the expected value over it, exactly. So it depends on no order of files,
a model that gives all pairs one similarity has the recall of chance, and captions that read alike cannot be told apart for free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

from gift_shared.manifests import TaskManifest
from gift_shared.progress import Progress
from gift_train.clip.model import TEXT_BLOCK, Backbone
from gift_train.data.batches import BatchOrder, stack_images, stream
from gift_train.data.loader import HERE, Loading
from gift_train.data.tasks import TaskImages
from gift_train.distributed import SINGLE, Ranks
from gift_train.evaluation.cache import EvaluationCache

KS = (1, 5, 10)
MOST_SIMILARITIES = 2**24  # computed at once; 64 MB, of which a few copies exist for a moment
MayStop = Callable[[], None]  # may raise, which ends the evaluation
Recalls = dict[str, dict[str, float]]
"""Percent, by direction (`image_to_text`, `text_to_image`) and k (`1`, `5`, `10`)."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """Pairs as a model reads them. Captions that read alike are one text, so that their similarities are equal to the last bit.

    tokens: [U, L] int32, the distinct texts. texts_of, images_of: for each caption its text and its image, [C].
    """

    name: str
    images: TaskImages
    tokens: Tensor
    texts_of: NDArray[np.int64]
    images_of: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, images: TaskImages, captions: Sequence[str], images_of: NDArray[np.int64], student: Backbone) -> "RetrievalSet":
        """Tokenise the captions, once for all evaluations."""
        distinct = sorted(set(captions))  # neighbours share their beginnings, which are then encoded once
        place = {text: number for number, text in enumerate(distinct)}
        texts_of = np.array([place[caption] for caption in captions], dtype=np.int64)
        tokens = torch.cat([student.tokenize(distinct[start : start + 4096]).int() for start in range(0, len(distinct), 4096)])
        return cls(name=name, images=images, tokens=tokens, texts_of=texts_of, images_of=images_of)


@torch.no_grad()
def evaluate_retrieval(
    student: Backbone,
    sets: Sequence[RetrievalSet],
    *,
    batch_size: int,
    loading: Loading = HERE,
    cache: EvaluationCache | None = None,
    ranks: Ranks = SINGLE,
    description: str = "retrieval",
    before_set: MayStop = lambda: None,
    before_block: MayStop = lambda: None,
) -> dict[str, Recalls]:
    """Recall@1, 5 and 10 in both directions of each set, by its name, with the network as it is. Shows its progress.

    Several ranks share images, texts and queries. `before_set` is called by every rank at the same places, `before_block` by each at
    its own.
    """
    found = {}
    for one in sets:
        before_set()
        images: Dataset[tuple[Tensor, int]] = one.images
        if cache is not None:
            images = ranks.main_process_first(partial(cache.images, _as_manifest(one), one.images))
        what = f"{description}, {one.name}"
        image_features = _image_features(student, images, len(one.images), batch_size, loading, ranks, before_block, what)
        text_features = _text_features(student, one.tokens, ranks, before_block, what)
        found[one.name] = recalls(image_features, text_features, one.texts_of, one.images_of, ranks, before_block, what)
    return found


@torch.no_grad()
def recalls(
    image_features: Tensor,
    text_features: Tensor,
    texts_of: NDArray[np.int64],
    images_of: NDArray[np.int64],
    ranks: Ranks = SINGLE,
    before_block: MayStop = lambda: None,
    description: str = "retrieval",
) -> Recalls:
    """Recall@k in percent from features [N, D] of images and [U, D] of distinct texts; caption c is text texts_of[c] of image images_of[c].

    Every image must have a caption. Similarities are computed in blocks: memory does not grow with N times U.
    """
    num_images, num_captions = len(image_features), len(texts_of)
    texts, images = (torch.from_numpy(numbers).to(image_features.device) for numbers in (texts_of, images_of))
    copies = torch.bincount(texts, minlength=len(text_features)).int()  # captions that are this text; counted in whole numbers, exactly
    by_image, by_caption = _blocks(num_images, len(text_features), ranks), _blocks(num_captions, num_images, ranks)
    with Progress(f"{description}: ranks", len(by_image) + len(by_caption), "block", stays=False) as progress:
        totals = []
        for blocks, count in (
            (by_image, partial(_found_texts, image_features, text_features, texts, images, copies)),
            (by_caption, partial(_found_images, image_features, text_features, texts, images)),
        ):
            total = torch.zeros(len(KS), dtype=torch.float64)
            for rows in blocks:
                before_block()
                total += count(rows)
                progress.advance()
            totals.append(total)
    shares = [(totals[0], num_images), (totals[1], num_captions)]
    summed = [ranks.all_reduce(total * ranks.counts(number)) / number for total, number in shares]
    return {
        direction: {str(k): 100.0 * value for k, value in zip(KS, of_direction.tolist(), strict=True)}
        for direction, of_direction in zip(("image_to_text", "text_to_image"), summed, strict=True)
    }


def chance_of_being_found(num_before: Tensor, num_own: Tensor, num_others: Tensor, k: int) -> Tensor:
    """The probability that one of `num_own` right candidates is among the first k, in float64.

    `num_before` candidates are more similar than the best right ones; these stand in random order with `num_others` equally similar wrong
    ones: P = 1 - prod_{i=0..j-1} (b - i) / (a + b - i) with a right ones, b wrong ones and the j = k - num_before places that are left.
    """
    left = (k - num_before).clamp(min=0)
    missed = torch.ones(len(left), dtype=torch.float64)
    for drawn in range(k):
        remaining = (num_others - drawn).clamp(min=0).double()
        missed *= torch.where(drawn < left, remaining / (num_own + remaining), 1.0)
    return 1 - missed


def _found_texts(images: Tensor, texts: Tensor, texts_of: Tensor, images_of: Tensor, copies: Tensor, rows: range) -> Tensor:
    """For images number `rows`, the sum of their chances to find a caption among the first k, by k. [3] float64 on the CPU."""
    similarities = images[rows.start : rows.stop] @ texts.T
    own = ((images_of >= rows.start) & (images_of < rows.stop)).nonzero().squeeze(1)  # captions of these images
    places, of_own = images_of[own] - rows.start, texts_of[own]
    values = similarities[places, of_own]
    best = torch.full((len(rows),), -torch.inf, device=values.device, dtype=values.dtype).scatter_reduce(0, places, values, "amax")
    before = ((similarities > best[:, None]) * copies).sum(dim=1)
    ties = ((similarities == best[:, None]) * copies).sum(dim=1)
    num_own = torch.zeros_like(ties).scatter_add(0, places, (values == best[places]).to(ties.dtype))
    return _chances(before, num_own, ties - num_own)


def _found_images(images: Tensor, texts: Tensor, texts_of: Tensor, images_of: Tensor, rows: range) -> Tensor:
    """For captions number `rows`, the sum of their chances to find their image among the first k, by k. [3] float64 on the CPU."""
    captions = slice(rows.start, rows.stop)
    similarities = texts[texts_of[captions]] @ images.T
    own = similarities.gather(1, images_of[captions, None])
    before, ties = (similarities > own).sum(dim=1), (similarities == own).sum(dim=1)
    return _chances(before, torch.ones_like(ties), ties - 1)


def _chances(num_before: Tensor, num_own: Tensor, num_others: Tensor) -> Tensor:
    before, own, others = num_before.cpu(), num_own.cpu(), num_others.cpu()
    return torch.stack([chance_of_being_found(before, own, others, k).sum() for k in KS])


def _blocks(num_queries: int, num_candidates: int, ranks: Ranks) -> list[range]:
    """Queries of this rank, in ranges of so many that their similarities to all candidates fit."""
    own = range(num_queries)[ranks.share(num_queries)]
    size = max(1, MOST_SIMILARITIES // num_candidates)
    return [own[start : start + size] for start in range(0, len(own), size)]


def _image_features(
    student: Backbone,
    images: Dataset[tuple[Tensor, int]],
    num_images: int,
    batch_size: int,
    loading: Loading,
    ranks: Ranks,
    before_block: MayStop,
    description: str,
) -> Tensor:
    """[N, D] on the student's device, on every rank."""
    own = range(num_images)[ranks.share(num_images)]
    order = BatchOrder(num_samples=len(own), batch_size=batch_size, seed=0, name="retrieval", is_shuffled=False)
    batches = stream(Subset(images, own), order, stack_images, range(order.batches_per_epoch), loading)
    features = []
    with Progress(f"{description}: images", len(own), "image", stays=False) as progress:
        for batch in batches:
            before_block()
            features.append(student.encode_images(student.place_images(batch)))
            progress.advance(len(batch))
    return ranks.all_gather(torch.cat(features), num_images)


def _text_features(student: Backbone, tokens: Tensor, ranks: Ranks, before_block: MayStop, description: str) -> Tensor:
    """[U, D] on the student's device, on every rank."""
    own = tokens[ranks.share(len(tokens))]
    features = []
    with Progress(f"{description}: texts", len(own), "text", stays=False) as progress:
        for block in torch.split(own, TEXT_BLOCK):
            before_block()
            features.append(student.encode_texts(student.trim(block.long())))
            progress.advance(len(block))
    return ranks.all_gather(torch.cat(features), len(tokens))


def _as_manifest(one: RetrievalSet) -> TaskManifest:
    """What the cache of prepared images asks of a dataset."""
    name = f"retrieval-{one.name}"
    return TaskManifest(name=name, display_name=name, class_names=(), templates=(), data=None, counts={}, about="")
