"""The automatic batch: the largest that fits, found once, and the same for every worker of a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.rendered import RenderedImages
from gift_generate.output.binding import bind_output
from gift_generate.rendering.batch_size import LARGEST_ON_CPU, batch_within, largest_batch, parse_batch_size
from gift_generate.rendering.diffusers_renderer import DiffusersRenderer
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.rendering.model_options import ModelOptions
from gift_shared.errors import ConfigError


class OpenRenderer(FlatColorRenderer):
    """Flat colours in a batch that is left to the machine, which `found` stands for."""

    def __init__(self, found: int) -> None:
        super().__init__(batch_size=found, height=16, width=16)

    def adopt(self, settings: dict[str, Any]) -> None:
        self.batch_size = settings["batch_size"]


def source(found: int) -> RenderedImages:
    return RenderedImages(OpenRenderer(found), ImageEncoder(), 1)


@pytest.mark.parametrize(("room", "size"), [(1000, 64), (64, 64), (63, 32), (5, 4), (1, 1)])
def test_a_batch_is_halved_until_it_fits(room: int, size: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    assert largest_batch(fits) == size
    assert tried == sorted(tried, reverse=True)


def test_a_device_without_room_for_one_image_is_one_line() -> None:
    with pytest.raises(ConfigError, match="Not even one image fits in the device's memory"):
        largest_batch(lambda size: False)


@pytest.mark.parametrize(("num_bytes", "size"), [(1e12, LARGEST_ON_CPU), (8e9, 4), (7.9e9, 2), (1e9, 1)])
def test_memory_bounds_the_batch_of_a_cpu(num_bytes: float, size: int) -> None:
    assert batch_within(num_bytes, bytes_per_image=2e9) == size


@pytest.mark.parametrize("text", ["0", "-4", "many", "1.5", "", "99999999"])
def test_what_is_no_size_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="--batch-size must be at least 1, or auto; found"):
        parse_batch_size(text)


def test_sizes_are_read() -> None:
    assert (parse_batch_size("auto"), parse_batch_size("7")) == (None, 7)


def test_the_first_worker_decides_and_the_others_adopt(plan: Path, tmp_path: Path) -> None:
    first, second = source(32), source(8)
    bind_output(tmp_path / "out", plan, first)
    bind_output(tmp_path / "out", plan, second)
    assert first.settings == second.settings
    assert second.settings["batch_size"] == 32
    assert json.loads((tmp_path / "out" / "render.json").read_text())["settings"]["batch_size"] == 32


def test_a_size_that_was_asked_for_is_not_given_up(command, plan: Path, tmp_path: Path) -> None:
    flags = ("--plan", plan, "--out", tmp_path / "out", "--model", "flat-color", "--height", 16, "--width", 16)
    assert command("render", *flags, "--batch-size", "auto").code == 0
    result = command("render", *flags, "--batch-size", 3)
    assert result.code == 2
    assert "made with batch_size = 16, this command says 3" in result.err


def test_the_mini_model_finds_a_batch_and_adopts_a_folders() -> None:
    options = ModelOptions(model="mini", device="cpu", batch_size=None, height=8, width=8)
    finds, adopts = DiffusersRenderer(options), DiffusersRenderer(options)
    assert finds.batch_size in {1, 2, 4, 8, 16, 32}
    adopts.adopt({"batch_size": 5})
    assert adopts.batch_size == 5
    asked = DiffusersRenderer(ModelOptions(model="mini", device="cpu", batch_size=3, height=8, width=8))
    asked.adopt({"batch_size": 5})
    assert asked.batch_size == 3
