"""The blocks of docs/cluster.md that need a SLURM, run on one."""

import re
import shlex
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
SCRIPT = re.compile(r"^<!-- file: (?P<name>\S+) -->\n```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(
    r"^<!-- not tested: [^\n]*; tests/slurm runs it(?P<pairs>[^\n]*) -->\n```bash\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
# What the page's cluster has, and what the test's has.
RENDER = {
    "0-15": "0-1",
    "#SBATCH --gpus-per-node=1\n": "",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "flat-color --height 1024 --width 1024 --image-format png --batch-size 4",
}
TRAIN = {
    "--nodes=2": "--nodes=1",
    "--ntasks-per-node=8": "--ntasks-per-node=2",
    "#SBATCH --gpus-per-node=8\n": "",
    "--method gift --order mtil-1 --model ViT-B-16 --pretrained openai --shards shards --data-root DATA": "--method l2 FLAGS",
}


def script(name, replacements):
    """A script of the page, with what the test's cluster has in place of what it has not."""
    (text,) = [match["text"] for match in SCRIPT.finditer(PAGE) if match["name"] == name]
    for shown, here in replacements.items():
        assert shown in text, f"{shown!r} is not in the script any more"
        text = text.replace(shown, here)
    return text


def command(first_words):
    """The block that starts with these words, with the test's numbers in it."""
    (block,) = [match for match in BLOCK.finditer(PAGE) if match["text"].startswith(first_words)]
    text = block["text"]
    for shown, run in re.findall(r'"([^"]+)" as "([^"]*)"', block["pairs"]):
        assert shown in text, f"{shown!r} is not in the block any more"
        text = text.replace(shown, run)
    return text


@pytest.fixture
def plan(cluster):
    cluster.run("gift-generate", "plan", "--images-per-task", "20", "--images-per-shard", "10", "--out", "plan.parquet")


def test_the_submitted_array_and_the_questions_to_its_logs(cluster, plan):
    assert "(3 of 3)" in cluster.run("bash", "-euo", "pipefail", "-c", command("gift-generate submit"))
    if cluster.has("jq"):
        slowest = cluster.run("bash", "-euo", "pipefail", "-c", command("cat shards/workers"))
        assert len(slowest.splitlines()) == 5


def test_the_script_for_an_array_is_requeued_when_it_is_told_to_leave(cluster, plan):
    (cluster.folder / "render.sbatch").write_text(script("render.sbatch", RENDER))
    number = cluster.run(*command("sbatch").splitlines()[0].split()).split()[-1]
    cluster.wait(lambda: list((cluster.folder / "shards").glob("shards/*.parquet")), "the first shard")
    cluster.run("scancel", "--signal=USR1", f"{number}_1")
    cluster.wait(lambda: not cluster.states(), "the end of both jobs")
    assert cluster.restarts(f"{number}_1") == 1
    assert "every byte claim holds" in cluster.run("gift-generate", "verify", "--out", "shards")


@pytest.mark.slow
def test_the_script_for_a_run_of_several_processes_is_requeued_too(cluster, flags):
    text = script("train.sbatch", TRAIN).replace("FLAGS", shlex.join(map(str, flags)))
    (cluster.folder / "train.sbatch").write_text(text)
    number = cluster.run(*command("sbatch").splitlines()[1].split()).split()[-1]
    log = cluster.folder / "runs/gift/log.jsonl"
    cluster.wait(lambda: log.is_file() and "checkpoint_saved" in log.read_text(), "the first checkpoint")
    cluster.run("scancel", "--signal=USR1", number)
    cluster.wait(lambda: not cluster.states(), "the end of the run")
    assert cluster.restarts(number) == 1
    assert cluster.state(number) == "COMPLETED"
    assert "resumed" in log.read_text()
