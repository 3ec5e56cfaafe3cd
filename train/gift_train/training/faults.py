"""What the machine does to a run, told in one line: memory that runs out, a process that is killed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gift_shared.errors import MachineError
from gift_train.clip.compiler import told_by_compiler
from gift_train.data.loader import death_of_worker

COMPILER = ("torch._dynamo.exc", "torch._inductor.exc")  # modules of its errors; looked up by name, since importing them takes seconds
OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "CUDA error: out of memory")


@contextmanager
def machine_faults() -> Iterator[None]:
    """Turn what torch and Python raise in such cases into MachineError; everything else passes."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = _told(error)
        if told is None:
            raise
        raise MachineError(told) from error


def _told(error: BaseException) -> str | None:
    death = death_of_worker(error)
    if death is not None:
        return (
            f"A process that loads images {death}. If nobody killed it, the machine's memory ran out (dmesg tells), or /dev/shm did where"
            " it was a bus error: fewer --num-workers or a smaller --image-cache-gb take less. The same command goes on."
        )
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"The device's memory ran out: {str(error).partition('. ')[0]}. In training --gradient-checkpointing or --micro-batch-size N"
            " take less and the run goes on with them; so do more processes. A smaller evaluation_batch_size or --precision bf16 make"
            " another run."
        )
    if type(error).__module__ in COMPILER:
        told = told_by_compiler(error)
        return f"torch's compiler failed: {told}. Leave --compile and --compile-step out; the same run goes on without them."
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return (
            "The machine's memory ran out. A smaller --image-cache-gb or fewer --num-workers take less, in training also"
            " --gradient-checkpointing or --micro-batch-size N; a run goes on with them."
        )
    return None
