"""gift_generate.open_output: a folder's rows and images, also while it is being rendered."""

import subprocess
import sys

import pytest

import gift_generate
from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.pipeline import run
from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.workers.rank import Worker
from gift_shared.errors import PlanError, ShardError
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import read_index, write_plan
from gift_shared.schema import PlanKind


@pytest.fixture
def shards(tmp_path):
    """A finished output folder of two images a task, a shard each."""
    request = PlanRequest(kind=PlanKind.PER_TASK, order="mini", images_per_task=2, images_per_shard=2)
    write_plan(tmp_path / "plan.parquet", *make_plan(request, Manifests()))
    source = RenderedImages(FlatColorRenderer(height=16, width=16), ImageEncoder(), max_attempts=1)
    run(tmp_path / "shards", tmp_path / "plan.parquet", source, Worker(), lambda _: None)
    return tmp_path / "shards"


def test_a_finished_folder_is_its_index(shards):
    output = gift_generate.open_output(shards)
    assert output.table.equals(read_index(shards / "index.parquet")[0])
    assert [image.size for image, _ in output.filter(task="mini_digits")] == [(16, 16)] * 2
    assert gift_generate.open_output(f"file://{shards}").keys == output.keys


def test_a_folder_that_is_being_rendered_is_what_is_complete(shards):
    whole = gift_generate.open_output(shards)
    (shards / "index.parquet").unlink()
    (shards / "shards/mini_digits-00000.parquet").unlink()
    begun = gift_generate.open_output(shards)
    assert begun.keys == [row["sample_key"] for row in whole.table.to_pylist() if row["task"] != "mini_digits"]
    assert len(list(begun)) == len(begun) == len(whole) - 2
    for path in (shards / "shards").glob("*.parquet"):
        path.unlink()
    assert len(gift_generate.open_output(shards)) == 0


def test_what_is_no_output_folder_is_told(tmp_path):
    with pytest.raises(PlanError, match=r"has no plan.parquet, so it is no output folder of gift-generate"):
        gift_generate.open_output(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"no index")
    with pytest.raises(ShardError, match="is not a readable Parquet file, so it is no index"):
        gift_generate.open_output(tmp_path)


def test_an_output_folder_is_opened_without_the_libraries_that_render(shards):
    program = f"import gift_generate, sys; gift_generate.open_output({str(shards)!r}); print({{'torch', 'diffusers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
