"""An output folder of stage 1, as verify, status, show and a render that goes on read it, with anything in its files."""

import io
import json
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import NAMES, NUMBERS, damages, fuzz, reads_or_tells, table_changes
from hypothesis import given
from hypothesis import strategies as st

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.output.status import output_status
from gift_generate.output.verify import verify
from gift_generate.pipeline import run
from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.views.contact_sheet import SheetRequest, draw_sheet
from gift_generate.views.gallery import write_gallery
from gift_generate.workers.rank import Worker
from gift_shared.manifests import Manifests
from gift_shared.parquet_files import write_plan
from gift_shared.schema import PlanKind


def render(out, plan=None):
    run(out, plan, RenderedImages(FlatColorRenderer(height=16, width=16), ImageEncoder(), max_attempts=1), Worker(), lambda _: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished output folder; its copies are damaged."""
    folder = tmp_path_factory.mktemp("whole")
    request = PlanRequest(kind=PlanKind.POOL, order=None, datasets=("mini_shapes",), images_per_class=1, images_per_shard=6)
    write_plan(folder / "plan.parquet", *make_plan(request, Manifests()))
    render(folder / "out", folder / "plan.parquet")
    return folder / "out"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="module")
def files(whole):
    """Names of all files of the folder, relative to it."""
    return sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())


def use(whole, space, change):
    """Copy the folder, change it, and do with it what the commands do."""
    out, to = space / "out", space / "to"
    for path in (out, to):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(whole, out)
    change(out)
    readers = (
        lambda: list(verify(out, lambda _: None)),
        lambda: (output_status(out).lines(), json.dumps(output_status(out).as_json())),
        lambda: draw_sheet(out, SheetRequest()),
        lambda: write_gallery(out, to),
        lambda: render(out),
    )
    read = [reads_or_tells(reader, out) for reader in readers]
    assert {path.name for path in space.iterdir()} <= {"out", "to"}, "something was written beside the folders"
    return read


def test_a_sound_folder_is_read_by_all(whole, space):
    assert all(use(whole, space, lambda out: None))


@fuzz(25)
@given(number=st.integers(0, 99), damage=damages())
def test_a_damaged_output_folder_is_told(whole, space, files, number, damage):
    name = files[number % len(files)]
    use(whole, space, lambda out: (out / name).write_bytes(damage((out / name).read_bytes())))


@fuzz(20)
@given(
    column=st.sampled_from(
        ["task", "sample_key", "shard", "status", "image_name", "byte_offset", "byte_size", "caption", "width", "class_name"]
    ),
    value=st.one_of(st.none(), NAMES, NUMBERS.filter(lambda number: abs(number) < 2**31)),
    is_shard=st.booleans(),
)
def test_rows_that_claim_anything_are_told(whole, space, files, column, value, is_shard):
    name = next(file for file in files if file.startswith("shards/") and file.endswith(".parquet")) if is_shard else "index.parquet"
    table = pq.read_table(whole / name)
    place, field = table.schema.get_field_index(column), table.schema.field(column).with_nullable(True)
    try:
        values = pa.array([value, *table[column].to_pylist()[1:]], field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return  # a value that the column's type does not hold: types are fuzzed elsewhere
    changed = table.set_column(place, field, values)
    use(whole, space, lambda out: pq.write_table(changed, out / name))


@fuzz(15)
@given(change=table_changes(), damage=st.one_of(st.none(), damages()))
def test_what_workers_left_is_told_or_passed_over(whole, space, files, change, damage):
    def spoil(out):
        for name in files:
            if name.endswith((".json", ".jsonl")):
                lines = (
                    [json.dumps(change(json.loads(line))) for line in (out / name).read_text().splitlines()] if name.endswith("l") else []
                )
                content = "\n".join(lines) if lines else json.dumps(change(json.loads((out / name).read_text())))
                (out / name).write_bytes(content.encode() if damage is None else damage(content.encode()))

    use(whole, space, spoil)


@fuzz(15)
@given(name=NAMES, link=NAMES, kind=st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]))
def test_a_shard_with_a_stray_member_is_told(whole, space, files, name, link, kind):
    tar_name = next(file for file in files if file.endswith(".tar"))
    member = tarfile.TarInfo(name.replace("\0", ""))
    member.type, member.linkname = kind, link.replace("\0", "")

    def spoil(out):
        with tarfile.open(out / tar_name, "a", format=tarfile.GNU_FORMAT) as tar:
            tar.addfile(member, io.BytesIO())

    use(whole, space, spoil)
