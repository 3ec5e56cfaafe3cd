"""LoRAs trained on a task's images: what is learned, that it is repeatable, goes on after a stop, and is what diffusers takes."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gift_generate.adaptation.chance import Chance
from gift_generate.adaptation.denoising import denoising_loss, training_schedule
from gift_generate.adaptation.latents import Latents
from gift_generate.adaptation.model import AdaptedModel
from gift_generate.adaptation.options import AdaptOptions
from gift_generate.adaptation.run import adapt
from gift_generate.adaptation.task_images import open_tasks
from gift_generate.workers.rank import Worker
from gift_shared.errors import ConfigError, DataError, ManifestError, Preempted
from gift_shared.manifests import Manifests
from gift_shared.preemption import PreemptionNotice
from gift_shared.progress import Progress

SIDE = 16
CLASSES = {"dog": (200, 30, 30), "cat": (30, 60, 200)}
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of two classes, four images each, one colour a class; orders `pets`, and `few` with one shot a class."""
    folder = tmp_path_factory.mktemp("world")
    for kind in ("tasks", "orders"):
        (folder / "manifests" / kind).mkdir(parents=True)
    for number, task in enumerate(("pets", "beasts")):
        lines = [
            f'name = "{task}"', f'display_name = "{task}"', 'class_names = ["dog", "cat"]', 'templates = ["a picture of a {}.", "the {}."]',
            "[data]", 'kind = "image_folder"', f'train = "{task}/train"', f'test = "{task}/test"',
        ]  # fmt: skip
        (folder / "manifests/tasks" / f"{task}.toml").write_text("\n".join(lines))
        noise = np.random.default_rng(number)
        for name, color in CLASSES.items():
            (folder / "data" / task / "train" / name).mkdir(parents=True)
            for image in range(4):
                pixels = np.clip(np.array(color) + noise.integers(-25, 25, (SIDE, 3 * SIDE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "data" / task / "train" / name / f"{image}.png")
    for order, more in (("both", ""), ("few", "shots = 1")):
        lines = [f'name = "{order}"', f'display_name = "{order}"', 'pretraining_source = "mini_base"', 'tasks = ["pets", "beasts"]',
                 'recipes = "mini"', more]  # fmt: skip
        (folder / "manifests/orders" / f"{order}.toml").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def sd(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("sd")


@pytest.fixture(scope="module")
def options(world: Path, sd: Path) -> Callable[..., AdaptOptions]:
    def make(**changes: Any) -> AdaptOptions:
        given = {"task": ["pets"], "model": str(sd), "data_root": world / "data", "rank": 2, "steps": 6, "batch_size": 3, "device": "cpu"}
        return AdaptOptions(**given | {"checkpoint_every": 2} | changes)

    return make


@pytest.fixture(scope="module")
def manifests(world: Path) -> Manifests:
    return Manifests((world / "manifests",))


@pytest.fixture(scope="module")
def train(options: Callable[..., AdaptOptions], manifests: Manifests) -> Callable[..., list[str]]:
    """`train(out, **changes)` runs the command's work; returns what it told."""

    def run(out: Path, **changes: Any) -> list[str]:
        told: list[str] = []
        with PreemptionNotice() as notice:
            adapt(out, options(**changes), manifests, Worker(), told.append, notice)
        return told

    return run


@pytest.fixture(scope="module")
def trained(train: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loras")
    train(out)
    return out


def test_the_loss_is_of_noise_or_of_velocity_by_hand() -> None:
    seen: list[torch.Tensor] = []

    def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        seen.append(noisy)
        return torch.full_like(noisy, 0.5)

    latents, noise, timesteps = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0), torch.zeros(1, dtype=torch.long)
    losses = {}
    for prediction in ("epsilon", "v_prediction"):  # a = 1 - 0.36: sqrt 0.8; 1 - a: sqrt 0.6
        scheduler = diffusers.PNDMScheduler(num_train_timesteps=2, trained_betas=[0.36, 0.5], prediction_type=prediction)
        losses[prediction] = denoising_loss(predict, training_schedule(scheduler, "x"), latents, noise, timesteps).item()
    assert [one.item() for one in seen] == pytest.approx([0.8 * 1 + 0.6 * 2] * 2)
    assert losses == {"epsilon": pytest.approx((2 - 0.5) ** 2), "v_prediction": pytest.approx((0.8 * 2 - 0.6 * 1 - 0.5) ** 2)}


def test_every_pass_has_every_image_once_and_an_order_of_its_own() -> None:
    chance = Chance("pets", 5, seed=1)
    images = [image for step in range(5) for image in chance.images(step, 4)]
    passes = [images[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len(set(map(tuple, passes))) > 1
    assert Chance("pets", 5, seed=1).images(3, 4) == images[12:16], "a step knows its images without those before"
    assert [Chance("beasts", 50, 1).images(0, 50), Chance("pets", 50, 2).images(0, 50)] != [Chance("pets", 50, 1).images(0, 50)] * 2


def test_a_lora_learns_what_its_images_look_like(options: Callable[..., AdaptOptions], manifests: Manifests, train: Any, tmp_path) -> None:
    """The loss at fixed noise, with the LoRA that diffusers loads and without it."""
    asked = options(steps=40, learning_rate=2e-2, rank=4, caption_dropout=0.0)
    task = open_tasks(asked, manifests, Worker())[0]
    train(tmp_path, steps=40, learning_rate=2e-2, rank=4, caption_dropout=0.0)
    losses = []
    for has_lora in (False, True):
        model = AdaptedModel(asked)
        if has_lora:
            model._pipeline.load_lora_weights(tmp_path / "pets", local_files_only=True)
        generator = torch.Generator().manual_seed(0)
        clean = Latents(model.encoder, task, model.size).draw(list(range(8)) * 4, generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, model.num_timesteps, (32,), generator=generator)
        with torch.no_grad():
            losses.append(model.loss(clean, noise, timesteps, [task.caption(index) for index in list(range(8)) * 4]).item())
    assert losses[1] < 0.9 * losses[0]


def test_a_lora_is_a_file_of_diffusers_and_says_what_it_was_made_of(trained: Path, options: Callable[..., AdaptOptions]) -> None:
    record = json.loads((trained / "pets/adapt.json").read_text())
    settings = record["settings"]
    assert record["gift_adapt_version"] == 1
    assert {name: settings[name] for name in ("task", "num_images", "rank", "steps", "batch_size", "learning_rate", "seed")} == {
        "task": "pets", "num_images": 8, "rank": 2, "steps": 6, "batch_size": 3, "learning_rate": 1e-4, "seed": 42,
    }  # fmt: skip
    assert (settings["height"], settings["width"], settings["mixed_precision"], settings["text_encoder"]) == (16, 16, "no", False)
    assert len(settings["model_sha256"]) == len(settings["images_sha256"]) == 64
    assert {"model", "device", "torch", "diffusers", "peft"} <= record["machine"].keys()
    assert sorted(path.name for path in (trained / "pets").iterdir()) == [".lock", "adapt.json", WEIGHTS]
    names = load_file(trained / "pets" / WEIGHTS)
    assert {name.partition(".")[0] for name in names} == {"unet"}
    assert any(tensor.abs().sum() > 0 for name, tensor in names.items() if "lora_B" in name or ".up." in name), "it has learned"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(options().model)
    pipeline.load_lora_weights(trained / "pets")
    assert pipeline.get_active_adapters() == ["default_0"]


def test_equal_commands_give_equal_bytes_whatever_is_trained_before(trained: Path, train: Callable[..., list[str]], tmp_path: Path) -> None:
    train(tmp_path, task=["beasts", "pets"])
    assert (tmp_path / "pets" / WEIGHTS).read_bytes() == (trained / "pets" / WEIGHTS).read_bytes()
    assert (tmp_path / "beasts" / WEIGHTS).read_bytes() != (trained / "pets" / WEIGHTS).read_bytes()
    assert train(tmp_path, task=["beasts", "pets"])[-2:] == ["beasts is there", "pets is there"]


@pytest.mark.parametrize("trains_text_encoder", [False, True])
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(
    trained: Path, train: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trains_text_encoder: bool
) -> None:
    whole = trained
    if trains_text_encoder:
        whole = tmp_path / "whole"
        train(whole, task=["beasts", "pets"], trains_text_encoder=True, gradient_checkpointing=True)
        assert {name.partition(".")[0] for name in load_file(whole / "pets" / WEIGHTS)} == {"unet", "text_encoder"}
    out, updates, advance = tmp_path / "stopped", [], Progress.advance

    def stopped_after_three(progress: Progress, count: int = 1) -> None:
        advance(progress, count)
        updates.append(count)
        if len(updates) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", stopped_after_three)
    with pytest.raises(Preempted, match="Stopped by SIGTERM: 3 of 6 updates are left for pets"):
        train(out, trains_text_encoder=trains_text_encoder)
    assert sorted(path.name for path in (out / "pets").iterdir()) == [".lock", "adapt.json", "state.safetensors"]
    train(out, trains_text_encoder=trains_text_encoder)
    assert len(updates) == 6
    assert (out / "pets" / WEIGHTS).read_bytes() == (whole / "pets" / WEIGHTS).read_bytes()
    assert not (out / "pets/state.safetensors").exists()


def test_a_state_that_is_damaged_is_told(trained: Path, train: Callable[..., list[str]], tmp_path: Path, monkeypatch) -> None:
    def stop(progress: Progress, count: int = 1) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", stop)
        with pytest.raises(Preempted):
            train(tmp_path)
    state = tmp_path / "pets/state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"state.safetensors is damaged, or of another training. Remove it"):
        train(tmp_path)
    state.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"state.safetensors cannot be read: .* Remove it"):
        train(tmp_path)


def test_a_folder_holds_loras_of_one_setting(trained: Path, train: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pets holds another LoRA: its rank is 2, this command says 3"):
        train(trained, rank=3)
    (tmp_path / "pets").mkdir()
    shutil.copy(trained / "pets" / WEIGHTS, tmp_path / "pets" / WEIGHTS)
    with pytest.raises(ConfigError, match=r"without adapt.json: another program's"):
        train(tmp_path)


def test_workers_share_the_tasks_of_an_order(options: Callable[..., AdaptOptions], manifests: Manifests) -> None:
    asked = options(task=None, order="both")
    assert [[task.name for task in open_tasks(asked, manifests, Worker(rank, 2))] for rank in (0, 1)] == [["pets"], ["beasts"]]


def test_an_order_with_shots_gives_those_that_a_run_of_the_seed_has(options: Callable[..., AdaptOptions], manifests: Manifests) -> None:
    tasks = {seed: open_tasks(options(order="few", seed=seed), manifests, Worker())[0] for seed in (1, 2, 3)}
    assert all(task.images.labels.tolist() == [0, 1] for task in tasks.values())
    assert len({task.digest() for task in tasks.values()}) > 1


def test_images_cover_the_size_and_captions_are_those_of_plans(options: Callable[..., AdaptOptions], manifests: Manifests) -> None:
    task = open_tasks(options(), manifests, Worker())[0]
    pixels = task.pixels(0, SIDE, SIDE)
    assert tuple(pixels.shape) == (3, SIDE, SIDE)
    middle = np.asarray(task.images.image(0))[:, SIDE : 2 * SIDE]
    assert torch.equal(pixels, torch.from_numpy(middle.copy()).permute(2, 0, 1) / 127.5 - 1), "48 x 16: its middle"
    assert [task.caption(0), task.caption(7)] == ["a picture of a dog.", "a picture of a cat."]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sdxl", "a StableDiffusionXLPipeline: gift-generate adapt trains LoRAs of Stable Diffusion 1 and 2 alone"),
        ("flux-dev", "a FluxPipeline: gift-generate adapt trains LoRAs of Stable Diffusion 1 and 2 alone"),
        ("sd-turbo", r"sd-turbo is distilled \(its solver's timestep spacing is trailing\)"),
        ("sd-taesd", "its AutoencoderTiny makes no latents to train on"),
    ],
)
def test_a_model_that_is_not_trained_so_is_refused_by_name(
    kind: str, message: str, tiny_checkpoint: Callable[[str], Path], train: Callable[..., list[str]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "out", model=str(tiny_checkpoint(kind)))
    assert not (tmp_path / "out").exists()


def test_a_model_that_predicts_velocity_is_trained_in_bf16_too(tiny_checkpoint: Callable, train: Callable, tmp_path: Path) -> None:
    train(tmp_path, model=str(tiny_checkpoint("sd-v")), steps=2, mixed_precision="bf16")
    weights = load_file(tmp_path / "pets" / WEIGHTS)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "Which task"),
        ({"rank": 0}, "--rank must be at least 1, found 0"),
        ({"steps": 0}, "--steps must be at least 1, found 0"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"caption_dropout": 1.0}, "--caption-dropout must be at least 0 and below 1"),
        ({"mixed_precision": "fp16"}, "Unknown mixed precision 'fp16'"),
    ],
)
def test_options_that_no_training_can_have_are_refused(changes: dict, message: str, options: Callable[..., AdaptOptions]) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**changes)


def test_mistakes_are_one_line_before_a_model_is_loaded(command: Callable, world: Path, tmp_path: Path) -> None:
    places = ("--data-root", world / "data", "--manifests", world / "manifests", "--out", tmp_path / "out", "--model", tmp_path / "none")
    for words, message in (
        (("--task", "pet"), "error: Unknown dataset 'pet'. Did you mean 'pets'?"),
        (("--order", "both", "--task", "cars"), "error: --task: Unknown task of both 'cars'."),
        (("--task", "mini_shapes"), "error: mini_shapes: no image folder at "),
    ):
        result = command("adapt", *words, *places)
        assert result.code == 2
        assert result.err.startswith(message), result.err
        assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_task_without_images_cannot_be_learned(options: Callable[..., AdaptOptions], manifests: Manifests, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"mini_base has no \[data\] table"):
        open_tasks(options(task=["mini_base"]), manifests, Worker())
