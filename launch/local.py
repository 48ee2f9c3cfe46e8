"""Runs one training run as several processes of this machine, and starts them again when one dies.

    python launch/local.py --num_processes=2 [--name=NAME] [--workdir_root=runs]
        [--devices=K | --gpus=K] [--max_restarts=3] [--module=vimoe_jax.main] [--dry-run]
        -- --config=FILE …

What follows `--` goes to the module. Each process gets --coordinator, --num_processes and
--process_id on this machine; --devices=K gives each K simulated CPU devices, --gpus=K the next K
GPUs (of CUDA_VISIBLE_DEVICES, if that is set). Their output lies in WORKDIR/logs/process-I.log; the
first one's is shown here as well.

SIGTERM and Ctrl-C go to all processes, which save and stop. A process that dies takes the others
with it, and all are started again from the last checkpoint, except after exit code 2: that is a
mistake in the configuration.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO

_GRACE = 60.0  # seconds that processes have to notice that one is gone


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    argv = list(argv)
    rest = argv[argv.index("--") + 1 :] if "--" in argv else []
    options = _parser().parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    counts = (options.num_processes - 1, options.devices, options.gpus, options.max_restarts)
    try:
        if min(counts) < 0:
            raise ValueError("counts must be positive")
        places = _places(options.num_processes, options.devices, options.gpus)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    workdir = Path(options.workdir_root) / options.name
    given = [word.partition("=")[2] for word in rest if word.startswith("--workdir=")]
    if given:
        workdir = Path(given[-1])
    else:
        rest = [*rest, f"--workdir={workdir}"]
    base = [sys.executable, "-m", options.module, *rest]
    if options.dry_run:
        for place, command in zip(places, _commands(base, len(places), "PORT"), strict=True):
            variables = [f"{name}={shlex.quote(value)} " for name, value in place.items()]
            print("".join(variables) + shlex.join(command))
        return 0
    return _Job(base, places, workdir / "logs").run(options.max_restarts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--name", default="local")
    parser.add_argument("--workdir_root", default="runs")
    parser.add_argument("--devices", type=int, default=0)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--max_restarts", type=int, default=3)
    parser.add_argument("--module", default="vimoe_jax.main")
    parser.add_argument("--dry-run", action="store_true")
    return parser


def _places(count: int, devices: int, gpus: int) -> list[dict[str, str]]:
    """Each process's environment variables: which devices are its own."""
    if devices and gpus:
        raise ValueError("--devices simulates devices of a CPU: give it or --gpus, not both")
    if devices:
        flag = f"--xla_force_host_platform_device_count={devices}"
        return [{"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}] * count
    if not gpus:
        return [{}] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    have = visible.split(",") if visible else [str(i) for i in range(count * gpus)]
    if len(have) < count * gpus:
        raise ValueError(f"--gpus: {count * gpus} are needed, CUDA_VISIBLE_DEVICES={visible}")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(have[i * gpus :][:gpus])} for i in range(count)]


def _commands(base: list[str], count: int, port: int | str) -> list[list[str]]:
    """One command a process."""
    shared = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    return [[*base, *shared, f"--process_id={i}"] for i in range(count)]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class _Job:
    """The processes of one run, from attempt to attempt."""

    def __init__(self, base: list[str], places: list[dict[str, str]], logs: Path):
        self._base, self._places, self._logs = base, places, logs
        self._processes: list[subprocess.Popen] = []
        self._signals: list[int] = []

    def run(self, max_restarts: int) -> int:
        """Until the run has ended, was stopped, or has failed too often; its exit code."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        for attempt in range(max_restarts + 1):
            code = self._attempt()
            if code in (0, 2) or self._signals:
                return code
            for i, process in enumerate(self._processes):
                if process.returncode:
                    ended = f"launch: process {i} ended with {process.returncode}"
                    print(ended, file=sys.stderr, flush=True)
            if attempt < max_restarts:
                time.sleep(min(2**attempt, 60))  # what is wrong may need time to pass
                print(f"launch: start {attempt + 2}", file=sys.stderr, flush=True)
            if self._signals:
                return code
        return code

    def _forward(self, number: int, _: object) -> None:
        self._signals.append(number)
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def _attempt(self) -> int:
        """Starts all processes; returns 2 if one ended so, else the first code that is not 0."""
        self._processes, logs = [], []
        commands = _commands(self._base, len(self._places), _free_port())
        for i, (place, command) in enumerate(zip(self._places, commands, strict=True)):
            env = os.environ | place
            if flags := os.environ.get("XLA_FLAGS"):
                env["XLA_FLAGS"] = f"{flags} {place.get('XLA_FLAGS', '')}"
            log = open(self._logs / f"process-{i}.log", "ab")
            logs.append(log)
            # A session of their own: Ctrl-C comes to them from here, once.
            process = subprocess.Popen(
                command,
                env=env,
                stdout=subprocess.PIPE if i == 0 else log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._processes.append(process)
            if self._signals:
                process.send_signal(self._signals[-1])
        shown = threading.Thread(
            target=_show, args=(self._processes[0].stdout, logs[0]), daemon=True
        )
        shown.start()
        code = self._wait()
        shown.join()
        for log in logs:
            log.close()
        return code

    def _wait(self) -> int:
        """Waits for all; after a failure, only for a while."""
        deadline = float("inf")
        while running := [p for p in self._processes if p.poll() is None]:
            if deadline == float("inf") and any(p.returncode for p in self._processes):
                deadline = time.monotonic() + _GRACE
            if time.monotonic() > deadline:
                for process in running:
                    process.kill()
            time.sleep(0.1)
        codes = [p.returncode for p in self._processes if p.returncode]
        return 2 if 2 in codes else next(iter(codes), 0)


def _show(output: IO[bytes], log: BinaryIO) -> None:
    """Copies a process's output to its log and to stdout."""
    for line in iter(output.readline, b""):
        log.write(line)
        log.flush()
        sys.stdout.buffer.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
