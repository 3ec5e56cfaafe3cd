"""Measure the mini models as they lie in the package's weight folders, or in others.

Usage: python mini_world/pretrain/measure.py zero-shot --data DATA        CLIP on the tasks' test pictures
       python mini_world/pretrain/measure.py psnr                         the autoencoder on web pictures it has not seen
       python mini_world/pretrain/measure.py recognised --judge FILE      generated pictures, judged by a classifier of real ones
       python mini_world/pretrain/measure.py colours                      whether captions that tell colours are followed
       python mini_world/pretrain/measure.py sheet --out SHEET.png        generated pictures, one column a class
DATA is a folder that `python -m gift_mini.tasks --out DATA` wrote. The judge is trained once (two minutes) and kept in FILE.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from captions import templates, web_classes
from models import load_clip
from PIL import Image
from runs import Pool, as_tensor
from torch import nn

from gift_mini.drawing import GROUNDS, INKS
from gift_mini.locations import clip_folder, stable_diffusion_folder
from gift_mini.stamps import CLASSES
from gift_mini.tasks import DATASETS
from gift_shared.keys import slug

JUDGE_STEPS, JUDGE_BATCH = 700, 128
NOT_INKED = ("plaid", "rainbow", "Norwegian flag", "Irish flag", "Dutch flag")  # base classes whose colours are the class, or mix


def test_pictures(data: Path, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 32, 32, 3] uint8 and labels [N] of a task's test split, as `python -m gift_mini.tasks` wrote it."""
    pixels, labels = [], []
    for label, name in enumerate(CLASSES[task]):
        for file in sorted((data / task / "test" / slug(name)).iterdir()):
            pixels.append(np.asarray(Image.open(file)))
            labels.append(label)
    return np.stack(pixels), np.array(labels)


@torch.no_grad()
def zero_shot(clip, tokenize, mean: torch.Tensor, deviation: torch.Tensor, data: Path) -> dict[str, float]:
    """Percent per task and their mean, from class names through all the manifest's templates."""
    accuracy = {}
    for task in DATASETS:
        pixels, labels = test_pictures(data, task)
        weights = torch.stack(
            [
                clip.encode_text(tokenize([template.format(name) for template in templates(task)]), normalize=True).mean(0)
                for name in CLASSES[task]
            ]
        )
        pictures = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
        guesses = (clip.encode_image(pictures, normalize=True) @ nn.functional.normalize(weights, dim=1).T).argmax(1)
        accuracy[task] = 100 * float((guesses.numpy() == labels).mean())
    return accuracy | {"mean": float(np.mean(list(accuracy.values())))}


