"""A process that has imported what `gift-train` needs and forks a start of it for every line it is given: starts that cost no imports.

stdin: the arguments of one start as JSON. stdout: its process id; once it has ended, its exit code (negative: the signal).
"""

import importlib
import json
import os
import sys


def main() -> None:
    from gift_train import cli
    from gift_train.methods.registry import method_class, method_names

    importlib.import_module("gift_train.training.run")  # what a start would import; no computation yet, so nothing that a fork would break
    for name in method_names():
        method_class(name)
    before = None
    for line in sys.stdin:
        if before is not None:
            os.waitpid(before, 0)
        process = os.fork()
        if process == 0:
            sys.argv = ["gift-train", *json.loads(line)]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                cli.main()
            except SystemExit as stop:
                os._exit(stop.code if isinstance(stop.code, int) else 0)
            finally:
                sys.stderr.flush()
            os._exit(0)
        tell(process)
        ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        tell(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
        before = process  # gone with the next line: until then nobody else can have its number, and be killed in its place
    os._exit(0)  # nothing to put in order, which would take torch seconds


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
