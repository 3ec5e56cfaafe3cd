"""All tasks at once: what a batch holds, what its loss is, and that a run of it is a run like any other."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gift_shared.manifests import TaskManifest
from gift_train.data.mixture import EvenOrder, mixed_order
from gift_train.methods.losses import own_class_cross_entropy
from gift_train.training.all_tasks import all_classes

SIZES = (3, 50, 7)


def datasets_of(indices):
    ends = np.cumsum(SIZES)
    return np.searchsorted(ends, indices, side="right").tolist()


def test_an_even_draw_gives_each_dataset_its_turn_and_each_image_of_an_epoch_once():
    order = mixed_order("even", SIZES, batch_size=4, seed=1, name="task")
    drawn = [index for position in range(21) for index in order.indices(position)]
    assert datasets_of(drawn) == [0, 1, 2] * 28
    small = drawn[0::3]
    assert all(sorted(small[start : start + 3]) == [0, 1, 2] for start in range(0, 27, 3)), "whole epochs of the small dataset"
    assert len({tuple(small[start : start + 3]) for start in range(0, 27, 3)}) > 1, "shuffled anew"
    assert len(set(drawn[1::3])) == 28, "no image of the large one twice within its epoch"


def test_a_draw_in_proportion_goes_through_all_images():
    order = mixed_order("proportion", SIZES, batch_size=10, seed=1, name="task")
    assert sorted(index for position in range(6) for index in order.indices(position)) == list(range(60))


@pytest.mark.parametrize("draw", ["even", "proportion"])
def test_a_draw_follows_from_seed_and_position_alone(draw):
    def order(seed):
        return mixed_order(draw, SIZES, batch_size=4, seed=seed, name="task")

    in_order = [order(1).indices(position) for position in range(40)]
    jumping = order(1)
    assert [jumping.indices(position) for position in (33, 5, 39)] == [in_order[33], in_order[5], in_order[39]]
    assert order(2).indices(0) != in_order[0]


def test_batches_that_no_number_of_datasets_divides_even_out():
    order = EvenOrder(sizes=SIZES, batch_size=4, seed=0, name="task")
    counts = [Counter(datasets_of(order.indices(position))) for position in range(3)]
    assert [count.most_common(1)[0] for count in counts] == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_each_datasets_own_cross_entropy_with_its_gradient(smoothing):
    generator = torch.Generator().manual_seed(3)
    logits = (10 * torch.randn(6, 5, generator=generator)).requires_grad_()
    datasets = torch.tensor([0, 1, 0, 1, 1, 0])
    labels = torch.tensor([1, 2, 0, 4, 3, 0])
    own = torch.tensor([[True, True, False, False, False], [False, False, True, True, True]])[datasets]
    loss = own_class_cross_entropy(logits, labels, own, label_smoothing=smoothing)
    (found,) = torch.autograd.grad(loss, logits)
    first = F.cross_entropy(logits[datasets == 0][:, :2], labels[datasets == 0], label_smoothing=smoothing, reduction="sum")
    second = F.cross_entropy(logits[datasets == 1][:, 2:], labels[datasets == 1] - 2, label_smoothing=smoothing, reduction="sum")
    expected = (first + second) / 6
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, logits)[0])


def manifest(name, template, *class_names):
    return TaskManifest(name=name, display_name=name, class_names=class_names, templates=(template,), data=None, counts={}, about="")


def test_classes_stand_side_by_side_and_joined_those_that_read_alike_are_one():
    tasks = [manifest("pets", "a pet {}.", "Cat", "dog"), manifest("wild", "a {}.", "fox", "cat", "wolf")]
    apart, joined = (all_classes(tasks, are_joined=are_joined) for are_joined in (False, True))
    assert apart.texts == ("a pet Cat.", "a pet dog.", "a fox.", "a cat.", "a wolf.")
    assert [numbers.tolist() for numbers in apart.numbers] == [[0, 1], [2, 3, 4]]
    assert joined.texts == ("a pet Cat.", "a pet dog.", "a fox.", "a wolf.")
    assert [numbers.tolist() for numbers in joined.numbers] == [[0, 1], [2, 0, 3]]
