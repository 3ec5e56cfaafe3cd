"""gift-train with one fault in it: python ending.py PHASE FAULT PIDS_FILE ARGUMENTS...

The fault comes at the second batch of its phase that reaches the main process, while worker processes load more; their numbers go into
the file. kill: one worker gets SIGKILL. memory: torch runs out of memory. interrupt, terminate: this process gets the signal.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

from gift_train.cli import main
from gift_train.evaluation import cache, evaluate
from gift_train.training import loop, task

PLACES = {
    "training": (loop, "training_step"),
    "evaluation": (evaluate, "place_task"),
    "teacher": (task, "place_replay"),  # the pass over the replay images comes before the steps that use them
    "evaluation cache": (cache.np, "ascontiguousarray"),
}
SIGNALS = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}


def break_down(phase, fault, pids_file):
    cache._BATCH = 2  # several batches of the drawn world's few images
    module, name = PLACES[phase]
    whole, calls = getattr(module, name), iter(range(10**9))

    def faulty(*arguments):
        if next(calls) == 1:
            workers = multiprocessing.active_children()
            pids_file.write_text(" ".join(str(worker.pid) for worker in workers))
            if fault == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
            os.kill(workers[0].pid if fault == "kill" else os.getpid(), SIGNALS.get(fault, signal.SIGKILL))
        return whole(*arguments)

    setattr(module, name, faulty)


if __name__ == "__main__":
    phase, fault, pids_file, *arguments = sys.argv[1:]
    break_down(phase, fault, Path(pids_file))
    sys.argv = ["gift-train", *arguments]
    main()
