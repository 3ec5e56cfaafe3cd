"""Which accelerator is a process's own, and which cores: decided from plain values, since no test machine has eight GPUs."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from gift_shared.errors import ConfigError
from gift_train.devices import Place, own_accelerator, require_own_accelerators, share_of_cores

MEET = """
import json, sys
from gift_shared.errors import ConfigError
from gift_train import devices, distributed
from gift_train.distributed import launch
told = json.loads(sys.argv[1])
def look_around(device):
    if "fault" in told:
        raise ConfigError(told["fault"])
    return devices.Place.from_plain(told)
launch.look_around = look_around
try:
    with distributed.init_distributed("cpu") as ranks:
        print(ranks.rank, ranks.num_cores, ranks.gather_object(ranks.rank))
except ConfigError as error:
    print(error, file=sys.stderr)
    raise SystemExit(2)
"""


def place(accelerator=None, *, host="node", cores=(0, 1), granted=None, granted_to=""):
    index = None if accelerator is None else 0
    return Place(host=host, accelerator=accelerator, index=index, cores=tuple(cores), granted=granted, granted_to=granted_to)


@pytest.mark.parametrize(
    ("local_rank", "num_visible", "index"),
    [
        *((rank, 8, rank) for rank in range(8)),  # all see all: torchrun, srun --gpus-per-node=8
        *((rank, 1, 0) for rank in range(8)),  # each sees its own: srun --gpus-per-task=1
        *((rank, 2, rank % 2) for rank in range(4)),  # each sees two of its own: srun --gpus-per-task=2
    ],
)
def test_a_process_takes_the_accelerator_of_its_number_or_the_only_one_it_sees(local_rank, num_visible, index):
    for device in ("auto", "cuda"):
        assert own_accelerator(device, num_visible, {"LOCAL_RANK": str(local_rank)}) == index
        assert own_accelerator(device, num_visible, {"SLURM_LOCALID": str(local_rank)}) == index


def test_the_launchers_number_goes_before_slurms():
    assert own_accelerator("auto", 8, {"LOCAL_RANK": "3", "SLURM_LOCALID": "0"}) == 3


def test_the_only_accelerator_needs_no_number():
    assert own_accelerator("cuda", 1, {}) == 0


def test_one_of_several_needs_a_number():
    with pytest.raises(ConfigError, match="finds 8 accelerators and not which is its own: the launcher must set LOCAL_RANK"):
        own_accelerator("auto", 8, {})


@pytest.mark.parametrize(("device", "num_visible"), [("cpu", 8), ("auto", 0)])
def test_the_cpu_is_taken_where_it_is_asked_for_or_all_there_is(device, num_visible):
    assert own_accelerator(device, num_visible, {}) is None


def test_an_accelerator_that_is_asked_for_and_not_there_is_told():
    with pytest.raises(ConfigError, match=r"finds no accelerator\. Give each process one, or --device cpu"):
        own_accelerator("cuda", 0, {"LOCAL_RANK": "0"})


def test_ranks_with_an_accelerator_each_or_none_at_all_may_begin():
    require_own_accelerators([place("GPU-a"), place("GPU-b"), place("GPU-c", host="other")])
    require_own_accelerators([place(), place()])


def test_two_processes_on_one_accelerator_are_refused():
    """Four processes and two accelerators, all visible: numbers 2 and 3 would take 0 and 1 again."""
    with pytest.raises(ConfigError, match="Processes 0 and 2 on node would compute on one accelerator, GPU-a: start as many"):
        require_own_accelerators([place("GPU-a"), place("GPU-b"), place("GPU-a"), place("GPU-b")])


def test_a_process_without_an_accelerator_beside_others_is_refused():
    with pytest.raises(ConfigError, match="Process 1 on other finds no accelerator, others of the run do"):
        require_own_accelerators([place("GPU-a"), place(host="other")])


@pytest.mark.parametrize(
    ("places", "shares"),
    [
        ([place(cores=range(16))], [16]),
        ([place(cores=range(16))] * 4, [4, 4, 4, 4]),  # torchrun binds nothing
        ([place(cores=range(8)), place(cores=range(8, 16))], [8, 8]),  # SLURM binds each task to its own
        ([place(cores=range(16)), place(cores=range(16), host="other")], [16, 16]),
        ([place(cores=range(64), granted=4, granted_to=str(task)) for task in range(2)], [4, 4]),  # it grants, and binds nothing
        ([place(cores=range(64), granted=16, granted_to="0")] * 4, [4, 4, 4, 4]),  # torchrun within one task of 16 cores
        ([place(cores=range(64), granted=32)] * 8, [4] * 8),  # only what the node gives is known
        ([place(cores=range(2))] * 8, [1] * 8),
        ([place(cores=range(3))] * 3, [1, 1, 1]),  # three thirds are one
    ],
)
def test_cores_are_shared_by_those_that_may_run_on_them(places, shares):
    assert [share_of_cores(places, rank) for rank in range(len(places))] == shares


def meet(*places):
    """((stdout, stderr), exit code) of two processes that are where they are told to be, and have no launcher but us."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MEET, json.dumps(one if isinstance(one, dict) else one.to_plain())],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, one in enumerate(places)
    ]  # fmt: skip
    return [(process.communicate(timeout=60), process.returncode) for process in started]


@pytest.mark.slow
def test_ranks_meet_and_know_their_share_of_the_cores():
    found = meet(place(cores=range(6)), place(cores=range(2)))
    assert [(out, code) for (out, _), code in found] == [("0 5 [0, 1]\n", 0), ("1 1 [0, 1]\n", 0)]


def test_ranks_that_would_share_an_accelerator_all_leave_and_one_tells_it():
    (first, first_code), (second, second_code) = meet(place("GPU-a"), place("GPU-a"))
    assert first_code == second_code == 2
    assert re.fullmatch("Processes 0 and 1 on node would compute on one accelerator, GPU-a: .*\n", first[1])
    assert second == ("", "")


@pytest.mark.slow
def test_a_rank_that_finds_no_accelerator_keeps_nobody_waiting():
    (first, first_code), (second, second_code) = meet(place("GPU-a"), {"fault": "it finds no accelerator."})
    assert first_code == second_code == 2
    assert (first[1], second) == ("Process 1 of 2: it finds no accelerator.\n", ("", ""))
