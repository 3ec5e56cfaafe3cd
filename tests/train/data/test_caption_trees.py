"""The tree of a batch's captions is made where the batch is, in loader processes too, and changes no number."""

from dataclasses import dataclass, replace

import open_clip
import pytest
import torch
from torch.utils.data import Dataset

from gift_train.clip.model import Backbone
from gift_train.data.batches import BatchOrder, place_replay, stream
from gift_train.data.loader import Loading
from gift_train.data.replay import ReplayCollate
from gift_train.distributed import SINGLE, Ranks
from gift_train.methods.texts import encode_captions


@dataclass(frozen=True)
class Captions(Dataset):
    """Pictures of one colour with captions that repeat, and the words of each as tokens."""

    captions: tuple[str, ...]

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        return torch.full((3, 24, 24), index, dtype=torch.uint8), *self.about(index)

    def about(self, index):
        return self.captions[index], f"picture-{index}"


def words(captions):
    """Tokens [K, 77] of captions of numbers, as CLIP's begin, end and are padded."""
    tokens = torch.zeros(len(captions), 77, dtype=torch.long)
    for row, caption in enumerate(captions):
        numbers = [98, *map(int, caption.split()), 99]
        tokens[row, : len(numbers)] = torch.tensor(numbers)
    return tokens


CAPTIONS = Captions(("1 2 3", "1 2 4", "5", "1 2 3", "6 7", "1 2", "5", "8 9 1 2"))
WHOLE = BatchOrder(num_samples=8, batch_size=8, seed=0, name="replay", is_shuffled=False)


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=100, width=32, heads=2, layers=2)
    vision = open_clip.CLIPVisionCfg(image_size=24, patch_size=8, width=32, layers=1, head_width=16)
    return Backbone(open_clip.CLIP(16, vision, text).eval(), None)


def first_batch(reader, ranks=SINGLE, num_workers=0, max_rows=None):
    reader.micro_batch_size = max_rows
    collate = ReplayCollate(words, reader.tree_maker, ranks)
    [batch] = stream(CAPTIONS, WHOLE, collate, range(1), Loading(num_workers=num_workers), ranks)
    return place_replay(batch, reader)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("max_rows", [None, 1])
def test_captions_come_with_their_tree_and_mean_what_they_do_without(reader, num_workers, max_rows, monkeypatch):
    monkeypatch.setattr("gift_train.clip.prefix_tree.LONGEST_ROW", 8)
    batch = first_batch(reader, num_workers=num_workers, max_rows=max_rows)
    assert len(batch.caption_tree.parts) == (1 if max_rows is None else 3)
    reader._trees.clear()
    with_tree = encode_captions(reader, batch)
    assert not reader._trees  # nothing was made where it was encoded
    assert torch.equal(with_tree, encode_captions(reader, replace(batch, caption_tree=None)))


def test_ranks_are_given_the_tree_of_their_own_captions(reader):
    ranks = [Ranks(rank=rank, world_size=2) for rank in range(2)]
    batches = [first_batch(reader, each) for each in ranks]
    distinct = words(list(dict.fromkeys(CAPTIONS.captions)))
    for batch, each in zip(batches, ranks, strict=True):
        own = reader.trim(distinct[each.share(len(distinct))])
        assert torch.equal(reader.encode_texts(own, batch.caption_tree), reader.encode_texts(own))
    [tree_of_both] = first_batch(reader).caption_tree.parts
    assert len(tree_of_both.ends) == len(distinct) == sum(len(batch.caption_tree.parts[0].ends) for batch in batches)


def test_a_model_that_reads_texts_whole_gets_no_tree(reader):
    adapted = reader.frozen_copy()
    adapted.network.transformer.resblocks[0].register_forward_hook(lambda *_: None)
    assert adapted.tree_maker is None
    batch = first_batch(adapted)
    assert batch.caption_tree is None
    with_tree = replace(batch, caption_tree=first_batch(reader).caption_tree)
    assert torch.equal(encode_captions(adapted, with_tree), encode_captions(adapted, batch))
