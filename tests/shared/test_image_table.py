"""Rows and images of an output folder, as a notebook has them."""

import hashlib
import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gift_shared.errors import ConfigError, ShardError
from gift_shared.image_table import ImageTable
from gift_shared.schema import INDEX_SCHEMA

CAPTIONS = ("a red fox.", "a Fox in snow.", "a boat.", "a failed fox.")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> ImageTable:
    """Four rows: three images of one grey each, and a sample that has none."""
    out, rows = tmp_path_factory.mktemp("shards"), []
    (out / "shards").mkdir()
    with tarfile.open(out / "shards/animals-00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, caption in enumerate(CAPTIONS):
            row = {"sample_key": f"animals-{index}", "task": "animals", "index": index, "caption": caption, "class_name": "fox"}
            row |= {"source": "base", "class_index": 0, "sample_seed": 1, "used_seed": 1, "guidance_scale": 7.5, "denoising_steps": 5}
            row |= {"attempts": 1, "shard": "animals-00000", "status": "ok", "message": ""}
            if index == 3:
                rows.append(row | {"status": "failed", "message": "no luck"})
                continue
            buffer = io.BytesIO()
            Image.new("RGB", (8, 6), (50 * index,) * 3).save(buffer, format="PNG")
            content = buffer.getvalue()
            member = tarfile.TarInfo(f"animals-{index}.png")
            member.size = len(content)
            place = {"image_name": member.name, "byte_offset": tar.offset + 512, "byte_size": len(content), "width": 8, "height": 6}
            rows.append(row | place | {"sha256": hashlib.sha256(content).hexdigest()})
            tar.addfile(member, io.BytesIO(content))
    return ImageTable(pa.Table.from_pylist(rows, INDEX_SCHEMA), out)


def test_rows_are_a_frame_with_the_columns_of_the_index(table):
    assert list(table.rows.columns) == INDEX_SCHEMA.names
    assert table.rows["caption"].tolist() == list(CAPTIONS)
    assert len(table) == 4


def test_iterating_gives_the_images_there_are_with_their_rows(table):
    found = [(np.asarray(image)[0, 0].tolist(), row["sample_key"]) for image, row in table]
    assert found == [([0, 0, 0], "animals-0"), ([50, 50, 50], "animals-1"), ([100, 100, 100], "animals-2")]


def test_an_image_is_found_by_its_key(table):
    image = table.image("animals-2")
    assert (image.size, image.mode, image.getpixel((0, 0))) == ((8, 6), "RGB", (100, 100, 100))
    assert table.row("animals-2")["caption"] == "a boat."


def test_captions_are_searched_in_any_case_and_columns_compared(table):
    assert table.filter("fox").keys == ["animals-0", "animals-1", "animals-3"]
    assert table.filter("FOX", status="ok").keys == ["animals-0", "animals-1"]
    assert table.filter(index=2).keys == ["animals-2"]
    assert len(table.filter("whale")) == 0


def test_rows_chosen_in_pandas_are_selected_in_their_order(table):
    assert table.select(table.rows.sort_values("caption")["sample_key"]).keys == ["animals-1", "animals-2", "animals-3", "animals-0"]


def test_what_is_not_there_is_told(table):
    with pytest.raises(ConfigError, match=r"No sample 'animals-9' among <4 rows of .*>; their keys are in .keys, such as 'animals-0'"):
        table.image("animals-9")
    with pytest.raises(ConfigError, match=r"Unknown column 'captions'. Did you mean 'caption'"):
        table.filter(captions="fox")
    with pytest.raises(ShardError, match=r"animals-3 has no image: its status is 'failed' \(no luck\)"):
        table.image("animals-3")
