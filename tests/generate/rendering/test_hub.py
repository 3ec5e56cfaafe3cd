"""The hub, by its own client against a look-alike on the loopback: what is wrong is told apart, and no byte too much is fetched."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# A client reads where the hub is when it is imported, so each question is asked by a process of its own.
QUESTION = """
import json, sys
from gift_generate.rendering import hub
from gift_shared.errors import ConfigError
answers = []
for name, revision, variant, left_out in json.loads(sys.argv[1]):
    try:
        model = hub.look_up(name, revision)
        found = hub.download(model, model.index.without(left_out), variant)
        answers.append({"folder": str(model.folder), "variant": found})
    except ConfigError as error:
        answers.append({"error": str(error)})
print(json.dumps(answers))
"""
COMPONENTS = {
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}
FILES = {
    "scheduler": ["scheduler_config.json"],
    "text_encoder": ["config.json", "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"],
    "tokenizer": ["vocab.json", "merges.txt", "spiece.model", "tokenizer.py"],
    "unet": ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "other.safetensors"],
    "safety_checker": ["config.json", "model.safetensors"],
}


@dataclass
class Asker:
    """Asks the look-alike, with a cache of its own."""

    site: Any
    cache: Path

    def ask(self, *questions: tuple, token: str | None = None, **environment: str) -> list[dict]:
        """For each (name, revision, variant, components left out): where it lies and its variant, or the error."""
        line = [sys.executable, "-c", QUESTION, json.dumps([[*question, *[None, None, []][len(question) - 1 :]] for question in questions])]
        changed = self.site.environment(token) | {"HF_HOME": str(self.cache), **environment}
        done = subprocess.run(line, env=changed, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repositories")
    models = root / "models" / "our"
    for name in ("open", "gated", "private", "closed"):
        for component, files in FILES.items():
            (models / name / component).mkdir(parents=True)
            for file in files:
                (models / name / component / file).write_text(f"{component}/{file}")
        index = {"_class_name": "StableDiffusionPipeline", **COMPONENTS}
        (models / name / "model_index.json").write_text(json.dumps(index))
        (models / name / "whole-model.safetensors").write_text("gigabytes")
    (models / "half").mkdir()
    (models / "half" / "README.md").write_text("no diffusers")
    code = models / "code"
    code.mkdir()
    (code / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["my_unet", "MyUNet"]}))
    return root


@pytest.fixture
def hub(repositories: Path, hub_site: Callable[[Path], Any], tmp_path: Path) -> Asker:
    return Asker(hub_site(repositories), tmp_path / "cache")


def test_what_is_wrong_is_told_apart_before_any_weight_is_fetched(hub: Asker) -> None:
    names = ("our/gated", "our/misspelt", "our/private", "our/closed", "our/half", "our/code")
    answers = hub.ask(*((name,) for name in names), ("our/open", "v2"), ("our/open", None, "bf16"))
    gated, misspelt, private, closed, half, code, revision, variant = (answer["error"] for answer in answers)
    assert "--model 'our/gated' is gated: accept its licence on its page" in gated
    assert "our/misspelt' is neither a folder here nor on the hub for everybody: it is misspelt, or private." in misspelt
    assert "log in with `hf auth login` or set HF_TOKEN" in private
    assert "our/closed' is private, and your token may not read it" in closed
    assert "our/half' has no model_index.json, so it is no model in diffusers format" in half
    assert "component unet comes from 'my_unet'; code that ships with a model is never run" in code
    assert "our/open' has no revision 'v2'" in revision
    assert "--variant bf16: our/open has no weights named so" in variant
    assert hub.site.fetched() <= {"model_index.json"}


def test_a_token_opens_what_is_private_and_tells_what_is_misspelt(hub: Asker) -> None:
    gated, private, misspelt = hub.ask(("our/gated",), ("our/private",), ("our/misspelt",), token="hf_good")
    assert "folder" in gated
    assert "folder" in private
    assert "is neither a folder here nor on the hub: is it misspelt?" in misspelt["error"]
    (stranger,) = hub.ask(("our/private",), token="hf_bad")
    assert "the hub does not know your token" in stranger["error"] or "your token may not read it" in stranger["error"]


def test_only_the_files_that_are_loaded_are_fetched(hub: Asker) -> None:
    (plain,) = hub.ask(("our/open", None, None, ["safety_checker"]))
    configurations = {
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
        "tokenizer/spiece.model", "unet/config.json",
    }  # fmt: skip
    assert hub.site.fetched() == configurations | {"text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"}
    assert plain["variant"] is None
    hub.site.log.unlink()
    (half,) = hub.ask(("our/open", "main", "fp16", ["safety_checker"]))
    assert hub.site.fetched() == {"text_encoder/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"}
    assert half == plain | {"variant": "fp16"}


def test_without_a_network_the_cache_will_do_and_an_empty_one_is_told(hub: Asker) -> None:
    (online,) = hub.ask(("our/open",))
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        here, nowhere = hub.ask(("our/open",), ("our/gated",), **offline)
        assert here == online
        assert "is no folder here and not in the hub's cache of this machine, and" in nowhere["error"]
        assert ("HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in offline else "the hub cannot be reached") in nowhere["error"]
