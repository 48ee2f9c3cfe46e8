"""`benchmarks.train_step`'s variants on GPUs: compiled at once, timed one after another.

Each is a process of its own. First all compile and leave their programs in JAX's cache; then all
take theirs from it, and have the GPUs in turn: compiling needs memory that a process keeps, and
would disturb what is timed. (Where that memory is to spare, `timed` alone is enough, and takes two
minutes less.) Those of few GPUs take theirs beside each other.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from benchmarks.train_step import ROOT, Variant

_HIDE = "--xla_gpu_enable_latency_hiding_scheduler=true"
_COMBINE = (
    f"{_HIDE} --xla_gpu_all_gather_combine_threshold_bytes=134217728 "
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728 "
    "--xla_gpu_all_reduce_combine_threshold_bytes=268435456 "
    "--xla_gpu_enable_all_gather_combine_by_dim=false "
    "--xla_gpu_enable_reduce_scatter_combine_by_dim=false"
)
# Environments to compare, by name.
FLAGS: dict[str, dict[str, str]] = {
    "plain": {},
    "hide": {"XLA_FLAGS": _HIDE},
    "combine": {"XLA_FLAGS": _COMBINE},
    "few": {"XLA_FLAGS": _COMBINE, "NCCL_MAX_CTAS": "8"},
    # Other ways for what GPUs send: copies without NCCL, registered buffers, more at the same time.
    "memcpy": {"XLA_FLAGS": f"{_COMBINE} --xla_gpu_use_memcpy_local_p2p=true"},
    "registered": {"XLA_FLAGS": f"{_COMBINE} --xla_gpu_enable_nccl_user_buffers=true"},
    "symmetric": {
        "XLA_FLAGS": f"{_COMBINE} --xla_gpu_experimental_enable_nccl_symmetric_buffers=true"
    },
    "more": {"XLA_FLAGS": f"{_COMBINE} --xla_gpu_experimental_parallel_collective_overlap_limit=4"},
    # Ragged all-to-all through NCCL in place of XLA's own kernel.
    "send": {
        "XLA_FLAGS": f"{_COMBINE} --xla_gpu_allow_ragged_all_to_all_nccl_send_recv_fallback=true "
        "--xla_gpu_unsupported_use_ragged_all_to_all_one_shot_kernel=false"
    },
}
TUNED = ("plain", "hide", "combine", "few")


@dataclasses.dataclass(frozen=True)
class Run:
    """A variant under a set of `FLAGS`."""

    variant: Variant
    flags: str = "hide"

    def name(self) -> str:
        """Short, and different for different runs."""
        return f"{self.variant.name()} {self.flags}"


def environment(count: int, first: int, flags: str = "plain") -> dict[str, str]:
    """The environment of a process that sees `count` GPUs from number `first` on, round about.

    `flags` take the place of the caller's XLA_FLAGS.
    """
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | FLAGS[flags]
    env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        shared = "--xla_force_host_platform_device_count"
        return env | {"XLA_FLAGS": f"{shared}={count}"}  # GPU flags mean nothing there
    names = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    seen = [names[(first + i) % len(names)] for i in range(count)]
    return env | {"CUDA_VISIBLE_DEVICES": ",".join(seen)}


def start(v: Variant, env: dict[str, str]) -> tuple[subprocess.Popen, IO[str]]:
    """A process that measures a variant, and the file in which its record will stand."""
    out = tempfile.TemporaryFile("w+")
    command = ["-m", "benchmarks.train_step", "--one", json.dumps(dataclasses.asdict(v))]
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=out, env=env), out


def finish(name: str, child: subprocess.Popen, out: IO[str], until: float) -> dict[str, Any]:
    """A process's record, or why there is none."""
    try:
        code = child.wait(max(0.0, until - time.monotonic()))
        error = f"exit code {code}: see above" if code else None
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        error = "timed out"
    out.seek(0)
    lines = out.read().splitlines()
    out.close()
    return {"error": error, "name": name} if error else {**json.loads(lines[-1]), "name": name}


def compile_all(runs: Sequence[Run], timeout: float) -> list[dict[str, Any]]:
    """Compiles at once what is not in the cache yet; their records."""
    # The same program under another environment of NCCL's is the same program.
    programs = {(r.variant, FLAGS[r.flags].get("XLA_FLAGS")): r for r in runs}
    until = time.monotonic() + timeout

    def compiled(number: int, r: Run) -> dict[str, Any]:
        v = dataclasses.replace(r.variant, only_compile=True)
        # Nothing is timed: memory that XLA tries kernels with goes back at once.
        allocator = {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}
        # Those of one GPU apart from each other. Others all see the same GPUs that they will be
        # timed on: to the cache, programs for others might be others.
        env = environment(v.devices(), 0 if v.mesh else number, r.flags) | allocator
        return finish(r.name(), *start(v, env), until)

    with ThreadPoolExecutor(max(2, (os.cpu_count() or 1) // 2)) as threads:
        return list(threads.map(compiled, range(len(programs)), programs.values()))


def timed(
    runs: Sequence[Run],
    gpus: int,
    ready: float,
    each: float,
    keep: Callable[[dict], None],
    before: Callable[[], None] = lambda: None,
) -> None:
    """Times runs in turn, once each has its program.

    Args:
      runs: in this order.
      gpus: how many may be used, as CUDA_VISIBLE_DEVICES names them.
      ready: seconds until the last one must have compiled, or taken its program from the cache.
      each: seconds for a turn.
      keep: gets each record.
      before: called when all are ready; the first turn begins when it returns.
    """
    with tempfile.TemporaryDirectory() as folder:
        children = {}
        for turn in packed(runs, gpus):
            for first, r in turn:
                mark = f"{folder}/{len(children)}"
                v = dataclasses.replace(r.variant, turn=mark)
                children[r] = mark, *start(v, environment(v.devices(), first, r.flags))
        until = time.monotonic() + ready
        while time.monotonic() < until and not all(
            Path(f"{mark}.here").exists() or child.poll() is not None
            for mark, child, _ in children.values()
        ):
            time.sleep(0.1)
        before()
        for turn in packed(runs, gpus):
            for _, r in turn:
                Path(f"{children[r][0]}.go").touch()
            until = time.monotonic() + each
            for _, r in turn:
                _, child, out = children[r]
                keep(finish(r.name(), child, out, until))


def packed(runs: Sequence[Run], gpus: int) -> Iterator[list[tuple[int, Run]]]:
    """Neighbours that have room beside each other, each with the number of its first GPU."""
    turn: list[tuple[int, Run]] = []
    used = 0
    for r in runs:
        if turn and used + r.variant.devices() > gpus:
            yield turn
            turn, used = [], 0
        turn.append((used, r))
        used += r.variant.devices()
    if turn:
        yield turn
