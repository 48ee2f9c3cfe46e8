"""Several real processes on loopback: the same run as one, stopped, killed, restarted."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests/tiny.py"
STEPS = 12
# A key bias has no gradient but rounding, which Adam would blow up to full steps.
CALM = "--config.optim.eps=1e-4"
SCORED = ["--config.eval.at_end=True", "--config.data.test_splits=('test',)"]

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def env(viscenes_dir, tmp_path_factory):
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL")}
    return clean | {
        "VIMOE_TEST_DATA": str(viscenes_dir),
        "JAX_PLATFORMS": "cpu",
        # A restart compiles nothing again.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # All compile the same, at the same time: quick code is not worth it here.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }


def command(workdir, *more):
    main = [sys.executable, "-m", "vimoe_jax.main", f"--config={TINY}", f"--workdir={workdir}"]
    return [*main, CALM, *more]


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def start(env):
    """Starts all processes of a run, each with its output in a file; leaves none behind."""
    started = []

    def start(count, workdir, *more):
        shared = [f"--coordinator=127.0.0.1:{port()}", f"--num_processes={count}", *more]
        for i in range(count):
            out = open(workdir.parent / f"out-{i}", "w+")
            line = command(workdir, *shared, f"--process_id={i}")
            started.append(subprocess.Popen(line, env=env, stdout=out, stderr=subprocess.STDOUT))
        return started[-count:]

    yield start
    for process in started:
        process.kill()


def finish(processes, workdir, seconds=400):
    """Exit codes and outputs."""
    codes = [p.wait(seconds) for p in processes]
    return codes, [(workdir.parent / f"out-{i}").read_text() for i in range(len(processes))]


def rows(workdir):
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]


def saved(workdir):
    """Steps of whole checkpoints."""
    return [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()]


def wait_for(condition, process, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, "it ended, or waited too long"
        time.sleep(0.01)


def losses(workdir):
    names = ("train/loss", "train/aux_loss", "train/grad_norm", "val/loss")
    return {(row["step"], n): row[n] for row in rows(workdir) for n in names if n in row}


def parameters(workdir):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        path = (workdir / "checkpoints" / str(STEPS) / "state").absolute()
        tree = reader.metadata(path).item_metadata.tree
        # Written by several processes: where the arrays lay there does not exist here.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(path, ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {n: np.asarray(v) for n, v in state["params"].items()}


def scores(workdir):
    return json.loads((workdir / "eval/test/metrics.json").read_text())


def assert_same_run(one, several):
    left, right = losses(one), losses(several)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert right[key] == pytest.approx(value, rel=1e-6, abs=1e-6), key
    left, right = parameters(one), parameters(several)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(right[name], value, atol=1e-5, rtol=0, err_msg=name)


def assert_same_scores(one, several):
    assert scores(one) == scores(several)
    answers = [(w / "eval/test/predictions.jsonl").read_text() for w in (one, several)]
    assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def one(env, tmp_path_factory):
    """The run of one process."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    done = subprocess.run(command(workdir, *SCORED), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_signal_to_one_stops_all_at_the_same_step(one, start, tmp_path):
    workdir = tmp_path / "run"
    processes = start(4, workdir)
    wait_for(lambda: len(rows(workdir)) >= 4, processes[0])
    processes[2].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes, workdir)
    assert codes == [0] * 4, outputs
    step = max(saved(workdir))
    assert 4 <= step < STEPS
    assert f"saving step {step}" in outputs[0] and "to resume: " in outputs[0]
    assert not any("step " in out or "Traceback" in out for out in outputs[1:])
    # On with half as many.
    processes = start(2, workdir, *SCORED)
    codes, outputs = finish(processes, workdir)
    assert codes == [0, 0], outputs
    assert f"resuming at step {step} of {STEPS}" in outputs[0]
    assert_same_run(one, workdir)
    assert_same_scores(one, workdir)


def test_a_killed_process_ends_the_others_and_the_launcher_starts_all_again(one, env, tmp_path):
    workdir = tmp_path / "run"
    line = [
        sys.executable, str(ROOT / "launch/local.py"), "--num_processes=2", "--devices=1", "--",
        f"--config={TINY}", f"--workdir={workdir}", CALM,
    ]  # fmt: skip
    launcher = subprocess.Popen(
        line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(lambda: saved(workdir), launcher)
    (victim,) = [
        p for p in psutil.Process(launcher.pid).children() if "--process_id=1" in p.cmdline()
    ]
    victim.kill()
    output = launcher.communicate(timeout=400)[0]
    assert launcher.returncode == 0, output
    lost = [line for line in output.splitlines() if line.startswith("error: another process")]
    assert len(lost) == 1 and "Traceback" not in output
    assert "launch: process 1 ended with -9" in output
    assert "resuming at step" in output
    assert_same_run(one, workdir)
    assert (workdir / "logs/process-1.log").exists()
