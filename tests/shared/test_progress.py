"""A bar on a terminal; plain lines, and few of them, in a log."""

import io
import sys
from contextlib import suppress

import pytest

from gift_shared import progress as module
from gift_shared.progress import Progress, with_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the module sees; the test moves it on."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_plain_line_every_ten_seconds_and_one_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("gift 1/6 digits", 100, "step") as progress:
        for _ in range(100):
            clock[0] += 0.25
            progress.advance()
            progress.note("loss 0.500")
    told = capsys.readouterr().err
    assert "\r" not in told
    assert told.splitlines() == [
        "gift 1/6 digits: 40 of 100 steps, 4.00 steps/s, 0:15 left (loss 0.500)",
        "gift 1/6 digits: 80 of 100 steps, 4.00 steps/s, 0:05 left (loss 0.500)",
        "gift 1/6 digits: 100 of 100 steps in 0:25, 4.00 steps/s (loss 0.500)",
    ]


def test_the_rate_does_not_count_what_was_done_before(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("images", 100, "image", done=60) as progress:
        clock[0] += 20
        progress.advance(20)
    assert capsys.readouterr().err.splitlines()[0] == "images: 80 of 100 images, 1.00 images/s, 0:20 left"


def test_short_work_that_does_not_stay_leaves_no_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(with_progress("abc", "verify", 3, "shard", stays=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_work_cut_short_claims_no_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(KeyboardInterrupt), Progress("images", 9, "image") as progress:
        progress.advance()
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("images", 2, "image") as progress:
        progress.advance(2)
    assert "images: 100%" in terminal.getvalue()
    assert "\r" in terminal.getvalue()
