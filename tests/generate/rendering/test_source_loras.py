"""A LoRA for the captions of one source: those are painted with it, all others by the plain model, whatever came before."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.screening import render_screened
from gift_generate.rendering.diffusers_renderer import DiffusersRenderer
from gift_generate.rendering.loras import Lora, check_sources, files_of, parse_lora
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.renderer import Rendered, RenderJob
from gift_shared.errors import ConfigError
from gift_shared.options import as_words

CAPTIONS = ("a picture of a dog", "the letter Y")
WEIGHTS = "pytorch_lora_weights.safetensors"


def save_lora(sd: Path, folder: Path, seed: int, *, has_text: bool) -> Path:
    changed = diffusers.DiffusionPipeline.from_pretrained(sd)
    torch.manual_seed(seed)
    layers = {"unet": ["to_k", "to_q", "to_v", "to_out.0"]} | ({"text_encoder": ["q_proj", "v_proj"]} if has_text else {})
    for name, targets in layers.items():
        part = getattr(changed, name)
        part.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets))
        for parameter, weight in part.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(weight, std=0.5)
    states = {f"{name}_lora_layers": get_peft_model_state_dict(getattr(changed, name)) for name in layers}
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, **states)
    (folder / "adapt.json").write_text(json.dumps({"settings": {"task": folder.name}}))
    return folder / WEIGHTS


@pytest.fixture(scope="module")
def sd(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("sd")


@pytest.fixture(scope="module")
def loras(sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as of `adapt`: `cats` changes U-Net and text encoder, `cars` the U-Net alone."""
    folder = tmp_path_factory.mktemp("loras")
    for number, name in enumerate(("cats", "cars")):
        save_lora(sd, folder / name, number, has_text=name == "cats")
    return folder


def renderer(sd: Path, *loras: str, **changes: Any) -> DiffusersRenderer:
    return DiffusersRenderer(ModelOptions(model=str(sd), device="cpu", loras=[parse_lora(one) for one in loras], **changes))


def pixels(made: DiffusersRenderer, source: str = "") -> np.ndarray:
    jobs = [RenderJob(caption, number, 5.0, 2, adaptation=source) for number, caption in enumerate(CAPTIONS)]
    return np.stack([one.pixels for one in made.render(jobs)])


def test_each_source_is_painted_by_its_own_weights_whatever_came_before(sd: Path, loras: Path) -> None:
    alone = {"": pixels(renderer(sd)), **{name: pixels(renderer(sd, str(loras / name / WEIGHTS))) for name in ("cats", "cars")}}
    assert all(np.any(alone[one] != alone[other]) for one, other in (("", "cats"), ("", "cars"), ("cats", "cars")))
    together = renderer(sd, str(loras))
    for source in ("", "cats", "cars", "cats", "", "cars", "", "cats", "cats"):
        assert np.array_equal(pixels(together, source), alone[source]), source
    assert [together.adaptation_of(source) for source in ("cats", "cars", "dogs")] == ["cats", "cars", ""]


def test_scales_and_a_lora_for_all_add_up(sd: Path, loras: Path) -> None:
    both = renderer(sd, f"{loras}/cars/{WEIGHTS}=0.5", f"cats={loras}/cats/{WEIGHTS}=0.25", f"cats={loras}/cars/{WEIGHTS}=0.5")
    assert np.array_equal(pixels(both), pixels(renderer(sd, f"{loras}/cars/{WEIGHTS}=0.5")))
    whole = renderer(sd, f"{loras}/cats/{WEIGHTS}=0.25", f"{loras}/cars/{WEIGHTS}")
    assert np.abs(pixels(both, "cats").astype(int) - pixels(whole)).max() <= 1


def test_settings_name_the_source_and_those_without_stay_as_they_were(sd: Path, loras: Path) -> None:
    made = renderer(sd, f"{loras}/cars/{WEIGHTS}=0.5", f"cats={loras}/cats/{WEIGHTS}")
    first, second = made.settings["loras"]
    assert first.keys() == {"sha256", "scale"}
    assert (second["source"], second["scale"]) == ("cats", 1.0)
    assert made.machine["loras"] == f"{loras}/cars/{WEIGHTS}=0.5, cats={loras}/cats/{WEIGHTS}=1"
    assert "loras" not in renderer(sd).settings


