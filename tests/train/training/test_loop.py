"""Schedule, data order and the check for non-finite terms."""

import math

import pytest
import torch
from torch.utils.data import TensorDataset

from gift_shared.errors import NonFiniteError
from gift_train.data.batches import BatchOrder, collate_task, stream
from gift_train.distributed import Ranks
from gift_train.methods.base import LossTerms
from gift_train.training.loop import Schedule, TermRecorder


def test_schedule_warms_up_reaches_its_peak_and_ends_at_zero():
    schedule = Schedule(peak=1e-3, warmup_steps=100, total_steps=1000)
    assert schedule.learning_rate(0) == pytest.approx(1e-5)
    assert schedule.learning_rate(99) == schedule.learning_rate(100) == pytest.approx(1e-3)
    assert schedule.learning_rate(550) == pytest.approx(5e-4)
    assert schedule.learning_rate(1000) == 0.0


def test_schedule_without_warmup_starts_at_its_peak():
    assert Schedule(peak=1e-3, warmup_steps=0, total_steps=10).learning_rate(0) == 1e-3


@pytest.mark.parametrize("total_steps", [3, 4])
def test_an_epoch_that_is_shorter_than_the_warmup_only_rises(total_steps):
    schedule = Schedule(peak=1.0, warmup_steps=4, total_steps=total_steps)
    rates = [schedule.learning_rate(step) for step in range(total_steps + 1)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0][: total_steps + 1]


def test_an_epoch_shows_every_sample_once_and_keeps_the_small_last_batch():
    order = BatchOrder(num_samples=10, batch_size=4, seed=1, name="task")
    batches = [order.indices(position) for position in range(3)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(index for batch in batches for index in batch) == list(range(10))


def test_epochs_differ_streams_differ_and_both_repeat():
    order = BatchOrder(num_samples=50, batch_size=50, seed=1, name="task")
    assert order.indices(0) != order.indices(1)
    assert order.indices(0) != BatchOrder(num_samples=50, batch_size=50, seed=1, name="replay").indices(0)
    assert order.indices(1) == BatchOrder(num_samples=50, batch_size=50, seed=1, name="task").indices(1)


def test_unshuffled_order_is_consecutive_and_starts_over():
    order = BatchOrder(num_samples=5, batch_size=2, seed=1, name="memory", is_shuffled=False)
    assert [order.indices(position) for position in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]


class Noisy(TensorDataset):
    def __getitem__(self, index):
        return torch.rand(()) + super().__getitem__(index)[0]


def test_a_batch_does_not_depend_on_what_was_drawn_before():
    dataset, order = Noisy(torch.arange(6.0)), BatchOrder(num_samples=6, batch_size=2, seed=1, name="task")
    all_batches = list(stream(dataset, order, torch.stack, range(4)))
    torch.rand(17)
    (alone,) = stream(dataset, order, torch.stack, range(3, 4))
    assert torch.equal(all_batches[3], alone)


def test_making_a_batch_leaves_the_global_generator_alone():
    dataset, order = Noisy(torch.arange(6.0)), BatchOrder(num_samples=6, batch_size=2, seed=1, name="task")
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    list(stream(dataset, order, torch.stack, range(2)))
    assert torch.equal(torch.rand(3), expected)


class NoisyPairs(Noisy):
    """Items (image, label), as those of a task."""

    def __getitem__(self, index):
        return super().__getitem__(index).expand(3, 1, 1), *self.about(index)

    def about(self, index):
        return (index,)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_load_the_images_of_one_process_between_them_and_all_labels(world_size):
    """Batches of 4, and the epoch's last of 2: fewer than three ranks, so that each takes both."""
    dataset, order = NoisyPairs(torch.arange(6.0)), BatchOrder(num_samples=6, batch_size=4, seed=1, name="task")
    for alone, *shares in zip(
        stream(dataset, order, collate_task, range(4)),
        *(stream(dataset, order, collate_task, range(4), ranks=Ranks(rank, world_size)) for rank in range(world_size)),
        strict=True,
    ):
        assert all(torch.equal(share.labels, alone.labels) for share in shares)
        counted = [share.images for rank, share in enumerate(shares) if Ranks(rank, world_size).counts(len(alone.labels))]
        assert torch.equal(torch.cat(counted), alone.images)


def test_loss_terms_refuse_a_repeated_name():
    with pytest.raises(ValueError, match="'distillation' is given twice"):
        LossTerms(distillation=torch.ones(())) | LossTerms(distillation=torch.ones(()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_term_is_told_with_its_step_and_name(bad):
    recorder = TermRecorder("gift 2/6 digits")
    for step, value in enumerate((1.0, bad, bad)):
        recorder.add(step, LossTerms(cross_entropy=torch.tensor(2.0), distillation=torch.tensor(value)))
    with pytest.raises(NonFiniteError, match=r"gift 2/6 digits, step 1: the loss term 'distillation' is (nan|inf)"):
        recorder.flush()


def test_recorder_returns_every_step_once():
    recorder = TermRecorder("task")
    recorder.add(0, LossTerms(cross_entropy=torch.tensor(2.0)))
    recorder.add(1, LossTerms(cross_entropy=torch.tensor(3.0), distillation=torch.tensor(1.0)))
    assert recorder.flush() == [(0, {"cross_entropy": 2.0}), (1, {"cross_entropy": 3.0, "distillation": 1.0})]
    assert recorder.flush() == []
