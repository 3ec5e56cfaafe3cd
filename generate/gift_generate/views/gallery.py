"""`show --html`: pages with every picture of an output folder, of any size, and an index to find a task, source or class.

DIR/index.html       one line for each task, source and class, with the page it begins on; filters
DIR/pages/*.html     PICTURES_PER_PAGE pictures each, in the index's order
DIR/images/<shard>/  the pictures' own bytes, so that no page grows with them
DIR/gallery.json     whose pictures these are; written first, so that a folder of something else is never written into

The pages open from disk without a network. Captions are escaped by the template engine; only the one script named in each
page's policy runs.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from tqdm import tqdm

from gift_generate.output.folder import OutputFolder, open_output
from gift_generate.planning.plan_check import value_counts
from gift_shared.atomic import atomic_path, write_json, write_text
from gift_shared.errors import ConfigError, ShardError
from gift_shared.schema import PLAN_SCHEMA, SampleStatus
from gift_shared.shards import read_image_bytes

PICTURES_PER_PAGE = 500
RECORD_FILE = "gallery.json"


@dataclass(frozen=True)
class Group:
    """Pictures of one task, source and class, which follow each other: how many, and where the first one is."""

    task: str
    source: str
    class_name: str
    count: int
    page: int  # from 1
    anchor: str


def write_gallery(out: Path, to: Path, per_page: int = PICTURES_PER_PAGE) -> tuple[int, int]:
    """Write the pages of all complete shards; returns the numbers of pictures and of pages.

    Raises: ShardError if there is no picture yet or a shard is not what its rows say; ConfigError if `to` is something else's.
    """
    output = open_output(out)
    rows, statuses = _usable_rows(output)
    if not len(rows):
        raise ShardError(f"{out} holds no usable image to show yet. `gift-generate status --out {out}` tells how far it is.")
    _claim(to, output)
    groups = list(_groups(rows, per_page))
    num_pages = -(-len(rows) // per_page)
    script, css = (_part(name) for name in ("gallery.js", "gallery.css"))
    environment = Environment(
        loader=PackageLoader("gift_generate.views", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "folder": out.resolve().name,
        "num_pages": num_pages,
        "script": Markup(script),
        "css": Markup(css),
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    template = environment.get_template("gallery_page.html.j2")
    starts = {(group.page, group.anchor): group for group in groups}
    for page in tqdm(range(1, num_pages + 1), desc="show", unit="page", dynamic_ncols=True):
        pictures = [_picture(out, to, row) for row in rows.slice((page - 1) * per_page, per_page).to_pylist()]
        write_text(to / page_path(page), template.render(page=page, pictures=pictures, starts=starts))
    for stale in sorted((to / "pages").glob("page-*.html"))[num_pages:]:
        stale.unlink()
    index = environment.get_template("gallery_index.html.j2").render(groups=groups, statuses=statuses, page_path=page_path)
    write_text(to / "index.html", index)
    return len(rows), num_pages


def page_path(page: int) -> str:
    """Path of a page within the gallery; pages count from 1."""
    return f"pages/page-{page:06d}.html"


def _usable_rows(output: OutputFolder) -> tuple[pa.Table, dict[str, int]]:
    """Rows with a picture, ordered by task (as planned), source and class; and how many rows have which status."""
    tables = [table for _, table in output.complete_rows()]
    if not tables:
        return PLAN_SCHEMA.empty_table(), {}
    rows = pa.concat_tables(tables)
    statuses = {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["status"]).to_pylist()}
    rows = rows.filter(pc.equal(rows["status"], SampleStatus.OK))
    order = pc.index_in(rows["task"], value_set=pa.array(value_counts(output.plan, "task"), pa.string()))
    keys = [("task_order", "ascending"), ("source", "ascending"), ("class_index", "ascending"), ("index", "ascending")]
    return rows.append_column("task_order", order).sort_by(keys), statuses


def _groups(rows: pa.Table, per_page: int) -> Iterator[Group]:
    columns = [rows[name].to_pylist() for name in ("task", "source", "class_name", "sample_key")]
    first, count = 0, len(rows)
    kinds = list(zip(*columns[:3], strict=True))
    for place in range(1, count + 1):
        if place == count or kinds[place] != kinds[first]:
            task, source, class_name = kinds[first]
            yield Group(task, source, class_name or "", place - first, first // per_page + 1, columns[3][first])
            first = place


def _picture(out: Path, to: Path, row: dict[str, Any]) -> dict[str, Any]:
    key, suffix = row["sample_key"], Path(row["image_name"]).suffix
    path = Path("images") / row["shard"] / f"{key}{suffix}"
    content = read_image_bytes(out, row["shard"], row["byte_offset"], row["byte_size"], row["sha256"])
    if not (to / path).is_file() or (to / path).stat().st_size != len(content):
        with atomic_path(to / path) as temporary:
            temporary.write_bytes(content)
    return row | {"path": f"../{path.as_posix()}"}


def _claim(to: Path, output: OutputFolder) -> None:
    record = {"plan_sha256": output.metadata["plan_sha256"]}
    if (to / RECORD_FILE).is_file():
        if json.loads((to / RECORD_FILE).read_text(encoding="utf-8")) != record:
            raise ConfigError(f"--html {to} holds the gallery of another plan. Choose another folder.")
    elif to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--html {to} exists and is no gallery (no {RECORD_FILE}). Choose another folder.")
    write_json(to / RECORD_FILE, record)


def _part(name: str) -> str:
    return (resources.files("gift_generate.views") / "templates" / name).read_text(encoding="utf-8")
