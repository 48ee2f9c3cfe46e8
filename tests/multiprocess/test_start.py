"""How processes find each other, and what they say when they do not."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from vimoe_jax.base import cli
from vimoe_jax.base.errors import UserError
from vimoe_jax.parallel import distributed
from vimoe_jax.parallel.distributed import Options, Place, find_place
from vimoe_jax.train.guard import Interrupt

FLAGS = Options(coordinator="host:1234", num_processes=4, process_id=3)
ALONE = Options()
COMMAND = cli.Command("several", Options, lambda _: 0, "")
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "[::1]:77", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0",
}  # fmt: skip


def test_flags_come_before_variables_and_those_before_the_platform():
    slurm = {"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node[1-2]"}
    assert find_place(FLAGS, VARIABLES | slurm) == Place("host:1234", 4, 3)
    assert find_place(ALONE, VARIABLES | slurm) == Place("[::1]:77", 2, 0)
    assert find_place(ALONE, slurm) == "Slurm"
    assert find_place(ALONE, {"OMPI_COMM_WORLD_SIZE": "2"}) == "Open MPI"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_NTASKS": "8"},  # inside an allocation, but not started by srun
        {"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_process_that_is_alone(env):
    assert find_place(ALONE, env) is None
    assert find_place(Options(coordinator="host:1234", num_processes=1, process_id=0), env) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coordinator": "host"}, "--coordinator: must be HOST:PORT, not 'host'"),
        ({"coordinator": "host:99999"}, "--coordinator: must be HOST:PORT"),
        ({"coordinator": "host:²"}, "--coordinator: must be HOST:PORT"),
        ({"num_processes": "two"}, "--num_processes: must be a whole number"),
        ({"num_processes": "0"}, "--num_processes: must be at least 1"),
        ({"process_id": "-1"}, "--process_id: must be a whole number"),
        ({"process_id": "4"}, "--process_id: 4, but --num_processes = 4 counts from 0"),
        ({"process_id": None}, "--process_id: needed beside --coordinator"),
        ({"coordinator": None}, "--coordinator: needed beside --num_processes"),
        ({"initialization_timeout": "0"}, "--initialization_timeout: must be at least 1"),
    ],
)
def test_options_that_do_not_fit(change, message):
    words = {"coordinator": "host:1234", "num_processes": "4", "process_id": "3"} | change
    with pytest.raises(UserError, match=message):
        find_place(COMMAND.parse([f"--{n}={v}" for n, v in words.items() if v is not None]), {})


def test_variables_that_do_not_fit():
    with pytest.raises(UserError, match="JAX_PROCESS_ID: needed beside JAX_COORDINATOR_ADDRESS"):
        find_place(ALONE, VARIABLES | {"JAX_PROCESS_ID": ""})


def test_one_process_needs_nobody():
    distributed.start(ALONE, {})
    assert not distributed.several() and distributed.is_lead()
    distributed.wait("nothing")
    with distributed.lead_first("nothing"):
        pass
    assert not Interrupt().agreed()


def test_a_second_signal_ends_the_job_but_an_echo_of_the_first_does_not(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.agreed() and str(interrupt) == "SIGTERM"
        now[0] += 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_is_one_line():
    process = call(then="raise KeyboardInterrupt")
    assert_one_line(process, 130, "interrupted; the last checkpoint is whole")


def test_any_process_answers_one_call_late():
    any_process = distributed.AnyProcess()
    assert [any_process(bit) for bit in (False, True, False, True)] == [False, False, True, False]


def call(*options, then='distributed.wait("test")'):
    # The second variable is one that JAX has set in this process.
    left_out = ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL")
    env = {k: v for k, v in os.environ.items() if k not in left_out} | {"JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-c", _JOIN + f"    {then}", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=env, stdin=pipe, stderr=pipe, text=True)


_JOIN = """
import sys
from vimoe_jax.base import cli
from vimoe_jax.parallel import distributed
command = cli.Command("several", distributed.Options, lambda _: 0, "")
with distributed.exit_as_one():
    distributed.start(command.parse(sys.argv[1:]))
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def assert_one_line(process, code, text, seconds=60):
    stderr = process.communicate(timeout=seconds)[1]
    assert process.returncode == code, stderr
    assert len(stderr.strip().splitlines()) == 1 and text in stderr, stderr


@pytest.mark.multiprocess
def test_nobody_at_the_coordinators_address():
    place = f"--coordinator=127.0.0.1:{free_port()}"
    options = ("--num_processes=2", "--process_id=1", "--initialization_timeout=2")
    assert_one_line(call(place, *options), 2, "no answer from 127.0.0.1:")


@pytest.mark.multiprocess
def test_a_port_that_is_taken():
    with socket.socket(socket.AF_INET6) as s:
        s.bind(("", 0))
        s.listen()
        place = f"--coordinator=127.0.0.1:{s.getsockname()[1]}"
        assert_one_line(call(place, "--num_processes=2", "--process_id=0"), 2, "already in use")


@pytest.mark.multiprocess
def test_counts_that_differ():
    place = f"--coordinator=127.0.0.1:{free_port()}"
    limit = "--initialization_timeout=20"
    first = call(place, "--num_processes=2", "--process_id=0", limit)
    second = call(place, "--num_processes=3", "--process_id=1", limit)
    assert_one_line(second, 2, "--num_processes: 3 here, but 2 for process 0")
    first.kill()
    first.communicate()


@pytest.mark.multiprocess
def test_one_that_never_comes():
    place = f"--coordinator=127.0.0.1:{free_port()}"
    alone = call(place, "--num_processes=2", "--process_id=0", "--initialization_timeout=3")
    assert_one_line(alone, 2, "2 processes did not come together")


@pytest.mark.multiprocess
def test_the_coordinator_dies():
    place = f"--coordinator=127.0.0.1:{free_port()}"
    met = 'distributed.wait("a"); print("met", file=sys.stderr, flush=True)'
    first = call(place, "--num_processes=2", "--process_id=0", then=f"{met}; sys.stdin.read()")
    twice = '[distributed.wait(what) for what in "ab"]'
    second = call(place, "--num_processes=2", "--process_id=1", then=twice)
    assert first.stderr.readline() == "met\n"
    first.kill()
    first.communicate()
    assert_one_line(second, distributed.LOST, "another process of this run is gone")


@pytest.mark.multiprocess
def test_what_the_first_finds_is_known_to_all():
    place = f"--coordinator=127.0.0.1:{free_port()}"
    key = "tiles gated (8192, 1024) (8, 1024, 2, 3072) bfloat16"
    find = 'lambda: {"rows": 128, "asked": sys.argv[-1]}'
    ask = f'print(distributed.agree_on_first("{key}", {find}), file=sys.stderr)'
    both = [call(place, "--num_processes=2", f"--process_id={i}", then=ask) for i in range(2)]
    for process in both:
        assert_one_line(process, 0, "{'rows': 128, 'asked': '--process_id=0'}")


def test_who_is_alone_finds_by_itself():
    assert distributed.agree_on_first("anything", lambda: 3) == 3
