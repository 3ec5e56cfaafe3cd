"""Whether two versions of this code compute the same numbers, to the last bit: for a change that should move none.

    python benchmarks/same_numbers.py record before.json         # with the code as it was
    python benchmarks/same_numbers.py record after.json          # with the code as it is, on the same machine and libraries
    python benchmarks/same_numbers.py compare before.json after.json

`record` makes shards with the mini model, trains every recipe for the mini CLIP for 20 steps on each of two tasks, and keeps all loss
terms, accuracies, and digests of shards and weights. It goes through the command lines alone, so the code behind them may move.
Seven minutes on two cores. Exit code 1 if `compare` finds a difference.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import load_file

STEPS = 20
TASKS = 2
IMAGES_PER_TASK = 24
SHORT = {"steps": STEPS - 1, "warmup_steps": 4, "log_every": 1, "checkpoint_every": 1000, "evaluation_batch_size": 128}
SELECTOR = {"method_config.selector.no_task_updates": 20, "method_config.selector.task_updates": 20}  # of moe_adapter
NOT_OF_THE_MINI_CLIP = ("protocol", "gift_sigmoid")  # no recipe, and one for models with a logit bias
TERMS = ("task", "step", "learning_rate", "terms", "measurements")  # of a line of metrics.jsonl
LIBRARIES = ("torch", "open_clip_torch", "diffusers", "transformers", "pillow", "numpy")  # other ones, other last bits
MOST_SHOWN = 20


def main() -> None:
    match sys.argv[1:]:
        case ["record", file]:
            with tempfile.TemporaryDirectory() as folder:
                Path(file).write_text(json.dumps(record(Path(folder)), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        case ["compare", before, after]:
            found = differences(*(json.loads(Path(file).read_text(encoding="utf-8")) for file in (before, after)))
            print("\n".join(found[:MOST_SHOWN]) or "Every number is the same.")
            if len(found) > MOST_SHOWN:
                print(f"and {len(found) - MOST_SHOWN} more")
            sys.exit(bool(found))
        case _:
            sys.exit(__doc__)


def record(folder: Path) -> dict[str, Any]:
    """All numbers, by a name that says where they come from."""
    command("gift_mini.tasks", "--out", folder / "data")
    shards = made_shards(folder)
    recipes = sorted(path.stem for path in recipe_folder().glob("*.toml") if path.stem not in NOT_OF_THE_MINI_CLIP)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = dict(zip(recipes, pool.map(lambda recipe: trained(recipe, folder), recipes), strict=True))
    return {"versions": {name: metadata.version(name) for name in LIBRARIES}, "shards": shards, "runs": runs}


def made_shards(folder: Path) -> dict[str, Any]:
    """Digest of every shard of a small plan: of its tar, and of its rows."""
    plan, out = folder / "plan.parquet", folder / "shards"
    numbers = ("--images-per-task", IMAGES_PER_TASK, "--steps", 4, "--guidance-scale", 3, "--images-per-shard", 16)
    command("gift_generate.cli", "plan", "--order", "mini", *numbers, "--out", plan)
    command("gift_generate.cli", "render", "--plan", plan, "--out", out, "--batch-size", 8)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((out / "shards").glob("*.tar"))}
    return digests | {"plan": pq.read_table(plan).to_pylist(), "index": pq.read_table(out / "index.parquet").to_pylist()}


def trained(recipe: str, folder: Path) -> dict[str, Any]:
    """Loss terms of every step, accuracies, and a digest of what each task hands on."""
    print(recipe, file=sys.stderr)
    out = folder / "runs" / recipe
    settings = SHORT | (SELECTOR if recipe.startswith("moe_adapter") else {})
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    places = ("--shards", folder / "shards", "--data-root", folder / "data", "--out", out)
    command("gift_train.cli", "run", "--recipe", recipe, *places, "--stop-after", TASKS, "--device", "cpu", *overrides)
    metrics = out / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return {
        "steps": [{key: line.get(key) for key in TERMS} for line in lines],
        "accuracy": json.loads((out / "accuracy_matrix.json").read_text()),
        "weights": {path.name: weights_digest(path) for path in sorted((out / "checkpoints").glob("*.safetensors"))},
    }


def weights_digest(path: Path) -> str:
    """Of the tensors alone: the file also says how many seconds they took."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def recipe_folder() -> Path:
    import gift_train

    return Path(gift_train.__file__).parent / "recipes" / "mini"


def command(module: str, *words: object) -> None:
    """One of our commands with one thread: sums then have one order."""
    line = [sys.executable, "-m", module, *map(str, words)]
    result = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if result.returncode:
        sys.exit(f"{' '.join(line)} ended with {result.returncode}:\n{result.stderr}")


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Every place at which two records differ; numbers must be equal, not close."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [line for key in keys for line in differences(before.get(key), after.get(key), f"{where}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [line for place, pair in enumerate(zip(before, after, strict=True)) for line in differences(*pair, f"{where}/{place}")]
    return [] if before == after else [f"{where}: {shown(before)} before, {shown(after)} after"]


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


if __name__ == "__main__":
    main()
