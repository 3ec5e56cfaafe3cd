"""The Python blocks of the page on formats that say they are tested are run, beside an output folder of the mini world's captions."""

import re
from pathlib import Path

import pytest

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.pipeline import run
from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.workers.rank import Worker
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import write_plan
from gift_shared.schema import PlanKind

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
TESTED = re.compile(r"^<!-- tested in Python -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def beside_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an output folder `shards` in it."""
    folder = tmp_path_factory.mktemp("snippets")
    request = PlanRequest(kind=PlanKind.PER_TASK, order="mini", images_per_task=4)
    write_plan(folder / "plan.parquet", *make_plan(request, Manifests()))
    source = RenderedImages(FlatColorRenderer(height=16, width=16), ImageEncoder(), max_attempts=1)
    run(folder / "shards", folder / "plan.parquet", source, Worker(), lambda _: None)
    return folder


@pytest.mark.parametrize("number", range(3))
def test_the_blocks_on_other_libraries_run_as_written(beside_shards: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    blocks = TESTED.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 3
    for name, value in (("HF_HOME", str(beside_shards / "cache")), ("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(beside_shards)
    names: dict = {}
    exec(blocks[number], names)
    assert names["image"].size == (16, 16)
