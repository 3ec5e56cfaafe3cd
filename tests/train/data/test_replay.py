"""Synthetic pictures from shards into batches."""

import hashlib
import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from gift_shared.errors import ShardError
from gift_train.data.replay import ReplayCollate, ReplayDataset
from gift_train.data.transforms import image_transforms

EVALUATION = image_transforms(16).evaluation
CAPTIONS = ["a red fox.", "a grey wolf.", "a red fox."]


def encode(image, format):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


def picture(index):
    return Image.fromarray(np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def shard(out, contents, suffix=".png"):
    """Write the contents as one shard; return the columns of the index that reading needs."""
    path = out / "shards" / "fox-00000.tar"
    path.parent.mkdir(parents=True)
    rows = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, content in enumerate(contents):
            member = tarfile.TarInfo(f"fox-{index:06d}{suffix}")
            member.size = len(content)
            offset = tar.offset + 512
            tar.addfile(member, io.BytesIO(content))
            digest = hashlib.sha256(content).hexdigest()
            place = {"shard": "fox-00000", "byte_offset": offset, "byte_size": len(content), "sha256": digest}
            rows.append({"caption": CAPTIONS[index], "sample_key": f"fox-{index:06d}"} | place)
    return pa.Table.from_pylist(rows)


def tokenize(captions):
    return torch.tensor([[len(caption), ord(caption[2])] for caption in captions])


@pytest.mark.parametrize(("format", "suffix"), [("PNG", ".png"), ("WEBP", ".webp")])
def test_pictures_come_back_as_they_were_written(tmp_path, format, suffix):
    rows = shard(tmp_path, [encode(picture(index), format) for index in range(3)], suffix)
    dataset = ReplayDataset(tmp_path, rows, EVALUATION)
    assert len(dataset) == 3
    for _ in range(2):  # the second time from memory
        image, caption, sample_key = dataset[1]
        assert torch.equal(image, EVALUATION(picture(1)))
        assert (caption, sample_key) == ("a grey wolf.", "fox-000001")


def test_batch_shares_an_id_between_equal_captions(tmp_path):
    dataset = ReplayDataset(tmp_path, shard(tmp_path, [encode(picture(index), "PNG") for index in range(3)]), EVALUATION)
    batch = ReplayCollate(tokenize)([dataset[1], dataset[0], dataset[2]])
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.captions == ("a grey wolf.", "a red fox.", "a red fox.")
    assert batch.caption_ids.tolist() == [0, 1, 1]
    assert batch.tokens.tolist() == tokenize(list(batch.captions)).tolist()
    assert batch.sample_keys == ("fox-000001", "fox-000000", "fox-000002")
    assert batch.images.dtype == torch.uint8


def test_changed_shard_is_refused(tmp_path):
    rows = shard(tmp_path, [encode(picture(index), "PNG") for index in range(3)])
    path = tmp_path / "shards" / "fox-00000.tar"
    content = bytearray(path.read_bytes())
    content[rows["byte_offset"][2].as_py() + 40] ^= 1
    path.write_bytes(content)
    dataset = ReplayDataset(tmp_path, rows, EVALUATION)
    dataset[0]
    with pytest.raises(ShardError, match=r"changed after indexing"):
        dataset[2]


@pytest.mark.parametrize("content", [b"no image at all", encode(picture(0), "PNG")[:200], encode(picture(0), "BMP")])
def test_picture_that_does_not_decode_names_shard_and_key(tmp_path, content):
    dataset = ReplayDataset(tmp_path, shard(tmp_path, [content]), EVALUATION)
    with pytest.raises(ShardError, match=r"fox-00000\.tar \(fox-000000\) does not decode"):
        dataset[0]
