"""A workdir that an earlier version trained: it goes on with the same numbers.

`tests/fixtures/workdir` holds a run of twelve steps stopped after six (`run/`), its pictures, and
what that version had after the other six: `after.npz` (the whole state), `after.jsonl` (the numbers
logged), `predictions.jsonl`. Bits depend on the compiler and on the processor's instructions; where
either is another one, the numbers are compared within float32's accuracy.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
FIXTURE = ROOT / "tests/fixtures/workdir"


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("earlier") / "run"
    shutil.copytree(FIXTURE / "run", workdir)
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "VIMOE_FIXTURE_DATA": "tests/fixtures/workdir/data/data.jsonl"}
    command = [sys.executable, "-m", "vimoe_jax.main", f"--config={FIXTURE / 'config.py'}"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}"], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "resuming at step 6 of 12" in done.stderr
    return workdir


@pytest.fixture(scope="module")
def same(resumed):
    """Compares arrays: bits where the fixture was made on such a machine, else their values."""
    import jax

    made_on = json.loads((FIXTURE / "made_on.json").read_text())
    if made_on == {"jax": jax.__version__, "processor": processor()}:
        return lambda got, want, name: np.testing.assert_array_equal(got, want, err_msg=name)
    return lambda got, want, name: np.testing.assert_allclose(
        np.asarray(got, np.float64), want, rtol=2e-3, atol=1e-5, err_msg=name
    )


def processor():
    """The processor's vector instructions, which decide what XLA compiles."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return sorted(f for f in flags.split() if f.startswith(("avx", "amx", "fma", "sse")))


def read_state(path):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore(path.absolute())
    flat = {}

    def walk(names, node):
        if isinstance(node, dict | list | tuple):
            pairs = node.items() if isinstance(node, dict) else enumerate(node)
            for name, inner in pairs:
                walk([*names, str(name)], inner)
        elif node is not None:
            flat["/".join(names)] = np.asarray(node)

    walk([], state)
    return flat


def test_the_state_is_the_same(resumed, same):
    want = np.load(FIXTURE / "after.npz")
    got = read_state(resumed / "checkpoints/12/state")
    assert got.keys() == set(want.files)
    for name in want.files:
        same(got[name], want[name], name)


def test_the_numbers_logged_are_the_same(resumed, same):
    rows = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    want = [json.loads(line) for line in (FIXTURE / "after.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] > 6]
    assert len(rows) == len(want)
    for got, expected in zip(rows, want, strict=True):
        for name, value in expected.items():
            same(got[name], value, f"step {expected['step']}: {name}")


def test_the_answers_are_the_same(resumed):
    assert (resumed / "eval/test/predictions.jsonl").read_text(encoding="utf-8") == (
        FIXTURE / "predictions.jsonl"
    ).read_text(encoding="utf-8")
