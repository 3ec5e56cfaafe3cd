"""The models that users load, at full size with random weights: Stable Diffusion v1.5's architecture and OpenAI's ViT-B/16."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


def save_stable_diffusion(folder: Path, tokenizer_folder: Path) -> None:
    """SD v1.5's published sizes in the diffusers format, half precision on disk as users have it."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    # The library's own defaults for both classes are SD v1's sizes, but for the entries given here.
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        sample_size=512,
    )
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964, "the UNet is not SD v1's"
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(torch.float16).save_pretrained(folder)


def save_clip(folder: Path) -> None:
    """OpenAI's ViT-B/16 as an open_clip folder: configuration and weights."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-quickgelu")
    assert sum(parameter.numel() for parameter in model.parameters()) == 149_620_737, "not ViT-B/16"
    folder.mkdir()
    settings = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "interpolation": "bicubic"}
    config = {"model_cfg": open_clip.get_model_config("ViT-B-16-quickgelu"), "preprocess_cfg": settings}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def test_full_size_models_go_through_the_command_lines(tmp_path: Path, command: Command) -> None:
    from gift_mini.locations import stable_diffusion_folder

    # CLIP's own vocabulary cannot be had offline; the mini world's tokenizer is the same class with fewer merges.
    save_stable_diffusion(tmp_path / "sd", stable_diffusion_folder() / "tokenizer")
    save_clip(tmp_path / "clip")
    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("circle", "square"):
            folder = data / "pair" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(rng.integers(0, 255, (240, 260, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    for folder in ("tasks", "orders"):
        (tmp_path / "my" / folder).mkdir(parents=True)
    (tmp_path / "my" / "tasks" / "pair.toml").write_text(
        'name = "pair"\ndisplay_name = "Pair"\nclass_names = ["circle", "square"]\ntemplates = ["a photo of a {}."]\n'
        '[data]\nkind = "image_folder"\ntrain = "pair/train"\ntest = "pair/test"\n'
    )
    (tmp_path / "my" / "orders" / "real.toml").write_text(
        'name = "real"\ndisplay_name = "Real"\npretraining_source = "imagenet"\nrecipes = "mtil"\ntasks = ["pair"]\n'
    )
    order = ("--order", "real", "--manifests", tmp_path / "my")
    command("gift-generate", "plan", *order, "--images-per-task", 2, "--steps", 2, "--out", tmp_path / "plan.parquet")
    small = ("--height", 128, "--width", 128, "--batch-size", 2)
    command(
        "gift-generate", "render", "--plan", tmp_path / "plan.parquet", "--model", tmp_path / "sd", "--out", tmp_path / "shards", *small
    )
    command("gift-generate", "verify", "--out", tmp_path / "shards")
    trial = [
        flag
        for key in ("steps=1", "warmup_steps=0", "batch_size=2", "replay_batch_size=2", "replay.num_images=2")
        for flag in ("--set", key)
    ]
    run = ("--method", "gift", *order, "--model", tmp_path / "clip", "--shards", tmp_path / "shards", "--data-root", data)
    command("gift-train", "run", *run, "--out", tmp_path / "run", *trial)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1], "a schedule of one step makes two updates (METHODS 1.7)"
    checkpoint = tmp_path / "run" / "checkpoints" / "task-01-pair.safetensors"
    evaluated = command(
        "gift-train", "evaluate", *order, "--model", tmp_path / "clip", "--checkpoint", checkpoint, "--data-root", data, "--json"
    )
    assert 0 <= json.loads(evaluated.stdout)["accuracy"]["pair"] <= 100


def test_a_model_by_name_and_weights_file_is_the_folder_s_model(tmp_path: Path) -> None:
    """`--model ViT-B-16 --pretrained FILE` loads what users of openai's weights have: QuickGELU follows from the tag, not from luck."""
    import open_clip

    from gift_train.clip.load import load_backbone

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-quickgelu").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.encode_image(image), dim=-1)
        found = load_backbone("ViT-B-16-quickgelu", str(tmp_path / "weights.pt"), "cpu").encode_images(image)
    torch.testing.assert_close(found, expected)
