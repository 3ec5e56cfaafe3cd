"""Recall@k against others: an implementation by sorting, one that tries every order of what is equal, scikit-learn's."""

import itertools

import numpy as np
import pytest
import torch

from gift_train.evaluation import retrieval
from gift_train.evaluation.retrieval import KS, recalls


def features(count, seed, width=6):
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=1)


def by_sorting(similarities, images_of):
    """Image x caption similarities without ties -> recalls in percent, one query after the other."""
    right = images_of[None, :] == np.arange(len(similarities))[:, None]
    found = {}
    for direction, scores, is_right in (("image_to_text", similarities, right), ("text_to_image", similarities.T, right.T)):
        firsts = [np.flatnonzero(row[np.argsort(-values)])[0] for values, row in zip(scores, is_right, strict=True)]
        found[direction] = {str(k): 100 * float(np.mean([first < k for first in firsts])) for k in KS}
    return found


def by_every_order(similarities, images_of):
    """The same where some are equal: the mean over every order in which equal candidates could stand."""
    right = images_of[None, :] == np.arange(len(similarities))[:, None]
    found = {}
    for direction, scores, is_right in (("image_to_text", similarities, right), ("text_to_image", similarities.T, right.T)):
        total = dict.fromkeys(map(str, KS), 0.0)
        for values, row in zip(scores, is_right, strict=True):
            orders = [
                order
                for order in itertools.permutations(range(len(values)))
                if all(values[one] >= values[other] for one, other in itertools.pairwise(order))
            ]
            for k in KS:
                total[str(k)] += np.mean([any(row[list(order[:k])]) for order in orders])
        found[direction] = {k: 100 * value / len(scores) for k, value in total.items()}
    return found


def close(found, expected):
    return all(found[direction] == pytest.approx(expected[direction], abs=1e-9) for direction in ("image_to_text", "text_to_image"))


@pytest.fixture
def several():
    """40 images with 1 to 5 captions each, in no order."""
    images_of = np.random.default_rng(0).permutation(np.repeat(np.arange(40), np.arange(40) % 5 + 1))
    return features(40, 1), features(len(images_of), 2), images_of


def test_several_captions_an_image_are_as_an_implementation_by_sorting_finds_them(several):
    images, texts, images_of = several
    found = recalls(images, texts, np.arange(len(texts)), images_of)
    assert close(found, by_sorting((images @ texts.T).numpy(), images_of))
    assert 0 < found["image_to_text"]["1"] < found["image_to_text"]["5"] < found["image_to_text"]["10"] < 100


@pytest.mark.slow  # importing it
def test_text_to_image_is_scikit_learns_top_k_accuracy(several):
    metrics = pytest.importorskip("sklearn.metrics")
    images, texts, images_of = several
    found = recalls(images, texts, np.arange(len(texts)), images_of)["text_to_image"]
    scores = (texts @ images.T).numpy()
    for k in KS:
        assert found[str(k)] == pytest.approx(100 * metrics.top_k_accuracy_score(images_of, scores, k=k, labels=np.arange(40)))


@pytest.mark.parametrize("most", [1, 64, 1000])
def test_blocks_of_any_size_give_the_same(several, monkeypatch, most):
    images, texts, images_of = several
    whole = recalls(images, texts, np.arange(len(texts)), images_of)
    monkeypatch.setattr(retrieval, "MOST_SIMILARITIES", most)
    assert close(recalls(images, texts, np.arange(len(texts)), images_of), whole)


def test_equal_captions_and_equal_images_count_as_in_random_order():
    images_of, texts_of = np.array([0, 0, 1, 2, 3, 3, 3]), np.array([0, 1, 0, 2, 2, 2, 3])
    images, texts = features(4, 3)[[0, 1, 2, 2]], features(4, 4)
    expected = by_every_order((images @ texts.T).numpy()[:, texts_of], images_of)
    found = recalls(images, texts, texts_of, images_of)
    assert close(found, expected)
    order = np.array([6, 2, 0, 5, 3, 1, 4])
    assert close(recalls(images, texts, texts_of[order], images_of[order]), found)


def test_a_model_that_finds_everything_alike_has_the_recall_of_chance():
    found = recalls(torch.ones(20, 2), torch.ones(1, 2), np.zeros(20, dtype=np.int64), np.arange(20))
    for direction in found.values():
        assert direction == pytest.approx({"1": 5.0, "5": 25.0, "10": 50.0})


def test_a_model_that_is_always_right_has_all_of_them():
    found = recalls(torch.eye(12), torch.eye(12).repeat_interleave(5, dim=0), np.arange(60), np.repeat(np.arange(12), 5))
    assert found == {direction: {"1": 100.0, "5": 100.0, "10": 100.0} for direction in ("image_to_text", "text_to_image")}
