"""Several datasets from the same worker processes, and what such a process is handed."""

import io
import multiprocessing
import pickle

import open_clip
import pyarrow as pa
import pytest
import torch
from torch.utils.data import TensorDataset

from gift_shared.schema import INDEX_SCHEMA
from gift_train.clip.model import Backbone
from gift_train.data.batches import BatchOrder, Pass, _BatchesByPosition, streams_in_turn
from gift_train.data.loader import HERE, Loading, _InWorker
from gift_train.data.replay import ReplayCollate, ReplayDataset
from gift_train.data.transforms import image_transforms
from gift_train.distributed import SINGLE


class Numbers(TensorDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]


def passes(*lengths):
    """Datasets of consecutive numbers, each in batches of 2 and without its first batch."""
    for number, length in enumerate(lengths):
        order = BatchOrder(num_samples=length, batch_size=2, seed=0, name="evaluate", is_shuffled=False)
        values = torch.arange(100 * number, 100 * number + length)
        yield Pass(dataset=Numbers(values), order=order, positions=range(1, order.batches_per_epoch))


@pytest.mark.parametrize("loading", [HERE, Loading(num_workers=2)])
def test_datasets_come_one_after_the_other_from_workers_that_stay(loading):
    found, workers = [], set()
    with streams_in_turn(list(passes(5, 2, 4)), torch.stack, loading) as streams:
        for batches in streams:
            found.append([batch.tolist() for batch in batches])
            workers |= {worker.pid for worker in multiprocessing.active_children()}
    assert found == [[[2, 3], [4]], [], [[202, 203]]]
    assert len(workers) <= loading.num_workers
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("loading", [HERE, Loading(num_workers=1)])
def test_what_is_left_of_a_dataset_is_no_batch_of_the_next(loading):
    with streams_in_turn(list(passes(9, 5)), torch.stack, loading) as streams:
        assert next(next(streams)).tolist() == [2, 3]
        assert [batch.tolist() for batch in next(streams)] == [[102, 103], [104]]


def test_the_workers_end_with_the_block_also_in_the_middle():
    def leave():
        with streams_in_turn(list(passes(99, 5)), torch.stack, Loading(num_workers=2)) as streams:
            next(next(streams))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert multiprocessing.active_children() == []


class _Listing(pickle.Pickler):
    """Notes what kinds of things are pickled."""

    def __init__(self):
        self.content = io.BytesIO()
        self.kinds = set()
        super().__init__(self.content, protocol=pickle.HIGHEST_PROTOCOL)

    def reducer_override(self, thing):
        self.kinds.add(type(thing))
        return NotImplemented


def test_a_worker_is_handed_the_tokenizer_and_no_weight():
    """What forkserver and spawn send to each worker of a replay stream: it must not grow with the model."""
    vision = open_clip.CLIPVisionCfg(image_size=32, patch_size=16, width=64, layers=2, head_width=32)
    text = open_clip.CLIPTextCfg(context_length=12, width=64, heads=2, layers=1)
    student = Backbone(open_clip.CLIP(16, vision, text), open_clip.SimpleTokenizer())
    rows = pa.Table.from_pylist([], INDEX_SCHEMA)
    dataset = ReplayDataset("shards", rows, image_transforms(32, student.resize_settings).evaluation)
    order = BatchOrder(num_samples=1, batch_size=1, seed=0, name="replay")
    pickler = _Listing()
    pickler.dump(_InWorker(_BatchesByPosition(dataset, order, ReplayCollate(student.tokenize, student.tree_maker), SINGLE)))
    assert not any(issubclass(kind, torch.Tensor | torch.nn.Module) for kind in pickler.kinds)
    num_bytes, weights = len(pickler.content.getvalue()), sum(one.nbytes for one in student.network.parameters())
    assert num_bytes < 3_000_000 < weights  # the words of CLIP's tokenizer, and the smallest model that reads them
    collate = pickle.loads(pickler.content.getvalue()).batches.collate
    assert collate.trees == student.tree_maker
    handed = collate.tokenizer
    assert torch.equal(handed(["a fox"]), student.tokenize(["a fox"]))
    assert handed(["a fox"]).shape == (1, 12)
