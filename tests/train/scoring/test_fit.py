"""Similarities and ranks against a plain loop, ties and what is no number."""

import pytest
import torch

from gift_shared.errors import NonFiniteError
from gift_train.clip.load import load_backbone
from gift_train.scoring import fit
from gift_train.scoring.fit import encode_candidates, similarity_and_rank


def directions(*shape, seed):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("at_once", [1, 5, 64, 65_536])
def test_similarity_and_rank_are_those_of_a_plain_loop(monkeypatch, at_once):
    monkeypatch.setattr(fit, "TEXTS_AT_ONCE", at_once)
    images, texts = directions(17, 8, seed=1), directions(23, 8, seed=2)
    own = torch.arange(17) * 3 % 23
    similarity, rank = similarity_and_rank(images, texts, own)
    for place, (image, caption) in enumerate(zip(images.double(), own.tolist(), strict=True)):
        cosines = [float(image @ text.double()) for text in texts]
        assert similarity[place] == pytest.approx(cosines[caption], abs=1e-6)
        assert rank[place] == 1 + sorted(cosines, reverse=True).index(cosines[caption])


@pytest.mark.parametrize("at_once", [1, 2, 65_536])
def test_texts_that_fit_as_well_come_before_the_own(monkeypatch, at_once):
    monkeypatch.setattr(fit, "TEXTS_AT_ONCE", at_once)
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])
    similarity, rank = similarity_and_rank(images, texts, torch.tensor([0, 1, 1, 3, 2]))
    assert similarity.tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0, 0.6])
    assert rank.tolist() == [2, 3, 1, 4, 3]
    blind = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    assert similarity_and_rank(images, blind, torch.tensor([0, 1, 2, 3, 0]))[1].tolist() == [4] * 5


def test_what_is_not_finite_is_told():
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(NonFiniteError, match="features that are not finite"):
        similarity_and_rank(torch.tensor([[float("nan"), 0.0]]), texts, torch.tensor([0]))


def test_captions_that_the_model_reads_alike_are_one_candidate(monkeypatch):
    monkeypatch.setattr(fit, "CAPTIONS_AT_ONCE", 2)
    mini = load_backbone("mini", None)
    captions = ["a red circle.", "a Red  Circle.", "a blue circle.", "a blue square."]
    candidates = encode_candidates(mini, captions)
    assert candidates.number_of == dict(zip(captions, [0, 0, 1, 2], strict=True))
    with torch.no_grad():
        plain = torch.cat([mini.encode_texts(mini.tokenize([caption])) for caption in (captions[0], *captions[2:])])
    assert torch.allclose(candidates.features, plain, atol=1e-6)
