"""How well images fit their own captions among all captions of a plan: cosines and ranks, some of the captions at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from gift_shared.errors import NonFiniteError
from gift_train.clip.model import Backbone, in_blocks

TEXTS_AT_ONCE = 65_536  # candidates that a batch of images is held against at once: 256 images take 67 MB
CAPTIONS_AT_ONCE = 4096  # that are tokenised at once


@dataclass(frozen=True)
class Candidates:
    """The distinct captions of a plan as a model reads them: two that it gets the same tokens of are one.

    features: [K, D], L2-normalised. number_of: of each caption the row that is its.
    """

    features: Tensor
    number_of: dict[str, int]


@torch.no_grad()
def encode_candidates(backbone: Backbone, captions: Sequence[str]) -> Candidates:
    """Encode distinct captions, each text once. Takes about 4 D bytes of the device's memory a caption. Raises NonFiniteError."""
    number_of: dict[str, int] = {}
    known: dict[bytes, int] = {}
    features = []
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        part = list(captions[start : start + CAPTIONS_AT_ONCE])
        new = []
        for caption, tokens in zip(part, backbone.tokenize(part), strict=True):
            key = blake2b(tokens.numpy().tobytes(), digest_size=16).digest()
            if key not in known:
                known[key] = len(known)
                new.append(tokens)
            number_of[caption] = known[key]
        if new:
            features.append(in_blocks(lambda block: backbone.encode_texts(backbone.trim(block)), torch.stack(new)))
    text_features = torch.cat(features)
    _require_finite(text_features)
    return Candidates(text_features, number_of)


@torch.no_grad()
def similarity_and_rank(image_features: Tensor, text_features: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine of each image and its own text, and the rank of that among all texts.

    rank_i = #{k : f_i . g_k >= f_i . g_own(i)}, own text included: 1 is the best, and texts that fit an image equally well count as if
    the others came first. So a model that sees no difference between texts ranks none of them high.

    Args:
        image_features, text_features: [B, D] and [K, D], L2-normalised.
        own: [B] long, each image's own row of `text_features`.
    Returns: float32 [B] and long [B].
    Raises: NonFiniteError for features that are not finite, which no rank follows from.
    """
    parts = list(zip(range(0, len(text_features), TEXTS_AT_ONCE), text_features.split(TEXTS_AT_ONCE), strict=True))
    similarity = image_features.new_empty(len(image_features))
    for start, part in parts:  # by the very product that it is compared in below: another one may differ in its last bits
        is_here = (own >= start) & (own < start + len(part))
        if bool(is_here.any()):
            similarity[is_here] = (image_features @ part.T)[is_here, own[is_here] - start]
    _require_finite(similarity)
    rank = torch.zeros_like(own)
    for _, part in parts:
        rank += (image_features @ part.T >= similarity[:, None]).sum(dim=1)
    return similarity, rank


def _require_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError("The CLIP gives features that are not finite. Are its weights sound, and does --precision fp32 help?")
