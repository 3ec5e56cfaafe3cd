"""Train the mini autoencoder on web-style pictures. Reconstruction is mean squared error, for sharp flat areas, with a light KL.

Usage: python mini_world/pretrain/train_vae.py --run DIR [--minutes 18]        (one thread: OMP_NUM_THREADS=1)
Resumes from DIR/vae.pt; the file of a finished run holds the averaged weights under "ema" and the latents' standard deviation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from models import build_vae
from runs import Clock, Due, Pool, as_tensor, learning_rate, load_checkpoint, save_checkpoint, set_learning_rate

BATCH_SIZE = 16
PEAK_LEARNING_RATE = 2e-3
KL_WEIGHT = 5e-5
EMA_DECAY = 0.998


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=18)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    vae = build_vae().to(memory_format=torch.channels_last)
    ema = build_vae().requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    path = options.run / "vae.pt"
    saved = load_checkpoint(path)
    step, spent = 0, 0.0
    if saved:
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
    ema.load_state_dict(saved["ema"] if saved else vae.state_dict())
    pool = Pool(per_class=8, rng=np.random.default_rng(step))
    held_out = as_tensor(Pool(per_class=2, rng=np.random.default_rng(10**6)).pixels)

    clock, report_due, save_due = Clock(options.minutes, spent), Due(0.5), Due(3)
    while clock.progress < 1:
        set_learning_rate(optimizer, learning_rate(clock.progress, PEAK_LEARNING_RATE))
        pool.redraw(BATCH_SIZE)
        pictures = as_tensor(pool.pixels[pool.rng.integers(len(pool.label), size=BATCH_SIZE)])
        posterior = vae.encode(pictures).latent_dist
        painted = vae.decode(posterior.sample()).sample
        error = (painted - pictures).square().mean()
        loss = error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA_DECAY, step / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(vae.parameters()), 1 - decay)
        if not torch.isfinite(loss):
            raise SystemExit(f"loss is {loss.item()} at step {step}; the last checkpoint is {path}")
        if report_due():
            print(f"step {step} samples {step * BATCH_SIZE} spent {clock.spent:.0f} s PSNR {psnr(ema, held_out):.2f} dB", flush=True)
        if save_due():
            save(path, vae, ema, optimizer, step, clock, held_out)
    save(path, vae, ema, optimizer, step, clock, held_out)
    print(f"done: step {step} samples {step * BATCH_SIZE} spent {clock.spent:.0f} s PSNR {psnr(ema, held_out):.2f} dB", flush=True)


@torch.no_grad()
def psnr(vae: torch.nn.Module, pictures: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of reconstruction from the latent mean, over all pixels together."""
    painted = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    return (10 * torch.log10(4 / (painted - pictures).square().mean())).item()


@torch.no_grad()
def save(path: Path, vae, ema, optimizer, step: int, clock: Clock, held_out: torch.Tensor) -> None:
    deviation = ema.encode(held_out).latent_dist.mean.std().item()
    save_checkpoint(
        path,
        vae=vae.state_dict(),
        ema=ema.state_dict(),
        optimizer=optimizer.state_dict(),
        step=step,
        spent=clock.spent,
        latent_deviation=deviation,
        psnr=psnr(ema, held_out),
    )


if __name__ == "__main__":
    main()