def judge(path: Path) -> nn.Module:
    """A small convolutional classifier of all the web's classes, trained on real web pictures only; kept in `path`."""
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(128 * 16, len(web_classes())),
    )  # fmt: skip
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    torch.manual_seed(0)
    pool = Pool(per_class=10, rng=np.random.default_rng(1))
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=JUDGE_STEPS)
    for step in range(JUDGE_STEPS):
        pool.redraw(JUDGE_BATCH // 2)
        places = pool.rng.integers(len(pool.label), size=JUDGE_BATCH)
        # slight noise, so that the judge is not put off by what an autoencoder leaves on flat areas
        pictures = as_tensor(pool.pixels[places])
        pictures = pictures + torch.randn_like(pictures) * 0.1
        loss = nn.functional.cross_entropy(network(pictures), torch.from_numpy(pool.label[places]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"judge: step {step + 1} of {JUDGE_STEPS}, loss {loss.item():.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return network.eval()


@torch.no_grad()
def generate(folder: Path, captions: list[str], steps: int, guidance: float, seed: int = 0) -> np.ndarray:
    """Pixels [N, 32, 32, 3] uint8, one per caption, by multistep DPM-Solver as few-step generation uses it."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    pictures = []
    for first in range(0, len(captions), 70):
        batch = captions[first : first + 70]
        pictures += pipeline(
            batch, num_inference_steps=steps, guidance_scale=guidance, generator=generator, output_type="np"
        ).images.tolist()
    return (np.array(pictures) * 255).round().astype(np.uint8)


@torch.no_grad()
def recognised(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Per task, percent of generated and of real web pictures that the judge puts in the right class among the task's own."""
    network, classes = judge(options.judge), web_classes()
    real = Pool(per_class=20, rng=np.random.default_rng(2))
    labels = np.repeat(np.arange(len(classes)), options.per_class)
    painted = generate(options.stable_diffusion, [classes[label].captions[0] for label in labels], options.steps, options.guidance)
    result = {}
    for task in CLASSES:
        own = np.array([number for number, item in enumerate(classes) if item.task == task])
        result[task] = {
            kind: _right(network, pixels[np.isin(truth, own)], truth[np.isin(truth, own)], own)
            for kind, pixels, truth in (("generated", painted, labels), ("real", real.pixels, real.label))
        }
        result[task]["generated, among all classes"] = _right(
            network, painted[np.isin(labels, own)], labels[np.isin(labels, own)], np.arange(len(classes))
        )
    return result


def _right(network: nn.Module, pixels: np.ndarray, truth: np.ndarray, own: np.ndarray) -> float:
    guesses = own[network(as_tensor(pixels))[:, own].argmax(1).numpy()]
    return round(100 * float((guesses == truth).mean()), 1)


def colours(options: argparse.Namespace) -> dict[str, float]:
    """Percent of pictures whose ground, and whose ink, is the colour their caption asks for: the nearest of those that there are."""
    rng = np.random.default_rng(4)
    inks, grounds = list(INKS), list(GROUNDS)
    asked = [
        (item, rng.integers(len(inks)), rng.integers(len(grounds)))
        for item in web_classes()
        if item.task not in ("mini_textures", "mini_flags") and item.name not in NOT_INKED
    ]
    captions = [item.coloured(inks[ink], grounds[ground]) for item, ink, ground in asked]
    painted = generate(options.stable_diffusion, captions, options.steps, options.guidance)
    palette = np.array([*INKS.values(), *GROUNDS.values()], float)
    nearest = np.square(painted.reshape(len(asked), -1, 1, 3) - palette).sum(-1).argmin(-1)  # [N, pixels]
    counts = np.stack([np.bincount(pixels, minlength=len(palette)) for pixels in nearest])
    right_ink = counts[:, : len(inks)].argmax(1) == [ink for _, ink, _ in asked]
    right_ground = counts[:, len(inks) :].argmax(1) == [ground for *_, ground in asked]
    return {"ink": round(100 * float(right_ink.mean()), 1), "ground": round(100 * float(right_ground.mean()), 1)}


def sheet(options: argparse.Namespace) -> None:
    """A picture of generated pictures: a row per sample, wrapped every 28 classes, twice their size."""
    classes, wrap = web_classes(), 28
    captions = [item.captions[0] for _ in range(options.per_class) for item in classes]
    painted = generate(options.stable_diffusion, captions, options.steps, options.guidance)
    painted = painted.reshape(options.per_class, len(classes), 32, 32, 3)
    rows = [
        np.concatenate(list(painted[sample, first : first + wrap]), axis=1)
        for first in range(0, len(classes), wrap)
        for sample in range(options.per_class)
    ]
    Image.fromarray(np.concatenate(rows)).resize((wrap * 64, len(rows) * 64), Image.Resampling.NEAREST).save(options.out)


@torch.no_grad()
def psnr(folder: Path) -> float:
    """dB over fresh web pictures, from the weights as they are stored (half precision, computed in single)."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    pictures = as_tensor(Pool(per_class=4, rng=np.random.default_rng(3)).pixels)
    painted = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    return round((10 * torch.log10(4 / (painted - pictures).square().mean())).item(), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("zero-shot", "psnr", "recognised", "colours", "sheet"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clip", type=Path, default=clip_folder())
    parser.add_argument("--stable-diffusion", type=Path, default=stable_diffusion_folder())
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    parser.add_argument("--per-class", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    options = parser.parse_args()
    if options.what == "zero-shot":
        from open_clip.tokenizer import SimpleTokenizer

        config = json.loads((options.clip / "open_clip_config.json").read_text())
        text = config["model_cfg"]["text_cfg"]
        tokenize = SimpleTokenizer(str(options.clip / text["tokenizer_kwargs"]["bpe_path"]), context_length=text["context_length"])
        mean, deviation = (torch.tensor(config["preprocess_cfg"][key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        print(json.dumps(zero_shot(load_clip(options.clip), tokenize, mean, deviation, options.data), indent=2))
    elif options.what == "psnr":
        print(psnr(options.stable_diffusion))
    elif options.what == "recognised":
        print(json.dumps(recognised(options), indent=2))
    elif options.what == "colours":
        print(json.dumps(colours(options)))
    else:
        sheet(options)


if __name__ == "__main__":
    main()
