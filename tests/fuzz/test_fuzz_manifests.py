"""Manifests, recipes, tables, `--set` and caption files: what people write by hand, and what may become of it."""

import gzip
import json
import tomllib
from contextlib import suppress
from importlib import resources
from pathlib import Path

import pytest
from hostile import VALUES, damages, fuzz, reads_or_tells, table_changes, toml_text
from hypothesis import given
from hypothesis import strategies as st

from gift_datasets.parts import list_parts
from gift_datasets.settings import data_settings
from gift_generate.planning.plan import make_plan
from gift_generate.planning.plan_request import PlanRequest
from gift_shared.caption_files import read_captions
from gift_shared.errors import ConfigError
from gift_shared.manifests import Manifests
from gift_train.recipes.recipe import load_recipe
from gift_train.report.paper_tables.definition import load_table

MANIFESTS = Path(str(resources.files("gift_manifests")))
RECIPES = Path(str(resources.files("gift_train"))) / "recipes"
TASKS = [(MANIFESTS / f"tasks/{name}.toml").read_text() for name in ("mini_shapes", "eurosat", "oxford_pet")]
ORDER = (MANIFESTS / "orders/mini.toml").read_text()
RECIPE_NAMES = ("gift", "zscl", "moe_adapter", "icarl", "wise_ft", "protocol")
PUBLISHED_TABLE = (MANIFESTS / "published/tables/1.toml").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("manifests")
    for name in ("tasks", "orders", "captions"):
        (path / name).mkdir()
    return path


def read_task(folder, name, text):
    path = folder / f"tasks/{name}.toml"
    path.write_bytes(text)
    manifests = Manifests((folder,))

    def read():
        manifest = manifests.task(name)
        assert manifest.first_template_captions
        if manifest.data is not None:
            data_settings(manifest)
            list_parts(manifest, folder, ("train",))

    reads_or_tells(read, path, name, folder)
    path.unlink()


@fuzz(60)
@given(number=st.integers(0, len(TASKS) - 1), damage=damages())
def test_a_damaged_task_manifest_is_told(folder, number, damage):
    name = tomllib.loads(TASKS[number])["name"]
    read_task(folder, name, damage(TASKS[number].encode()))


@fuzz(60)
@given(number=st.integers(0, len(TASKS) - 1), change=table_changes())
def test_a_task_manifest_with_anything_in_it_is_told(folder, number, change):
    table = tomllib.loads(TASKS[number])
    read_task(folder, table["name"], toml_text(change(table)).encode())


@fuzz(60)
@given(change=table_changes(), damage=st.one_of(st.none(), damages()))
def test_an_order_with_anything_in_it_is_told(folder, change, damage):
    content = toml_text(change(tomllib.loads(ORDER))).encode()
    path = folder / "orders/mini.toml"
    path.write_bytes(content if damage is None else damage(content))
    reads_or_tells(lambda: Manifests((folder,)).order("mini"), path, "Order 'mini'")


@fuzz(80)
@given(name=st.sampled_from(RECIPE_NAMES), change=table_changes(), damage=st.one_of(st.none(), damages()))
def test_a_recipe_with_anything_in_it_is_told(folder, name, change, damage):
    content = toml_text(change(tomllib.loads((RECIPES / f"mini/{name}.toml").read_text()))).encode()
    path = folder / "own.toml"
    path.write_bytes(content if damage is None else damage(content))
    reads_or_tells(lambda: load_recipe(str(path), "mini"), path)


@fuzz(60)
@given(change=table_changes(), damage=st.one_of(st.none(), damages()))
def test_a_table_with_anything_in_it_is_told(folder, change, damage):
    content = toml_text(change(tomllib.loads(PUBLISHED_TABLE))).encode()
    path = folder / "own_table.toml"
    path.write_bytes(content if damage is None else damage(content))
    reads_or_tells(lambda: load_table(str(path)), path)


KEYS = st.one_of(
    st.sampled_from(
        ["steps", "method", "method_config", "method_config.teacher", "replay.num_images", "learning_rates.mini_shapes", "optimizer.beta1",
         "", ".", "a.b.c", "method_config.", "base", "checkpoint_minutes", "learning_rate", "batch_size"]
    ),
    st.text(max_size=12),
)  # fmt: skip


PAIRS = st.tuples(KEYS, st.one_of(st.text(max_size=20), VALUES.map(json.dumps)))


@fuzz(150)
@given(pairs=st.lists(PAIRS, min_size=1, max_size=3))
def test_any_override_is_taken_or_told(pairs):
    overrides = [f"{key}={value}" for key, value in pairs]
    with suppress(ConfigError):
        load_recipe("gift", "mini", overrides)


CAPTIONS = {
    ".txt": b"a red square.\na green square.\n",
    ".tsv": b"caption\turl\na red square.\thttp://x\n",
    ".csv": b'url,caption\nhttp://x,"a ""red"", square."\nhttp://y,a green square.\n',
    ".jsonl": b'{"caption": "a red square."}\n{"caption": "a green square."}\n',
    ".json": b'{"images": [{"id": 1}], "annotations": [{"caption": "a red square."}, {"caption": ["a green square."]}]}',
}


@fuzz(100)
@given(suffix=st.sampled_from(sorted(CAPTIONS)), is_gzipped=st.booleans(), damage=damages(), line=VALUES)
def test_a_damaged_caption_file_is_told(folder, suffix, is_gzipped, damage, line):
    path = folder / f"captions/own{suffix}{'.gz' if is_gzipped else ''}"
    content = CAPTIONS[suffix] + (b"" if suffix == ".json" else json.dumps(line).encode() + b"\n")
    content = gzip.compress(content, mtime=0) if is_gzipped else content
    path.write_bytes(damage(content))
    reads_or_tells(lambda: read_captions(path), path)


@fuzz(60)
@given(change=table_changes())
def test_coco_captions_with_anything_in_them_are_told(folder, change):
    path = folder / "captions/own.json"
    path.write_text(json.dumps(change(json.loads(CAPTIONS[".json"]))))
    reads_or_tells(lambda: read_captions(path), path)


TABLES = {
    ".csv": b'caption,sample_seed,render_height,render_width\n"a ""red"" square.",5,64,64\na green square.,,,\n',
    ".tsv": b"caption\ttask\tindex\na red square.\tred\t3\na green square.\t\t\n",
    ".jsonl": b'{"caption": "a red square.", "denoising_steps": 5}\n{"caption": "a green square.", "negative_prompt": "grey"}\n',
}


@fuzz(100)
@given(suffix=st.sampled_from(sorted(TABLES)), damage=damages(), line=VALUES)
def test_a_damaged_table_of_rows_is_planned_or_told(folder, suffix, damage, line):
    path = folder / f"rows{suffix}"
    path.write_bytes(damage(TABLES[suffix] + json.dumps(line).encode() + b"\n"))
    reads_or_tells(lambda: make_plan(PlanRequest(table=path), Manifests()), path)
