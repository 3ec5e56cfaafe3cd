"""Exit codes and the one line that a user sees."""

import errno
import os
import signal
import sys

import pytest
import typer

from gift_shared.console import run_app, some_of
from gift_shared.errors import GiftError, Preempted, ShardError, unknown_name


def outcome(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def app() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_app(app)
    return int(stop.value.code or 0), capsys.readouterr().err


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(ShardError("a.tar is\n  truncated."), capsys) == (2, "error: a.tar is truncated.\n")


def test_preemption_is_no_error_and_asks_for_another_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(Preempted("Stopped by SIGTERM: 3 shards are left."), capsys) == (75, "Stopped by SIGTERM: 3 shards are left.\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_exit_code_2(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = outcome(OSError(number, "no room", "/data/x.tar"), capsys)
    assert code == 2
    assert message.startswith("error: The disk is full (/data/x.tar). What is complete stays valid")


def test_storage_that_fails_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = outcome(OSError(errno.ESTALE, "x", "/nfs/shards"), capsys)
    assert code == 2
    assert message.startswith(f"error: The storage failed (/nfs/shards): {os.strerror(errno.ESTALE)}. What is complete stays valid")


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = outcome(KeyboardInterrupt(), capsys)
    assert code == 130
    assert "run the same command again" in message


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST])
def test_a_path_that_cannot_be_used_is_one_line_and_exit_code_2(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = outcome(OSError(number, "x", "/data/runs"), capsys)
    assert code == 2
    assert message == f"error: /data/runs cannot be used: {os.strerror(number)}.\n"


def test_ctrl_c_in_a_real_command_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def wait() -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "argv", ["wait"])
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignore"
    try:
        with pytest.raises(SystemExit) as stop:
            run_app(app)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert stop.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_list_in_a_message_names_the_first_few_and_counts_the_rest() -> None:
    assert some_of(["a", "b"]) == "'a'; 'b'"
    assert some_of(["a", "b", "c", "d", "e"]) == "'a'; 'b'; 'c' and 2 more"


def test_a_long_text_of_a_list_is_shortened() -> None:
    assert some_of(["x" * 3_000_000]) == f"'{'x' * 100}'... (3,000,000 characters)"


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(errno.EPIPE, "gone"), FileNotFoundError(errno.ENOENT, "ours", "x")])
def test_what_is_no_users_mistake_keeps_its_traceback(error: Exception) -> None:
    def app() -> None:
        raise error

    with pytest.raises(type(error)):
        run_app(app)


def test_an_unknown_name_lists_the_nearest_first_and_all_valid_ones() -> None:
    assert unknown_name("order", "mini2", ["mtil-1", "mini-2"]) == "Unknown order 'mini2'. Did you mean 'mini-2'? Valid: mini-2, mtil-1."
    assert unknown_name("order", "x", []) == "Unknown order 'x'. Valid: none."
    assert issubclass(ShardError, GiftError)
