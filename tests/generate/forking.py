"""A program that starts gift-generate in milliseconds: all is imported once, and every start is a fork of that.

A request is a JSON line on stdin, its answer one on stdout: {"start": arguments, "log": file} -> process number;
{"poll": process number} -> exit code, null while it runs.
"""

import importlib
import json
import os
import sys

from gift_generate import cli

for module in ("workers.claims", "output.folder", "pipeline", "images.rendered", "rendering.factory"):  # for the forks
    importlib.import_module(f"gift_generate.{module}")


exit_codes: dict[int, int] = {}  # of processes that have ended


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        answer = start(request["start"], request["log"]) if "start" in request else poll(request["poll"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def start(arguments: list[str], log: str) -> int:
    process = os.fork()
    if process:
        exit_codes.pop(process, None)  # of an earlier one of that number
        return process
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["gift-generate", *arguments]
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:  # any other error unwinds to the top and ends this process with its traceback
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def poll(process: int) -> int | None:
    if process not in exit_codes:  # the system tells of an end once
        ended, status = os.waitpid(process, os.WNOHANG)
        if not ended:
            return None
        exit_codes[process] = os.waitstatus_to_exitcode(status)
    return exit_codes[process]


if __name__ == "__main__":
    serve()
