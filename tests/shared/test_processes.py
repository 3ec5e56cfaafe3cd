"""A process is told apart from every other, and known to be gone only where that is certain."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gift_shared.processes import ProcessName, this_process

NAME = "from gift_shared.processes import this_process; print(this_process(), flush=True); import sys; sys.stdin.read()"


def test_a_name_says_who_it_is() -> None:
    name = this_process()
    assert name.pid == os.getpid()
    assert ProcessName.parse(str(name)) == name
    assert not name.is_gone()


def test_another_process_has_another_name_and_is_gone_when_it_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        other = ProcessName.parse(process.stdout.readline().strip())
        assert other is not None
        assert (other.pid, other.machine) == (process.pid, this_process().machine)
        assert not other.is_gone()
        process.kill()
        assert_gone_before_its_parent_asks(other)
    assert other.is_gone()


def assert_gone_before_its_parent_asks(other: ProcessName) -> None:
    """A killed process stays in the list until its parent asks how it ended."""
    for _ in range(10_000):
        if other.is_gone():
            return
    pytest.fail("a process that was killed counts as alive")


def test_a_fork_is_another_process() -> None:
    before = this_process()
    child = os.fork()
    if child == 0:
        os._exit(0 if this_process() != before and this_process().pid == os.getpid() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_number_that_was_given_again_is_another_process() -> None:
    name = this_process()
    assert replace(name, started=name.started - 1).is_gone()


def test_of_another_machine_nothing_is_known() -> None:
    assert not replace(this_process(), machine="0123abcd", pid=2**22 + 1).is_gone()


@pytest.mark.parametrize("text", ["", "host", "host-0123abcd-1", "host-0123abcd-x-1", "a.b-0123abcd-1-1", "../x-0123abcd-1-1"])
def test_other_text_names_no_process(text: str) -> None:
    assert ProcessName.parse(text) is None


def test_a_host_whose_name_does_not_fit_a_file_name_gets_one_that_does() -> None:
    program = (
        "import socket; socket.gethostname = lambda: 'nöde/1_a.cluster.example'\n"
        "from gift_shared.processes import ProcessName, this_process\n"
        "name = this_process(); assert ProcessName.parse(str(name)) == name; print(name.host)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "n-de-1-a\n"
    assert len(Path(str(this_process())).name.encode()) < 100
