"""README.md of a finished output folder: the dataset's card, for people, for the hub and for `datasets.load_dataset`.

Its front matter names the tars as the data and says what a sample holds. Without it that library takes every Parquet file of the folder for
the data, and infers types from the first samples alone. The card follows from index, render.json and this program, so it is the same
whoever writes it. It is sealed (gift_shared/cards.py): a card that a user has changed is theirs, and is never written over.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from gift_generate.output.shard_writer import IN_JSON
from gift_generate.planning.plan import IMPORTED
from gift_generate.rendering.model_card import LICENSE_KEYS
from gift_shared.atomic import write_text
from gift_shared.cards import CARD_FILE, Seal, code, plain, read_seal, sealed, table
from gift_shared.documents import read_json_object
from gift_shared.errors import ConfigError
from gift_shared.parquet_files import RowFile, open_index
from gift_shared.schema import INDEX_FILE, INDEX_SCHEMA, RENDER_FILE, SHARD_FOLDER, SampleStatus

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
LARGEST_SIZE = "10M<n<100M"
TAGS = ("synthetic", "webdataset", "clip", "continual-learning", "gift")
UNKNOWN_LICENSE = "unknown"  # one of the hub's own identifiers
ABOUT = (
    "Captions and the images that a diffusion model painted of them, put into shards by `gift-generate` to train CLIP on one task after\n"
    "another without forgetting (GIFT, CVPR 2025, arXiv 2503.04229)."
)
HOW_TO_LOAD = """## How to load it

A sample is an image (`{suffixes}`), its caption (`txt`) and its row (`json`: task, class name, seed, size and more; what is not known of it
is no key). `index.parquet` has a row for every image that was planned, with `status` and `message`, and says where the image lies:
`byte_offset` and `byte_size` in `shards/<shard>.tar`.

```python
from datasets import load_dataset

pairs = load_dataset("FOLDER_OR_HUB_ID", split="train")  # streaming=True reads as it goes
image, caption = pairs[0]["{suffix}"], pairs[0]["txt"]
rows = load_dataset("parquet", data_files="FOLDER/index.parquet", split="train")
```

```python
import webdataset

pairs = webdataset.WebDataset("FOLDER/shards/{shard}.tar", shardshuffle=False).decode("pil").to_tuple("{suffixes}", "txt")
```

```bash
gift-train run --method gift --shards FOLDER --data-root DATA --out RUN   # or --shards hf://datasets/HUB_ID
```

For open_clip's training: `--dataset-type webdataset --train-num-samples {num_usable}`, and the tars as `--train-data`."""


def write_card(out: Path) -> str | None:
    """Write the card of a folder whose index is complete, unless it is there. Returns a line to tell if the user's own file stays."""
    path = out / CARD_FILE
    facts = _index_fact(out)
    seal = _seal_of(path)
    if seal is not None and seal.facts == facts:
        return None
    if path.exists() and (seal is None or not seal.is_untouched):
        return f"{path} is not as gift-generate writes it, so it stays; without it, the same command writes the dataset's card there."
    write_text(path, sealed(_card_text(out), "gift-generate", facts))
    return None


def remove_card(out: Path) -> None:
    """Before a shard is made: a card exists only while all shards do. One that a user has changed stays."""
    seal = _seal_of(out / CARD_FILE)
    if seal is not None and seal.is_untouched:
        (out / CARD_FILE).unlink(missing_ok=True)


def card_fault(out: Path) -> str | None:
    """What is wrong with the card beside a sound index; None if nothing is, if there is none, or if it is wholly a user's own."""
    seal = _seal_of(out / CARD_FILE)
    if seal is None or seal.facts == _index_fact(out):
        return None
    return f"{out / CARD_FILE} describes another {INDEX_FILE}; delete it and run the command that filled the folder again"


def _seal_of(path: Path) -> Seal | None:
    try:
        return read_seal(path.read_bytes())
    except OSError:
        return None


def _index_fact(out: Path) -> str:
    """What a card notes beside its seal."""
    return f"index {_file_sha256(out / INDEX_FILE)}, "


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


COUNTED = ("task", "source")
DISTINCT = ("guidance_scale", "denoising_steps")


@dataclass
class _Counts:
    """What a card tells of the rows of an index: counted some at a time, in the order in which values first stand."""

    statuses: Counter[str] = field(default_factory=Counter)
    planned: dict[str, Counter[str]] = field(default_factory=lambda: {column: Counter() for column in COUNTED})
    usable: dict[str, Counter[str]] = field(default_factory=lambda: {column: Counter() for column in COUNTED})
    distinct: dict[str, set[Any]] = field(default_factory=lambda: {column: set() for column in DISTINCT})
    suffixes: set[str] = field(default_factory=set)  # of the images, without the dot
    first_shard: str = ""

    @classmethod
    def of(cls, index: RowFile) -> "_Counts":
        """Of all rows."""
        counts = cls()
        for rows in index.batches([*COUNTED, *DISTINCT, "status", "image_name", "shard"]):
            counts._add(rows)
        return counts

    @property
    def num_usable(self) -> int:
        """Rows with an image."""
        return self.statuses[SampleStatus.OK]

    def _add(self, rows: pa.Table) -> None:
        usable = rows.filter(pc.equal(rows["status"], SampleStatus.OK))
        self.statuses += _value_counts(rows["status"])
        for column in COUNTED:
            self.planned[column].update(_value_counts(rows[column]))
            self.usable[column].update(_value_counts(usable[column]))
        for column in DISTINCT:
            self.distinct[column].update(pc.unique(rows[column]).to_pylist())
        suffixes = pc.replace_substring_regex(usable["image_name"], pattern=r"^.*\.", replacement="")
        self.suffixes.update(pc.unique(suffixes).to_pylist())
        self.first_shard = self.first_shard or rows["shard"][0].as_py()


