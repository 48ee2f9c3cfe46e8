"""Several processes as one run: how they find each other, who writes, and what ends them together.

Each process drives its own devices and all run the same program. Which process this is comes from
options, from plain environment variables, or from the platform (Slurm, Open MPI, Cloud TPU, GKE);
without any of these a process is alone, and nothing here costs anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import itertools
import json
import os
import re
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from vimoe_jax.base import cli, progress, values
from vimoe_jax.base.errors import UserError, exit_on_user_error
from vimoe_jax.base.schema import at_least

# Exit code of a process whose peers are gone: EX_TEMPFAIL, the same command again continues.
LOST = 75

_HEARTBEAT = 30  # seconds without a sign of life until a process counts as dead
_PATIENCE = 24 * 3600  # seconds that processes wait for one that works alone, such as data's writer
_LOSS = re.compile(
    r"gloo|nccl|coordination service|heartbeat|barrier|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED"
    r"|connection (closed|reset|refused)|socket closed|task is set to ERROR",
    re.IGNORECASE,
)
_calls = itertools.count()


def _address(text: str) -> str:
    if not re.fullmatch(r"\S+:[0-9]{1,5}", text) or not 0 < int(text.rpartition(":")[2]) < 65536:
        raise ValueError("must be HOST:PORT")
    return text


_VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": _address,
    "JAX_NUM_PROCESSES": values.whole,
    "JAX_PROCESS_ID": values.whole,
}
_SEVERAL = (
    "Several processes as one run (docs/launch.md); Slurm, Cloud TPU and GKE need none of these"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """The options of a command that may run as several processes."""

    coordinator: str | None = cli.option(
        _address, "HOST:PORT", "where process 0 listens; or the variable JAX_COORDINATOR_ADDRESS",
        default=None, heading=_SEVERAL,
    )  # fmt: skip
    num_processes: int | None = cli.option(
        values.whole, "N", "how many there are; or JAX_NUM_PROCESSES", at_least(1),
        default=None, heading=_SEVERAL,
    )  # fmt: skip
    process_id: int | None = cli.option(
        values.whole, "I", "which one this is, from 0; or JAX_PROCESS_ID",
        default=None, heading=_SEVERAL,
    )  # fmt: skip
    initialization_timeout: int = cli.option(
        values.whole, "SECONDS", "to wait for the others at the start", at_least(1),
        default=300, heading=_SEVERAL,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands among the others.

    Attributes:
      coordinator: HOST:PORT that process 0 listens on.
      num_processes: how many there are.
      process_id: which one this is, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def find_place(options: Options, env: Mapping[str, str]) -> Place | str | None:
    """What options and environment say about this process.

    Args:
      options: the command's.
      env: environment variables.

    Returns:
      A place; or the name of a platform that JAX reads itself; or None for a process that is alone.

    Raises:
      UserError: some of the options or variables are missing, or do not fit together.
    """
    found: tuple[Any, ...] = (options.coordinator, options.num_processes, options.process_id)
    if any(value is not None for value in found):
        return _place([f"--{f.name}" for f in dataclasses.fields(Place)], found)
    found = tuple(
        values.parse(name, parser, env[name]) if env.get(name) else None
        for name, parser in _VARIABLES.items()
    )
    if any(value is not None for value in found):
        return _place(list(_VARIABLES), found)
    return _platform(env)


def _place(names: list[str], found: tuple[Any, ...]) -> Place | None:
    """The place that coordinator, count and number give, with what each is called."""
    given = [name for name, value in zip(names, found, strict=True) if value is not None]
    for name in names:
        if name not in given:
            raise UserError(f"{name}: needed beside {given[0]}")
    place = Place(*found)
    if place.process_id >= place.num_processes:
        raise UserError(
            f"{names[2]}: {place.process_id}, but {names[1]} = {place.num_processes} counts from 0"
        )
    return place if place.num_processes > 1 else None


def _platform(env: Mapping[str, str], devices: Path = Path("/dev")) -> str | None:
    """The platform whose variables or devices JAX reads by itself."""
    if int(env.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_NODELIST" in env:
        return "Slurm"
    if int(env.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "Open MPI"
    has_tpu = (devices / "accel0").exists() or (devices / "vfio/0").exists()
    wants_tpu = "tpu" in (env.get("JAX_PLATFORMS") or "tpu").split(",")
    if has_tpu and wants_tpu and _has_module("libtpu"):
        return "Cloud TPU"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if not _has_module("kubernetes"):
            raise UserError("jax[k8s]: needed to find the other pods of an indexed Job or JobSet")
        return "Kubernetes"
    return None


def _has_module(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def start(options: Options, env: Mapping[str, str] | None = None) -> None:
    """Joins the other processes, if there are any; before anything asks JAX for devices.

    Args:
      options: the command's.
      env: environment variables; this process's if not given.

    Raises:
      UserError: no coordinator, or counts that do not fit together.
    """
    env = os.environ if env is None else env
    timeout, place = options.initialization_timeout, find_place(options, env)
    if place is None or several():
        return
    if isinstance(place, Place):
        _reach(place, timeout)
    # Its log would bury our one line under the lost process's symptoms.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM over; `guard.Interrupt` and `AnyProcess` agree on SIGINT as well.
    jax.config.update("jax_enable_preemption_service", False)
    named = dataclasses.asdict(place) if isinstance(place, Place) else {}
    if named:
        named["coordinator_address"] = named.pop("coordinator")
    try:
        with _losses_told():
            jax.distributed.initialize(
                **named,
                initialization_timeout=timeout,
                heartbeat_timeout_seconds=_HEARTBEAT,
                shutdown_timeout_seconds=_PATIENCE,
            )
    except Exception as e:
        if isinstance(place, str):
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"{place}: the processes did not find each other: {reason}") from None
        raise UserError(
            f"--num_processes: {place.num_processes} processes did not come together at "
            f"{place.coordinator} within {timeout} s; does each have its own --process_id and all "
            "the same --num_processes?"
        ) from None
    if isinstance(place, Place):
        _check_counts(place)
    if not is_lead():
        progress.silence()


def _reach(place: Place, timeout: int) -> None:
    """Finds out what JAX would end the process for: a port that is taken, or no answer."""
    host, _, port = place.coordinator.rpartition(":")
    if place.process_id == 0:
        try:
            with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.bind(("", int(port)))
        except OSError as e:
            raise UserError(f"--coordinator: port {port} of this machine: {e.strerror}") from None
        return
    end, reason = time.monotonic() + timeout, ""
    while time.monotonic() < end:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as e:
            reason = e.strerror or str(e)
            time.sleep(min(0.5, max(0.0, end - time.monotonic())))
    raise UserError(
        f"--coordinator: no answer from {place.coordinator} within {timeout} s: {reason}"
    )


def _check_counts(place: Place) -> None:
    client = _client()
    if place.process_id == 0:
        client.key_value_set("vimoe/num_processes", str(place.num_processes))
    theirs = int(client.blocking_key_value_get("vimoe/num_processes", 60_000))
    if theirs != place.num_processes:
        raise UserError(f"--num_processes: {place.num_processes} here, but {theirs} for process 0")


@contextlib.contextmanager
def _losses_told() -> Iterator[None]:
    """Makes JAX's client end this process with one line when others are lost.

    By itself it aborts with a page of C++ frames, whatever Python does. It takes a callback, but
    `initialize` has no argument for it; and some versions cannot hand the status over to Python, so
    that the call ends in `std::terminate`, whose handler is then the place to speak.
    """
    _jax = importlib.import_module("jaxlib._jax")  # compiled, without types

    make = _jax.get_distributed_runtime_client

    def with_callback(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **kwargs, missed_heartbeat_callback=lambda *_: _lost())

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libstdc++.so.6")
        library._ZSt13set_terminatePFvvE(_terminated)
    with mock.patch.object(_jax, "get_distributed_runtime_client", with_callback):
        yield


def _lost() -> None:
    _say(
        "error: another process of this run is gone or cannot be reached; the last checkpoint is "
        "whole, and the same command resumes from it"
    )
    _leave(LOST)


_terminated = ctypes.CFUNCTYPE(None)(_lost)


def _say(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def _leave(code: int) -> None:
    """Ends this process at once: JAX's own end waits for the others, who may wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def exit_as_one() -> Iterator[None]:
    """`exit_on_user_error` for a command that may run as several processes.

    A process that fails ends at once, so that the others notice; one whose peers are gone says so
    in one line and ends with code `LOST`.
    """
    try:
        with exit_on_user_error():
            try:
                yield
            except Exception as e:
                if several() and _is_loss(e):
                    _lost()
                raise
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            _say("interrupted; the last checkpoint is whole, and the same command goes on from it")
            _leave(130)
        if not several() or (isinstance(e, SystemExit) and not e.code):
            raise
        if isinstance(e, SystemExit):
            _leave(e.code if isinstance(e.code, int) else 1)
        traceback.print_exc()
        _leave(1)


