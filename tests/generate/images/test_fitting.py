"""Batches that find too little memory: made in pieces that fit, told once, recorded, and cut as ever."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gift_generate.images.encoding import ImageEncoder
from gift_generate.images.fitting import FittingBatches
from gift_generate.images.rendered import RenderedImages
from gift_generate.pipeline import run
from gift_generate.rendering.devices import is_out_of_memory
from gift_generate.rendering.flat_color import FlatColorRenderer
from gift_generate.rendering.renderer import OutOfMemory, Rendered, RenderJob
from gift_generate.workers.rank import Worker
from gift_shared.errors import MachineError
from gift_shared.event_log import read_events
from gift_shared.worker_logs import render_times


class SmallDevice(FlatColorRenderer):
    """Flat colours on a device that holds so many images: for more, torch is asked for memory that no machine has."""

    def __init__(self, room: int, batch_size: int = 16) -> None:
        super().__init__(batch_size=batch_size, height=16, width=16)
        self.room = room
        self.sizes: list[int] = []

    def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
        self.sizes.append(len(jobs))
        try:
            torch.empty(2**58 if len(jobs) > self.room else 16, dtype=torch.uint8)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = "no room"
        else:
            return super().render(jobs)
        raise OutOfMemory(reason)


def jobs(count: int) -> list[RenderJob]:
    return [RenderJob(f"thing {number}", number, 7.5, 10) for number in range(count)]


@pytest.mark.parametrize(
    ("room", "sizes"),
    [(16, [16, 16, 5]), (8, [16, 8, 8, 8, 8, 5]), (3, [16, 8, 4, *[2] * 8, *[2] * 8, 2, 2, 1]), (1, [16, 8, 4, 2, *[1] * 37])],
)
def test_batches_are_halved_until_they_fit_and_the_size_is_remembered(room: int, sizes: list[int]) -> None:
    device = SmallDevice(room)
    fitting = FittingBatches(device)
    made = [one for batch in (jobs(16), jobs(16), jobs(5)) for one in fitting.render(batch)]
    assert device.sizes == sizes
    assert fitting.batch_size == 16
    assert fitting.split_batch == {16: None, 8: 8, 3: 2, 1: 1}[room]
    wanted = [one for batch in (jobs(16), jobs(16), jobs(5)) for one in FlatColorRenderer(height=16, width=16).render(batch)]
    assert all((one.pixels == other.pixels).all() for one, other in zip(made, wanted, strict=True))


def test_what_fails_of_another_reason_is_not_split() -> None:
    class Broken(SmallDevice):
        def render(self, jobs: Sequence[RenderJob]) -> list[Rendered]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        FittingBatches(Broken(1)).render(jobs(4))


def test_a_device_without_room_for_one_image_is_one_line_and_another_goes_on(plan: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MachineError, match=r"Not even one image fits in this device's memory \(no room\). Let a larger device make"
    ) as told:
        run(tmp_path / "out", plan, RenderedImages(SmallDevice(0), ImageEncoder(), 1), Worker(), lambda message: None)
    assert told.value.exit_code == 1
    assert run(tmp_path / "out", plan, RenderedImages(SmallDevice(1), ImageEncoder(), 1), Worker(), lambda message: None).shards_left == 0


def test_unequal_devices_fill_one_folder_and_it_is_told_once_and_logged(content, plan: Path, rendered: Path, tmp_path: Path) -> None:
    told: list[str] = []
    out = tmp_path / "out"
    assert run(out, plan, RenderedImages(SmallDevice(1), ImageEncoder(), 3), Worker(), told.append).shards_left == 0
    assert [message for message in told if "memory" in message] == [
        "warning: a batch does not fit in this device's memory: from here on 1 images are made at once. "
        "Images may differ in their last bits from those of a device that holds whole batches."
    ]
    (log,) = (out / "workers").glob("*.jsonl")
    assert [event["images_at_once"] for event in read_events(log) if event["event"] == "batch split"] == [1]
    assert [images for images, _ in render_times(out).values()] == [20]
    assert content(out) == content(rendered)
