"""A small output folder with three shards, written by stage 1's own writer."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gift_generate.images.image_source import Picture
from gift_generate.output.shard_writer import write_shard
from gift_shared.file_cache import GB, FileCache
from gift_shared.parquet_files import read_index, write_index
from gift_shared.remote_files import Patience
from gift_shared.schema import SINCE_VERSION_2, SampleStatus
from gift_shared.shards import shard_rows
from gift_shared.storage import RemoteFolder

NUM_SHARDS, PER_SHARD = 3, 3
HURRIED = Patience(attempts=4, first_wait=0.05, stall=0.5)
PLANNED = dict.fromkeys(SINCE_VERSION_2) | {
    "task": "cats", "source": "world", "class_name": "tabby", "class_index": 0, "guidance_scale": 7.5, "denoising_steps": 50,
}  # fmt: skip


def picture(number: int) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return Picture(
        status=SampleStatus.OK, message="", attempts=1, used_seed=number, content=buffer.getvalue(), suffix=".png", width=64, height=64
    )


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copied, never changed."""
    out = tmp_path_factory.mktemp("written") / "out"
    for shard in range(NUM_SHARDS):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        rows = [
            PLANNED
            | {"index": number, "sample_key": f"cats-{number:06d}", "caption": f"a tabby {number}", "sample_seed": number}
            | {"shard": f"cats-{shard:05d}"}
            for number in numbers
        ]
        write_shard(out, f"cats-{shard:05d}", rows, [picture(number) for number in numbers], {})
    tables = [read_index(shard_rows(out, f"cats-{shard:05d}"))[0] for shard in range(NUM_SHARDS)]
    write_index(out / "index.parquet", pa.concat_tables(tables), {})
    return out


@pytest.fixture
def out(written: Path, tmp_path: Path) -> Path:
    """The output folder, to be served and spoiled."""
    return Path(shutil.copytree(written, tmp_path / "served" / "out"))


@pytest.fixture
def remote(tmp_path: Path) -> Callable[..., RemoteFolder]:
    """`remote(url)` opens it with a cache of its own and little patience; `cache_bytes` bounds the cache."""

    def open_url(url: str, cache_bytes: int = GB, patience: Patience = HURRIED) -> RemoteFolder:
        return RemoteFolder(url, FileCache(tmp_path / "cache", cache_bytes / GB), patience)

    return open_url


@pytest.fixture
def places(written: Path) -> list[dict[str, object]]:
    """Where every image lies, as `read_image_bytes` is asked for it."""
    return read_index(written / "index.parquet")[0].select(["shard", "byte_offset", "byte_size", "sha256"]).to_pylist()