def _is_loss(error: BaseException | None) -> bool:
    """Whether a lost peer is at the bottom of this error, however it was wrapped."""
    while error is not None:
        if not isinstance(error, UserError) and _LOSS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _client() -> Any:
    """JAX's connection to the coordinator; None for a process that is alone."""
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed

    return distributed.global_state.client


def several() -> bool:
    """Whether this run has several processes."""
    return _client() is not None


def is_lead() -> bool:
    """Whether this is the process that writes what one process writes: metrics, reports, …."""
    if not several():
        return True
    import jax

    return jax.process_index() == 0


def wait(what: str) -> None:
    """Returns when every process has come here; waits without devices, for as long as it takes.

    `what` is what an error says was waited for.
    """
    client = _client()
    if client is not None:
        client.wait_at_barrier(f"vimoe/{next(_calls)}/{what}", _PATIENCE * 1000)


@contextlib.contextmanager
def lead_first(what: str) -> Iterator[None]:
    """The first process goes through alone, then all others: what it wrote, they find."""
    if not is_lead():
        wait(what)
    yield
    if is_lead():
        wait(what)


class AnyProcess:
    """One bit of each process, and whether any has set it, without waiting for the devices.

    The answer is that of `lag` calls ago: by then the devices have it, while they still have the
    work of the calls since. Every process gets the same answers at the same calls.
    """

    def __init__(self, lag: int = 1):
        import jax
        import jax.numpy as jnp
        import numpy as np
        from jax.sharding import NamedSharding, PartitionSpec

        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
        self._lag, self._answers = lag, deque()
        self._each = NamedSharding(mesh, PartitionSpec("all"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, mine: bool) -> bool:
        """Hands in this process's bit; returns the answer of `lag` calls ago."""
        import jax
        import numpy as np

        bits = np.full(jax.local_device_count(), mine)
        with jax.transfer_guard_host_to_device("allow"):
            there = jax.make_array_from_process_local_data(self._each, bits, (jax.device_count(),))
        self._answers.append(self._any(there))
        if len(self._answers) <= self._lag:
            return False
        return bool(jax.device_get(self._answers.popleft()))


def agree_on_first(key: str, find: Callable[[], Any], timeout: float = 900) -> Any:
    """What process 0 finds, for all: a measurement may differ between processes.

    Args:
      key: names what is found; used once per run.
      find: gives something that JSON can hold; called by process 0 alone.
      timeout: seconds that the others wait.
    """
    client = _client()
    if client is None:
        return find()
    import jax

    if jax.process_index() == 0:
        client.key_value_set(f"vimoe/found/{key}", json.dumps(find()))
    return json.loads(client.blocking_key_value_get(f"vimoe/found/{key}", int(1000 * timeout)))