class Recording(DiffusersRenderer):
    """Keeps what it was asked for."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        self.asked: list[tuple[str, list[str]]] = []

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        assert len({job.adaptation for job in jobs}) == 1
        self.asked.append((jobs[0].adaptation, [job.caption for job in jobs]))
        return super().render(jobs)


def row(number: int, source: str) -> dict[str, Any]:
    return {
        "caption": f"{source} {number}", "source": source, "sample_seed": number, "guidance_scale": 3.0, "denoising_steps": 2,
        "negative_prompt": None, "render_height": None, "render_width": None,
    }  # fmt: skip


def test_batches_hold_rows_of_one_lora_and_pictures_come_back_in_order(sd: Path, loras: Path) -> None:
    rows = [row(number, source) for number, source in enumerate(("cats", "world", "cars", "birds", "cats", "world", "cats"))]
    made = Recording(ModelOptions(model=str(sd), device="cpu", batch_size=2, loras=[parse_lora(str(loras))]))
    pictures = render_screened(made, ImageEncoder("png"), rows, 1, lambda count: None)
    assert made.asked == [
        ("", ["world 1", "birds 3"]), ("", ["world 5"]), ("cars", ["cars 2"]), ("cats", ["cats 0", "cats 4"]), ("cats", ["cats 6"]),
    ]  # fmt: skip
    again = render_screened(made, ImageEncoder("png"), rows, 1, lambda count: None)
    assert [one.content for one in again] == [one.content for one in pictures]
    assert [one.used_seed for one in pictures] == list(range(7))


def test_arguments_are_read_and_written_back(loras: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copy(loras / "cars" / WEIGHTS, tmp_path / "a=b.safetensors"))
    for argument, expected in (
        (f"{odd}", Lora(odd, 1.0)),
        (f"{odd}=0.5", Lora(odd, 0.5)),
        (f"cats={odd}=-1", Lora(odd, -1.0, "cats")),
        (f"file:web={loras}/cars", Lora(loras / "cars", 1.0, "file:web")),
        (f"{loras}=0.7", Lora(loras, 0.7)),
    ):
        assert parse_lora(argument) == expected
        assert parse_lora(str(expected)) == expected
    asked = ModelOptions(loras=[Lora(odd, 0.5, "cats")])
    assert as_words(asked) == ["--lora", f"cats={odd}=0.5"]


def test_a_folder_stands_for_the_loras_in_it(loras: Path) -> None:
    assert files_of([parse_lora(f"{loras}=0.5")]) == [Lora(loras / name / WEIGHTS, 0.5, name) for name in ("cars", "cats")]
    assert files_of([parse_lora(f"dogs={loras}/cats")]) == [Lora(loras / "cats" / WEIGHTS, 1.0, "dogs")]


def test_folders_that_hold_no_such_lora_are_refused(loras: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no adapt.json"):
        files_of([parse_lora(str(tmp_path))])
    with pytest.raises(ConfigError, match=r"holds LoRAs of several tasks, and one is asked for"):
        files_of([parse_lora(f"cats={loras}")])
    begun = tmp_path / "cats"
    begun.mkdir()
    shutil.copy(loras / "cats/adapt.json", begun)
    with pytest.raises(ConfigError, match=rf"the training in {begun} is not finished"):
        files_of([parse_lora(str(tmp_path))])


def test_who_is_painted_with_a_lora_is_told_and_a_source_that_no_caption_has_is_refused(loras: Path) -> None:
    file = loras / "cats" / WEIGHTS
    assert check_sources([Lora(file, 1.0)], ["world", "cats"]) == []
    assert check_sources([Lora(file, 1.0, "cats")], ["world", "cats"]) == ["loras   for captions of cats; without: world"]
    assert check_sources([Lora(loras, 1.0)], ["cats"]) == ["loras   for captions of cats; no caption for: cars"]
    with pytest.raises(ConfigError, match=r"--lora: Unknown source of the plan's captions 'cat'. Did you mean 'cats'"):
        check_sources([Lora(file, 1.0, "cat")], ["world", "cats"])


def test_one_folder_of_shards_is_of_one_set_of_loras(command: Callable, manifests: Path, sd: Path, loras: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.parquet", tmp_path / "out"
    command("plan", "--order", "tiny", "--manifests", manifests, "--images-per-task", 10, "--steps", 2, "--out", plan)
    rest = ("--plan", plan, "--out", out, "--model", sd, "--device", "cpu", "--image-format", "png")
    refused = command("render", *rest, "--lora", f"cat={loras}/cats")
    assert refused.code == 2
    assert "--lora: Unknown source of the plan's captions 'cat'" in refused.err
    assert not out.exists()
    done = command("render", *rest, "--lora", loras)
    assert done.code == 0, done.err
    assert "loras   for captions of cats; without: world; no caption for: cars\n" in done.err
    recorded = json.loads((out / "render.json").read_text())["settings"]["loras"]
    assert [one["source"] for one in recorded] == ["cars", "cats"]
    other = command("render", *rest, "--lora", f"cats={loras}/cars")
    assert other.code == 2
    assert "holds images made with loras = " in other.err
