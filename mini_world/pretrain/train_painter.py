"""Train the mini Stable Diffusion's UNet and text encoder on cached latents of web-style pictures, on one or two processes.

Usage: python mini_world/pretrain/train_painter.py --run DIR --vae VAE_RUN/vae.pt [--minutes 90] [--processes 2]
       (one thread a process: OMP_NUM_THREADS=1; two such processes beat one of two threads)
Resumes from DIR/painter.pt, also with another number of processes. DIR/painter.pt holds the averaged weights under "ema".

The target is velocity (Salimans & Ho, arXiv 2202.00512). Timesteps are drawn mostly from the middle of the schedule, where the
class of a small picture is decided, and one caption in ten is empty, for classifier-free guidance.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models import Painter, alphas_cumprod, build_vae
from runs import Clock, Due, Pool, as_tensor, learning_rate, load_checkpoint, save_checkpoint, set_learning_rate
from vocabulary import build_vocabulary

BATCH_SIZE = 32  # of each process
PEAK_LEARNING_RATE = 1e-3
EMA_DECAY = 0.999
EMPTY_CAPTIONS, COLOURED_CAPTIONS, FIRST_CAPTIONS = 0.1, 0.2, 0.5
PER_CLASS = 120
REDRAWN_A_STEP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    if options.processes == 1:
        train(0, options)
    else:
        meeting = options.run / f"meeting-{os.getpid()}"
        mp.spawn(_join, args=(options, meeting), nprocs=options.processes)


def _join(rank: int, options: argparse.Namespace, meeting: Path) -> None:
    os.sched_setaffinity(0, {rank % os.cpu_count()})
    dist.init_process_group("gloo", init_method=f"file://{meeting.resolve()}", rank=rank, world_size=options.processes)
    train(rank, options)
    dist.destroy_process_group()


class Latents:
    """A pool of pictures and their latents [N, C, 8, 8] with unit deviation; the posterior's mean, so without its small noise."""

    def __init__(self, vae_checkpoint: Path, seed: int) -> None:
        saved = torch.load(vae_checkpoint, weights_only=True)
        self.vae = build_vae().requires_grad_(False).to(memory_format=torch.channels_last)
        self.vae.load_state_dict(saved["ema"])
        self.deviation = saved["latent_deviation"]
        self.pool = Pool(PER_CLASS, np.random.default_rng(seed))
        self.values = torch.cat([self._encode(places) for places in np.array_split(np.arange(len(self.pool.label)), 200)])

    @torch.no_grad()
    def _encode(self, places: np.ndarray) -> torch.Tensor:
        return self.vae.encode(as_tensor(self.pool.pixels[places])).latent_dist.mean / self.deviation

    def redraw(self, count: int) -> None:
        places = self.pool.redraw(count)
        self.values[places] = self._encode(places)


def train(rank: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    vocabulary = build_vocabulary()
    torch.manual_seed(0)
    painter, ema = Painter(vocabulary), Painter(vocabulary).requires_grad_(False)
    painter.unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(painter.parameters(), lr=0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    path = options.run / "painter.pt"
    saved = load_checkpoint(path)
    step, samples, spent = 0, 0, 0.0
    if saved:
        painter.load_state_dict(saved["painter"])
        optimizer.load_state_dict(saved["optimizer"])
        step, samples, spent = saved["step"], saved["samples"], saved["spent"]
    ema.load_state_dict(saved["ema"] if saved else painter.state_dict())
    seed = 1000 * rank + step * 7919
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    latents = Latents(options.vae, seed)
    tokenizer = vocabulary.transformers_tokenizer(options.run / f"tokenizer-{rank}")
    tokens: dict[str, list[int]] = {}
    signal = alphas_cumprod()

    clock, report_due, save_due = Clock(options.minutes, spent), Due(1), Due(5)
    progress, recent = clock.progress, []
    while progress < 1:
        set_learning_rate(optimizer, learning_rate(progress, PEAK_LEARNING_RATE))
        if step % 8 == 0:
            latents.redraw(8 * REDRAWN_A_STEP)
        places = latents.pool.places_of(rng.integers(len(latents.pool.classes), size=BATCH_SIZE), 1)
        captions, caption_of = np.unique([_caption(rng, latents.pool, place) for place in places], return_inverse=True)
        token_ids = torch.tensor(
            [tokens[c] if c in tokens else tokens.setdefault(c, tokenizer(c, padding="max_length").input_ids) for c in map(str, captions)]
        )
        clean, noise = latents.values[places], torch.randn(BATCH_SIZE, *latents.values.shape[1:])
        timesteps = _timesteps(rng)
        alpha, sigma = (part.sqrt().view(-1, 1, 1, 1) for part in (signal[timesteps], 1 - signal[timesteps]))
        noisy = (alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        velocity = alpha * noise - sigma * clean
        loss = (painter(noisy, timesteps, token_ids, torch.from_numpy(caption_of)) - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        progress, shared_loss = _agree(painter, clock.progress, loss.item(), options.processes)
        torch.nn.utils.clip_grad_norm_(painter.parameters(), 1.0)
        optimizer.step()
        step, samples = step + 1, samples + BATCH_SIZE * options.processes
        torch._foreach_lerp_(list(ema.parameters()), list(painter.parameters()), 1 - min(EMA_DECAY, step / (step + 10)))
        if not np.isfinite(shared_loss):
            raise SystemExit(f"loss is {shared_loss} at step {step}; the last checkpoint is {path}")
        recent.append(shared_loss)
        if rank == 0 and report_due():
            print(f"step {step} samples {samples} spent {clock.spent:.0f} s loss {np.mean(recent):.4f}", flush=True)
            recent.clear()
        if rank == 0 and (save_due() or progress >= 1):
            save_checkpoint(
                path,
                painter=painter.state_dict(),
                ema=ema.state_dict(),
                optimizer=optimizer.state_dict(),
                step=step,
                samples=samples,
                spent=clock.spent,
            )
    if rank == 0:
        print(f"done: step {step} samples {samples} spent {clock.spent:.0f} s", flush=True)


def _timesteps(rng: np.random.Generator) -> torch.Tensor:
    """[B]: three quarters logistic-normal around 0.57 of the schedule, one quarter uniform so that no step goes unlearned."""
    middle = 1 / (1 + np.exp(-rng.normal(0.3, 1.0, BATCH_SIZE)))
    share = np.where(rng.random(BATCH_SIZE) < 0.25, rng.random(BATCH_SIZE), middle)
    return torch.from_numpy((share * 1000).astype(np.int64).clip(0, 999))


def _caption(rng: np.random.Generator, pool: Pool, place: int) -> str:
    draw = rng.random()
    if draw < EMPTY_CAPTIONS:
        return ""
    coloured, plain = pool.coloured[place], pool.classes[pool.label[place]].captions
    if draw < EMPTY_CAPTIONS + COLOURED_CAPTIONS and coloured:
        return coloured
    return plain[0] if rng.random() < FIRST_CAPTIONS else plain[rng.integers(len(plain))]


def _agree(painter: torch.nn.Module, progress: float, loss: float, processes: int) -> tuple[float, float]:
    """Average gradients, progress and loss over the processes, in one message: all must stop at the same step."""
    if processes == 1:
        return progress, loss
    gradients = [p.grad for p in painter.parameters() if p.grad is not None]
    message = torch.cat([g.contiguous().flatten() for g in gradients] + [torch.tensor([progress, loss])])
    dist.all_reduce(message)
    message /= processes
    for gradient, mean in zip(gradients, message[:-2].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
    return message[-2].item(), message[-1].item()


if __name__ == "__main__":
    main()
