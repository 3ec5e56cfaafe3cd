"""Parts of growth.py that handle rows without an image: an index of a pool as large as asked, and what is done with it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gift_shared.manifests import Manifests
from gift_shared.schema import INDEX_FILE, INDEX_SCHEMA, PLAN_FILE

ORDER = "mtil-1"
ROWS_OF_A_SHARD = 1_000
BYTES_OF_AN_IMAGE = (30_000, 70_000)
Action = tuple[Callable[[], Any], Path | None]


def pool_rows(num_rows: int) -> Iterator[pa.Table]:
    """Rows of an index, a shard at a time: every class name of the order as often as the others, every image there."""
    manifests = Manifests(())
    order = manifests.order(ORDER)
    sources = (order.pretraining_source, *order.tasks)
    entries = [(source, index, name) for source in sources for index, name in enumerate(manifests.task(source).class_names)]
    copies, random = -(-num_rows // len(entries)), np.random.default_rng(0)
    for start in range(0, num_rows, ROWS_OF_A_SHARD):
        places = range(start, min(start + ROWS_OF_A_SHARD, num_rows))
        own = [entries[place // copies] for place in places]
        count, digests = len(places), random.bytes(32 * len(places)).hex()
        sample_keys = [f"{source}-{index:04d}-{place % copies:05d}" for place, (source, index, _) in zip(places, own, strict=True)]
        seeds = random.integers(0, 2**62, count)
        columns = {
            "task": ["pool"] * count,
            "index": list(places),
            "sample_key": sample_keys,
            "caption": [f"a photo of a {name}." for _, _, name in own],
            "source": [source for source, _, _ in own],
            "class_name": [name for _, _, name in own],
            "class_index": [index for _, index, _ in own],
            "sample_seed": seeds,
            "guidance_scale": [7.5] * count,
            "denoising_steps": [50] * count,
            "shard": [f"pool-{start // ROWS_OF_A_SHARD:05d}"] * count,
            "status": ["ok"] * count,
            "message": [""] * count,
            "attempts": [1] * count,
            "used_seed": seeds,
            "width": [512] * count,
            "height": [512] * count,
            "image_name": [f"{key}.jpg" for key in sample_keys],
            "byte_offset": (np.arange(count) * BYTES_OF_AN_IMAGE[1]).tolist(),
            "byte_size": random.integers(*BYTES_OF_AN_IMAGE, count),
            "sha256": [digests[at : at + 64] for at in range(0, 64 * count, 64)],
        }
        arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in INDEX_SCHEMA]
        yield pa.table(arrays, schema=INDEX_SCHEMA)


def _open(num_rows: int, plan: Path, out: Path) -> Action:
    from gift_generate.images.constants import batch_constants
    from gift_generate.output.folder import open_output

    out.mkdir(exist_ok=True)
    (out / PLAN_FILE).hardlink_to(plan)

    def act() -> None:
        assert batch_constants(plan)
        output = open_output(out)
        assert len(output.rows(output.shards[-1])) > 0

    return act, None


def _join(num_rows: int, plan: Path, out: Path) -> Action:
    from gift_shared.parquet_files import write_index_parts

    return lambda: write_index_parts(out / INDEX_FILE, pool_rows(num_rows), {}), out / INDEX_FILE


def _card(num_rows: int, plan: Path, out: Path) -> Action:
    from gift_generate.output.dataset_card import write_card

    (out / "render.json").write_text('{"settings": {}}', encoding="utf-8")
    return lambda: write_card(out), None


def _select(num_rows: int, plan: Path, out: Path) -> Action:
    from gift_train.data.selection import ReplaySelection, select_replay

    order = Manifests(()).order(ORDER)
    return lambda: select_replay(out, order, ReplaySelection(num_images=1000, captions="all", seed=0)), None


def _status_of_index(num_rows: int, plan: Path, out: Path) -> Action:
    from gift_generate.output.status import indexed_tasks

    return lambda: indexed_tasks(out), None


ACTIONS: dict[str, Callable[[int, Path, Path], Action]] = {
    "open": _open,
    "join": _join,
    "card": _card,
    "select": _select,
    "status_of_index": _status_of_index,
}
