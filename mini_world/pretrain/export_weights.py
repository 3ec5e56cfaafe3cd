"""Write the two weight folders of the package from checkpoints: the open_clip folder and the diffusers folder, in half precision.

Usage: python mini_world/pretrain/export_weights.py [--clip RUN/clip.pt] [--vae RUN/vae.pt] [--painter RUN/painter.pt] [--weights DIR]
Parts without a checkpoint keep random weights, so that code can be tried before training is over.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from models import Painter, build_clip, build_vae, clip_config, save_clip, save_stable_diffusion
from vocabulary import build_vocabulary

from gift_mini.locations import clip_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for part in ("clip", "vae", "painter"):
        parser.add_argument(f"--{part}", type=Path)
    parser.add_argument("--weights", type=Path, default=clip_folder().parent)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vocabulary = build_vocabulary()

    config = clip_config(vocabulary)
    clip = build_clip(config)
    if options.clip:
        clip.load_state_dict(torch.load(options.clip, weights_only=True)["clip"])
    save_clip(clip, config, vocabulary, options.weights / "clip")

    vae, painter = build_vae(), Painter(vocabulary)
    if options.vae:
        saved = torch.load(options.vae, weights_only=True)
        vae.load_state_dict(saved["ema"])
        vae.register_to_config(scaling_factor=round(1 / saved["latent_deviation"], 4))
    if options.painter:
        painter.load_state_dict(torch.load(options.painter, weights_only=True)["ema"])
    save_stable_diffusion(painter, vae, vocabulary, options.weights / "stable-diffusion")
    size = sum(file.stat().st_size for file in options.weights.rglob("*") if file.is_file())
    print(f"{options.weights}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