def _value_counts(column: pa.ChunkedArray) -> Counter[str]:
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()})


@dataclass(frozen=True)
class _Described:
    """What a card tells of: rows and metadata of the index, and what render.json records."""

    counts: _Counts
    metadata: Mapping[str, str]
    settings: dict[str, Any]
    machine: dict[str, Any]

    @property
    def suffixes(self) -> list[str]:
        """Of the images, without the dot."""
        return sorted(self.counts.suffixes)

    @property
    def model(self) -> str:
        """A hub id as it is; of a path its last part, since the rest is of the machine it lies on. Empty for imported images."""
        if IMPORTED in self.metadata:
            return ""
        model = str(self.machine.get("model") or self.settings.get("model") or "a model without a name")
        is_path = model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1
        return (PureWindowsPath(model).name if is_path else "") or model

    @property
    def title(self) -> str:
        """Of the card and of the dataset."""
        return f"Synthetic images by {plain(self.model)}" if self.model else "Synthetic images, imported"

    @property
    def license(self) -> dict[str, str]:
        """Of the checkpoint, by LICENSE_KEYS; empty if it is not known."""
        return {key: str(self.machine[key]) for key in LICENSE_KEYS if self.machine.get(key)}


def _card_text(out: Path) -> str:
    with open_index(out / INDEX_FILE) as index:
        counts, metadata = _Counts.of(index), index.metadata
    record = read_json_object(out / RENDER_FILE, {"settings": {}, "machine?": {}}, ConfigError, "Choose another --out.")
    described = _Described(counts, metadata, record["settings"], record.get("machine", {}))
    front = yaml.safe_dump(_front_matter(described), sort_keys=False, allow_unicode=True, width=1000)
    sections = [
        f"# {described.title}",
        ABOUT,
        _facts(described),
        "## Tasks\n\n" + _counts(counts, "task"),
        "## Captions\n\n" + _counts(counts, "source"),
        _how_to_load(described),
        "## Settings and versions\n\n" + _settings(described),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n\n"


def _front_matter(described: _Described) -> dict[str, Any]:
    num_images = described.counts.num_usable
    return {
        "pretty_name": described.title,
        **({"license": UNKNOWN_LICENSE} | described.license),
        "task_categories": ["zero-shot-image-classification"],
        "size_categories": [next((size for most, size in SIZES if num_images < most), LARGEST_SIZE)],
        "tags": list(TAGS),
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": f"{SHARD_FOLDER}/*.tar"}]}],
        "dataset_info": {"config_name": "default", "features": _features(described)},
    }


def _features(described: _Described) -> list[dict[str, Any]]:
    """Columns of a sample as `datasets` calls them: the suffixes of its members. All keys that the JSON may have are named."""
    return [
        *({"name": suffix, "dtype": "image"} for suffix in described.suffixes),
        {"name": "txt", "dtype": "string"},
        {"name": "json", "struct": [{"name": name, "dtype": _dtype(INDEX_SCHEMA.field(name).type)} for name in IN_JSON]},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def _dtype(kind: pa.DataType) -> str:
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def _facts(described: _Described) -> str:
    counts, metadata = described.counts, described.metadata
    facts = {
        "Images made by": code(described.model) or "another program",
        "Licence of the checkpoint": ", ".join(map(code, described.license.values())) or "not known here: look before you publish",
        "Kind of plan": code(metadata.get("kind", "")),
        "Order of tasks": code(metadata.get("order", "")),
        "Guidance scale": ", ".join(f"{value:g}" for value in sorted(counts.distinct["guidance_scale"])),
        "Denoising steps": ", ".join(map(str, sorted(counts.distinct["denoising_steps"]))),
        "Planned images": ", ".join(f"{counts.statuses[status]:,} {status}" for status in SampleStatus),
        "sha256 of the plan": code(metadata.get("plan_sha256", "")),
    }
    return table(("", ""), [(name, value) for name, value in facts.items() if value])


def _counts(counts: _Counts, column: str) -> str:
    """Planned and usable images by the values of a column."""
    usable = counts.usable[column]
    return table(
        (column, "planned", "usable"), [(code(name), f"{num:,}", f"{usable[name]:,}") for name, num in counts.planned[column].items()]
    )


def _how_to_load(described: _Described) -> str:
    suffixes = described.suffixes or ["jpg"]
    counts = described.counts
    return HOW_TO_LOAD.format(suffix=suffixes[0], suffixes=";".join(suffixes), shard=counts.first_shard, num_usable=counts.num_usable)


def _settings(described: _Described) -> str:
    facts = {key: value for key, value in (described.settings | described.machine).items() if key not in ("model", *LICENSE_KEYS)}
    lines = [(code(key), code(value if isinstance(value, str) else json.dumps(value, sort_keys=True))) for key, value in facts.items()]
    return table(("", ""), sorted(lines))
