"""What a loader process meets ends the run as it would without loader processes: one line, the same exit code, and nobody left behind."""

import shutil
import subprocess
import sys

import pytest

FLAGS = ("--set=steps=60", "--set=warmup_steps=1", "--set=batch_size=6", "--image-cache-gb=0")


@pytest.fixture
def run_to_its_end(world, tmp_path):
    """A function: data root, flags -> exit code and stderr of a run in a process of its own, which has a minute to be gone."""

    def run(data_root, *flags):
        places = [f"--manifests={world.root / 'manifests'}", f"--model={world.root / 'model'}", f"--data-root={data_root}"]
        words = ["run", "--method=finetune", "--order=pair", "--device=cpu", f"--out={tmp_path / 'run'}", *places, *FLAGS, *flags]
        done = subprocess.run([sys.executable, "-m", "gift_train.cli", *words], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_does_not_decode_is_one_line_and_the_process_ends(world, tmp_path, run_to_its_end, num_workers):
    data = tmp_path / "data"
    shutil.copytree(world.root / "data", data)
    damaged = next(data.glob("colours/train/*/3.png"))
    damaged.write_bytes(b"no picture")
    code, told = run_to_its_end(data, f"--num-workers={num_workers}")
    assert code == 2
    assert [line for line in told.splitlines() if "error" in line] == [told.splitlines()[-1]]
    assert told.splitlines()[-1].startswith(f"error: {damaged}")
    assert "Traceback" not in told


def test_a_loss_that_is_not_finite_ends_the_loader_processes_too(world, run_to_its_end):
    code, told = run_to_its_end(world.root / "data", "--num-workers=2", "--set=learning_rate=1e30")
    assert code == 2
    assert "the loss term" in told.splitlines()[-1]
