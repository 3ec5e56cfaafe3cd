"""The loader knows torch's DataLoader by names that torch does not promise. Where one is gone, what to do stands in the message."""

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from gift_train.data.loader import (
    Loading,
    _shared,
    _told_by_the_main_process,
    death_of_worker,
    end_loader_processes,
    loaded,
    resolved_loading,
)

MEND = "gift_train/data/loader.py, _end: read DataLoader's _shutdown_workers again and leave behind what it does now."


class Numbers(Dataset):
    def __getitem__(self, position):
        return torch.full((4,), position)


def test_torch_still_has_what_the_end_of_workers_rests_on():
    made = iter(DataLoader(Numbers(), batch_size=None, sampler=range(8), num_workers=1, multiprocessing_context="fork"))
    for name in ("_workers", "_shutdown", "_worker_pids_set", "_index_queues"):
        assert hasattr(made, name), f"DataLoader's iterator has no {name}: {MEND}"
    assert all(hasattr(queue, "cancel_join_thread") for queue in made._index_queues), MEND
    made._shutdown_workers()


def test_batches_come_in_order_and_their_processes_end_with_them():
    batches = loaded(Numbers(), range(3, 9), Loading(num_workers=2))
    assert [int(batch[0]) for batch in batches] == [3, 4, 5, 6, 7, 8]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_that_are_not_forked_give_the_same_batches_and_end_with_them(method):
    batches = loaded([torch.full((4,), position) for position in range(9)], range(3, 9), Loading(num_workers=2, start_method=method))
    assert [int(batch[0]) for batch in batches] == [3, 4, 5, 6, 7, 8]
    assert multiprocessing.active_children() == []


@pytest.mark.slow  # torch looks after processes that are not its children every five seconds
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_killed_worker_that_was_not_forked_is_told_too(method):
    batches = loaded([torch.zeros(4)] * 1000, range(1000), Loading(num_workers=2, start_method=method))
    next(batches)
    worker, _ = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(RuntimeError) as error:
        list(batches)
    assert death_of_worker(error.value) == f"(process {worker.pid}) was killed by SIGKILL"
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("asked", "device", "num_cores", "num_workers"),
    [
        (None, "cpu", 16, 0),
        (None, "cuda", 16, 8),
        (None, "cuda", 3, 3),
        (None, "cuda", 1, 1),
        (0, "cuda", 16, 0),
        (12, "cpu", 1, 12),
        (None, "mps", 4, 0),
    ],
)
def test_an_accelerator_gets_a_worker_for_each_core_up_to_eight(asked, device, num_cores, num_workers):
    assert resolved_loading(asked, None, torch.device(device), num_cores).num_workers == num_workers


@pytest.mark.parametrize(("device", "pins"), [("cuda", True), ("cuda:1", True), ("cpu", False), ("mps", False)])
def test_memory_is_pinned_for_a_run_on_a_gpu_and_not_for_one_beside_it(device, pins, monkeypatch):
    """Whatever accelerators the machine has: a run on its CPU must not start one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loading = resolved_loading(1, None, torch.device(device))
    assert loading.pins_memory is pins
    asked = []

    class Listening(DataLoader):
        def __init__(self, *parts, pin_memory, **named):
            asked.append(pin_memory)
            super().__init__(*parts, **named)

    monkeypatch.setattr("gift_train.data.loader.DataLoader", Listening)
    assert list(loaded(Numbers(), range(1), loading))
    assert asked == [pins]


def test_the_only_process_has_all_cores_it_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5})
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert resolved_loading(None, None, torch.device("cuda")).num_workers == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert resolved_loading(None, None, torch.device("cuda")).num_workers == 2


def test_a_stream_that_is_let_go_of_ends_its_processes():
    batches = loaded(Numbers(), range(1000), Loading(num_workers=2))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    gc.collect()
    assert multiprocessing.active_children() == []


def test_all_processes_can_be_ended_while_streams_are_held():
    held = [loaded(Numbers(), range(1000), Loading(num_workers=1)) for _ in range(2)]
    for batches in held:
        next(batches)
    end_loader_processes()
    assert multiprocessing.active_children() == []
    for batches in held:
        batches.close()  # as an interpreter that ends does; nothing more to do, and nothing to wait for


def test_a_killed_worker_is_told_by_words_that_are_understood():
    batches = loaded(Numbers(), range(1000), Loading(num_workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(RuntimeError) as error:
        list(batches)
    assert death_of_worker(error.value) == f"(process {worker.pid}) was killed by SIGKILL", (
        "gift_train/data/loader.py, _DEATH: torch tells it in other words now."
    )
    assert multiprocessing.active_children() == []


def test_other_errors_are_no_deaths():
    assert death_of_worker(RuntimeError("expected scalar type Float")) is None
    assert death_of_worker(ValueError("DataLoader worker (pid 1) is killed by signal: Killed. ")) is None


def test_a_batch_without_room_in_shared_memory_is_pickled(monkeypatch):
    def full(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    batch = [torch.arange(3), (torch.arange(2),)]
    assert _shared(batch) is batch
    assert all(tensor.is_shared() for tensor in (batch[0], batch[1][0]))
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    pickled = _shared([torch.arange(3)])
    assert torch.equal(pickle.loads(pickled.content)[0], torch.arange(3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_workers_that_have_just_been_started_ends_none(number):
    """A scheduler signals every process of a job, at any moment: until a worker knows to ignore it, it is held back."""
    for _ in range(5):
        batches = loaded(Numbers(), range(8), Loading(num_workers=2))
        started = threading.Thread(target=lambda: [os.kill(pid, number) for pid in new_children()])
        started.start()
        assert [int(batch[0]) for batch in batches] == list(range(8))
        started.join()


def new_children():
    """The numbers of both workers, as soon as they are there."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    end = time.monotonic() + 10
    while len(found := children.read_text().split()) < 2 and time.monotonic() < end:
        pass
    return map(int, found)


def test_a_fetch_that_the_main_process_broke_off_prints_no_traceback(capsys):
    for error in (ConnectionResetError("reset by peer"), EOFError(), BrokenPipeError()):
        _told_by_the_main_process(type(error), error, None)
    assert capsys.readouterr().err == ""
    _told_by_the_main_process(ValueError, ValueError("something else"), None)
    assert "ValueError: something else" in capsys.readouterr().err
