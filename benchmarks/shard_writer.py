"""The writer alone: images of 512 x 512 pixels into a shard of JPEGs, without any model, on one core.

python benchmarks/shard_writer.py [--quick]

What a worker does with pixels once they are there: judge, encode as JPEG (quality 75, as the authors' images are), tar, digests, Parquet,
flush to disk. The images are synthetic but compress like photographs, to about 40 kB: a gradient, some soft shapes and mild grain.
Noise would compress worse and flat colours better than any picture, so neither would tell anything.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import Finding, report, seconds_each
from PIL import Image, ImageFilter

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.screening import render_screened
from gift_generate.output.shard_writer import write_shard
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.rendering.renderer import Rendered
from gift_shared.schema import PLAN_SCHEMA

PIXELS = 512
SHAPES = 24
GRAIN = 6.5  # standard deviation, of 255
TARGET = 300.0  # images per second and core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller shard, once")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the encoding threads share the one core
    num_images, rounds = (64, 1) if arguments.quick else (500, 5)
    pictures = [picture(number) for number in range(16)]
    details: dict[str, Any] = {"images": num_images, "pixels": PIXELS}
    with tempfile.TemporaryDirectory() as folder:
        rows = plan_rows(num_images)
        renderer = ReadyPictures(pictures)
        cpu_seconds: list[float] = []

        def write() -> None:
            started = time.process_time()
            encoded = render_screened(renderer, ImageEncoder(), rows, 1, lambda count: None)
            write_shard(Path(folder), "bench-00000", rows, encoded, {})
            cpu_seconds.append(time.process_time() - started)

        def encode_alone() -> None:
            encoder = ImageEncoder()
            for number in range(num_images):
                encoder(pictures[number % len(pictures)])

        seconds = seconds_each({"shard": write, "encode": encode_alone}, rounds=rounds)
        tar_bytes = (Path(folder) / "shards" / "bench-00000.tar").stat().st_size
    details |= {
        "seconds_per_shard": seconds["shard"],
        "processor_seconds_per_shard": min(cpu_seconds),
        "share_of_encoding": seconds["encode"] / seconds["shard"],
        "kilobytes_per_image": tar_bytes / num_images / 1000,
    }
    findings = [
        Finding(what=f"writer alone, {PIXELS} px JPEG, one core", value=num_images / seconds["shard"], unit="images/s", target=TARGET),
        Finding(what="the same by processor time", value=num_images / min(cpu_seconds), unit="images/s"),
        Finding(what="share of it that is JPEG encoding", value=100 * details["share_of_encoding"], unit="%"),
        Finding(what="size in the shard", value=details["kilobytes_per_image"], unit="kB/image"),
    ]
    report("shard_writer", findings, details, is_quick=arguments.quick)


class ReadyPictures(FlatColorRenderer):
    """Hands out pictures that are already there, as a renderer of infinite speed would."""

    def __init__(self, pictures: list[np.ndarray]) -> None:
        super().__init__(batch_size=16)
        self._pictures = pictures

    def render(self, jobs: Any) -> list[Rendered]:
        """The picture that the seed names."""
        return [Rendered(self._pictures[job.seed % len(self._pictures)]) for job in jobs]


def picture(seed: int) -> np.ndarray:
    """Gradient, soft shapes, grain: [512, 512, 3] uint8."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:PIXELS, 0:PIXELS] / PIXELS
    directions = generator.normal(size=(3, 2))
    pixels = 128 + 60 * (directions[:, 0, None, None] * (x - 0.5) + directions[:, 1, None, None] * (y - 0.5))
    for _ in range(SHAPES):
        center_x, center_y = generator.random(2)
        radius_x, radius_y = generator.uniform(0.03, 0.25, 2)
        inside = ((x - center_x) / radius_x) ** 2 + ((y - center_y) / radius_y) ** 2 < 1
        pixels += inside * generator.normal(scale=45, size=(3, 1, 1))
    soft = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).filter(ImageFilter.GaussianBlur(1.5))
    grain = generator.normal(scale=GRAIN, size=(PIXELS, PIXELS, 1))
    return (np.asarray(soft) + grain).clip(0, 255).astype(np.uint8)


def plan_rows(num_rows: int) -> list[dict[str, Any]]:
    """Rows as a plan has them."""
    row = dict.fromkeys(PLAN_SCHEMA.names) | {
        "task": "bench", "caption": "a photo of a bench.", "source": "bench", "class_name": "bench", "class_index": 0,
        "guidance_scale": 7.5, "denoising_steps": 50, "shard": "bench-00000",
    }  # fmt: skip
    return [row | {"index": number, "sample_key": f"bench-{number:06d}", "sample_seed": number} for number in range(num_rows)]


if __name__ == "__main__":
    main()
