"""Train the mini CLIP on the drawn web, contrastively, with some task-style pictures and some wrong captions.

Usage: python mini_world/pretrain/train_clip.py --run DIR [--minutes 30]       (one thread: OMP_NUM_THREADS=1)
Resumes from DIR/clip.pt and writes the open_clip folder DIR/clip at every checkpoint. Prints zero-shot accuracy per task on the
tasks' test pictures if --data names a folder that `python -m gift_mini.tasks` wrote.

Real handwritten digits are never shown: the web holds printed ones only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import zero_shot
from models import build_clip, clip_config, save_clip
from runs import Clock, Due, Pool, learning_rate, load_checkpoint, save_checkpoint, set_learning_rate
from vocabulary import MERGES_FILE, build_vocabulary

CLASSES_A_BATCH, PICTURES_A_CLASS = 120, 2
TASK_STYLE_SHARE = 0.12
WRONG_CAPTIONS = 0.05
COLOURED_CAPTIONS = 0.15
PEAK_LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
LARGEST_LOGIT_SCALE = float(np.log(100))  # CLIP's own bound
PER_CLASS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--data", type=Path, help="the tasks' data root, for progress lines")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    vocabulary = build_vocabulary()
    config = clip_config(vocabulary)
    clip = build_clip(config)
    decayed = [p for name, p in clip.named_parameters() if p.ndim >= 2 and "embedding" not in name]
    plain = [p for name, p in clip.named_parameters() if not (p.ndim >= 2 and "embedding" not in name)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}], lr=0, betas=(0.9, 0.98), fused=True
    )
    path = options.run / "clip.pt"
    saved = load_checkpoint(path)
    step, spent = 0, 0.0
    if saved:
        clip.load_state_dict(saved["clip"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
    options.run.mkdir(parents=True, exist_ok=True)
    tokenize = vocabulary.open_clip_tokenizer(options.run / MERGES_FILE)
    tokens: dict[str, torch.Tensor] = {}
    rng = np.random.default_rng(step)
    pool = Pool(PER_CLASS, rng, TASK_STYLE_SHARE)
    mean, deviation = (torch.tensor(config["preprocess_cfg"][key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    clock, report_due, test_due, save_due = Clock(options.minutes, spent), Due(0.5), Due(4), Due(4)
    while clock.progress < 1:
        set_learning_rate(optimizer, learning_rate(clock.progress, PEAK_LEARNING_RATE))
        pool.redraw(CLASSES_A_BATCH * PICTURES_A_CLASS // 3)
        places = pool.places_of(rng.permutation(len(pool.classes))[:CLASSES_A_BATCH], PICTURES_A_CLASS)
        captions, caption_of = np.unique(_captions(rng, pool, places), return_inverse=True)
        token_ids = torch.stack([tokens[c] if c in tokens else tokens.setdefault(c, tokenize(c)[0]) for c in map(str, captions)])
        caption_of = torch.from_numpy(caption_of)
        pictures = (torch.from_numpy(pool.pixels[places]).permute(0, 3, 1, 2).float().div_(255) - mean) / deviation

        image_features = clip.encode_image(pictures, normalize=True)
        text_features = clip.encode_text(token_ids, normalize=True)
        logits = clip.logit_scale.exp() * image_features @ text_features.T  # [B, K]: K distinct captions
        pictures_of = F.one_hot(caption_of, len(captions)).float()  # [B, K]; a caption's pictures share its target
        image_to_text = F.cross_entropy(logits, caption_of)
        text_to_image = F.cross_entropy(logits.T, (pictures_of / pictures_of.sum(0)).T)
        loss = (image_to_text + text_to_image) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)
        step += 1
        if not torch.isfinite(loss):
            raise SystemExit(f"loss is {loss.item()} at step {step}; the last checkpoint is {path}")
        if report_due():
            print(
                f"step {step} samples {step * len(places)} spent {clock.spent:.0f} s loss {loss.item():.3f} "
                f"scale {clip.logit_scale.exp().item():.1f}",
                flush=True,
            )
        if options.data and test_due():
            _report(clip, tokenize, mean, deviation, options.data)
        if save_due():
            _save(path, clip, config, vocabulary, optimizer, step, clock)
    _save(path, clip, config, vocabulary, optimizer, step, clock)
    print(f"done: step {step} samples {step * CLASSES_A_BATCH * PICTURES_A_CLASS} spent {clock.spent:.0f} s", flush=True)
    if options.data:
        _report(clip, tokenize, mean, deviation, options.data)


def _captions(rng: np.random.Generator, pool: Pool, places: np.ndarray) -> list[str]:
    """One caption a picture: the same for all pictures of a class, save for some that tell colours and some that are wrong."""
    captions = []
    for first in range(0, len(places), PICTURES_A_CLASS):
        item = pool.classes[pool.label[places[first]]]
        shared = item.captions[rng.integers(len(item.captions))]
        wants_colour = rng.random() < COLOURED_CAPTIONS
        for place in places[first : first + PICTURES_A_CLASS]:
            caption = pool.coloured[place] if wants_colour and pool.coloured[place] else shared
            if rng.random() < WRONG_CAPTIONS:
                other = pool.classes[rng.integers(len(pool.classes))]
                caption = other.captions[rng.integers(len(other.captions))]
            captions.append(caption)
    return captions


def _report(clip, tokenize, mean, deviation, data: Path) -> None:
    clip.eval()
    accuracy = zero_shot(clip, tokenize, mean, deviation, data)
    clip.train()
    print("zero-shot " + " ".join(f"{task} {value:.1f}" for task, value in accuracy.items()), flush=True)


def _save(path: Path, clip, config, vocabulary, optimizer, step: int, clock: Clock) -> None:
    save_checkpoint(path, clip=clip.state_dict(), optimizer=optimizer.state_dict(), step=step, spent=clock.spent)
    save_clip(clip, config, vocabulary, path.parent / "clip")


if __name__ == "__main__":
    main()
