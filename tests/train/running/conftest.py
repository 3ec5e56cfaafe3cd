"""A world of seconds: two tasks drawn on disk, a CLIP of two small layers, synthetic shards, all read as real ones are."""

import gzip
import hashlib
import io
import json
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gift_shared.parquet_files import write_index
from gift_shared.schema import INDEX_SCHEMA
from gift_train.cli import main

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
ANGLES = {"upright": (1, 0), "level": (0, 1)}
QUICK = ("--set", "steps=12", "--set", "warmup_steps=2", "--set", "batch_size=6", "--set", "replay_batch_size=6")
QUICK += ("--set", "log_every=1", "--set", "checkpoint_every=5", "--set", "learning_rate=1e-3")
SAME_FOR_ALL = {"source": "base", "class_index": 0, "sample_seed": 1, "used_seed": 1, "guidance_scale": 7.5, "denoising_steps": 50}
SAME_FOR_ALL |= {"status": "ok", "message": "", "attempts": 1}
MODEL_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 514,
        "width": 64,
        "heads": 1,
        "layers": 1,
        "tokenizer_kwargs": {"bpe_path": "merges.txt.gz"},
    },
}


def noise(rng):
    return rng.integers(0, 40, (16, 16, 3))


def colour_picture(name, rng):
    return np.clip(noise(rng) + np.array(COLOURS[name]), 0, 255)


def stripe_picture(name, rng):
    rows, columns = np.mgrid[:16, :16]
    across, down = ANGLES[name]
    return noise(rng) + 160 * (((across * columns + down * rows + rng.integers(4)) // 2 % 2)[..., None])


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class World:
    """Paths of everything a run needs."""

    root: Path

    @property
    def arguments(self):
        """Flags shared by all runs in this world."""
        names = ("manifests", "model", "data")
        flags = [f"{flag}={self.root / name}" for flag, name in zip(("--manifests", "--model", "--data-root"), names, strict=True)]
        return [*flags, "--order=pair", "--device=cpu"]

    @property
    def shards(self):
        return f"--shards={self.root / 'shards'}"


def toml(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for name, inner in table.items():
        if isinstance(inner, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in inner.items())]
    path.write_text("\n".join(lines) + "\n")


def draw_task(root, name, classes, draw, seed):
    rng = np.random.default_rng(seed)
    for part, count in (("train", 8), ("test", 5)):
        for class_name in classes:
            folder = root / "data" / name / part / class_name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(png(draw(class_name, rng)))
    table = {"name": name, "display_name": name.title(), "class_names": list(classes), "templates": ["a {} square.", "a {} square"]}
    data = {"kind": "image_folder", "train": f"{name}/train", "test": f"{name}/test"}
    counts = {"train": 8 * len(classes), "test": 5 * len(classes)}
    toml(root / f"manifests/tasks/{name}.toml", table | {"data": data, "counts": counts})


def write_shards(out, tasks, num_images=10):
    """Synthetic colour squares for each task, in the layout stage 1 writes. Captions repeat."""
    rng = np.random.default_rng(7)
    rows = []
    for task in tasks:
        path = out / "shards" / f"{task}-00000.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(num_images):
                name = list(COLOURS)[index % len(COLOURS)]
                content = png(colour_picture(name, rng))
                member = tarfile.TarInfo(f"{task}-{index:06d}.png")
                member.size = len(content)
                offset = tar.offset + 512
                tar.addfile(member, io.BytesIO(content))
                place = {"shard": f"{task}-00000", "byte_offset": offset, "byte_size": len(content)}
                made = {"image_name": member.name, "width": 16, "height": 16, "sha256": hashlib.sha256(content).hexdigest()}
                about = {"task": task, "index": index, "caption": f"a {name} square.", "class_name": name}
                rows.append(SAME_FOR_ALL | place | made | about | {"sample_key": member.name.removesuffix(".png")})
    write_index(out / "index.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA), {})


def write_model(folder):
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"size": 16}}))
    with gzip.open(folder / "merges.txt.gz", "wt") as file:
        file.write("#version")  # no merges: every byte is a token
    torch.manual_seed(5)
    text = {key: value for key, value in MODEL_CONFIG["text_cfg"].items() if key != "tokenizer_kwargs"}
    network = open_clip.CLIP(16, open_clip.CLIPVisionCfg(**MODEL_CONFIG["vision_cfg"]), open_clip.CLIPTextCfg(**text))
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Read-only: tests that change something copy it."""
    root = tmp_path_factory.mktemp("world")
    draw_task(root, "colours", COLOURS, colour_picture, 1)
    draw_task(root, "stripes", ANGLES, stripe_picture, 2)
    toml(root / "manifests/tasks/base.toml", {"name": "base", "display_name": "Base", "class_names": ["fox"], "templates": ["a {}."]})
    order = {"name": "pair", "display_name": "Pair", "pretraining_source": "base", "tasks": ["colours", "stripes"], "recipes": "mini"}
    toml(root / "manifests/orders/pair.toml", order)
    write_shards(root / "shards", ("colours", "stripes"))
    write_model(root / "model")
    return World(root)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def gift_train(monkeypatch, capsys):
    """A function: arguments of gift-train -> Outcome, through the real entry point."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gift-train", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture
def quick_run(gift_train, world):
    """A function: method, out and more flags -> Outcome of a run of a few steps."""

    def call(method, out, *more):
        shards = [world.shards, "--set", "replay.num_images=10"] if method.startswith(("gift", "zscl", "snd", "gnsp")) else []
        flag = "--recipe" if "." in str(method) or method.startswith("gift_") else "--method"
        return gift_train("run", flag, method, "--out", out, *world.arguments, *shards, *QUICK, *more)

    return call
