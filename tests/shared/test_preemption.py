"""Being told to leave by a scheduler."""

import os
import signal
import subprocess
import sys

import pytest

from gift_shared.errors import Preempted
from gift_shared.preemption import PreemptionNotice


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_scheduler_signal_is_noted_and_obeyed_at_the_next_safe_place(number: signal.Signals) -> None:
    with PreemptionNotice() as notice:
        notice.obey("nothing yet")
        assert not notice.has_come
        os.kill(os.getpid(), number)
        assert notice.has_come
        with pytest.raises(Preempted, match=f"Stopped by {number.name}: 3 shards are left"):
            notice.obey("3 shards are left")


def test_the_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionNotice():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


LEAVING = """
import os, signal
from gift_shared.console import run_app
from gift_shared.preemption import PreemptionNotice
def app():
    with PreemptionNotice() as notice:
        os.kill(os.getpid(), signal.SIGUSR1)
        notice.obey("all")
try:
    run_app(app)
finally:  # the interpreter ends, as slowly as it may
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_second_signal_does_not_replace_the_exit_code() -> None:
    assert subprocess.run([sys.executable, "-c", LEAVING], stderr=subprocess.DEVNULL, check=False).returncode == 75
