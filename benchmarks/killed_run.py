"""Runs of the mini world through the command line, one of them killed on the way, and how far apart their weights are in the end."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file


def command(module: str, *words: object) -> None:
    """One of our commands; what it says is shown if it fails."""
    line = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def killed_in_second_task(words: Sequence[object], out: Path) -> int:
    """Start a run and kill it as soon as it has saved its state inside the second task; 1 if that was so, 0 if it ended before."""
    run = subprocess.Popen([sys.executable, "-m", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None:
        if list((out / "checkpoints/progress").glob("task-02-step-*.safetensors")):
            run.send_signal(signal.SIGKILL)
            run.wait()
            return 1
        time.sleep(0.01)
    return 0


def weights(out: Path) -> Mapping[str, torch.Tensor]:
    """What the second task of a run handed on."""
    [path] = [path for path in (out / "checkpoints").glob("task-02-*.safetensors") if ".state" not in path.name]
    return load_file(path)


def largest_difference(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    return max(float((tensor - second[name]).abs().max()) for name, tensor in first.items())
