"""A hung step ends the process, with all stacks; a slow first step, or a pause, does not."""

import subprocess
import sys
import time

import pytest

from vimoe_jax.train import watchdog
from vimoe_jax.train.watchdog import Watchdog

SCRIPT = """
import sys, threading, time
from pathlib import Path
from vimoe_jax.train import watchdog

def hung_step():
    {hang}

dog = watchdog.Watchdog(0.4, Path({path!r}))
with dog:
    dog.beat()
    hung_step()
"""


def hang(path, how):
    script = SCRIPT.format(hang=how, path=str(path))
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - start < 30
    return done


def test_a_step_that_sleeps_ends_the_process(tmp_path):
    path = tmp_path / "hang.txt"
    done = hang(path, "time.sleep(100)")
    assert done.returncode == watchdog.EXIT_CODE
    for text in (done.stderr, path.read_text()):
        assert "hung_step" in text and "_watch" in text, "not all threads' stacks"
    last = done.stderr.splitlines()[-1]
    assert "config.train.hang_seconds = 0.4" in last and str(path) in last


def test_where_python_itself_is_held_faulthandler_ends_it(tmp_path):
    """A C call that keeps Python's lock: the watching thread never runs again."""
    how = "watchdog._GRACE = 0.5; time.sleep(0.3); import ctypes; ctypes.PyDLL(None).sleep(100)"
    done = hang(tmp_path / "hang.txt", how)
    assert done.returncode == watchdog.EXIT_CODE
    assert "hung_step" in done.stderr


def test_a_full_disk_does_not_hide_the_stacks(tmp_path):
    done = hang(tmp_path / "no/such/folder/hang.txt", "time.sleep(100)")
    assert done.returncode == watchdog.EXIT_CODE
    assert "hung_step" in done.stderr and "No such file" in done.stderr.splitlines()[-1]


@pytest.fixture
def ended(monkeypatch):
    """Instead of ending this process, notes that it would have been ended."""
    calls = []
    monkeypatch.setattr(Watchdog, "_exit", lambda self: calls.append(time.monotonic()))
    return calls


def test_beats_and_pauses_keep_it_quiet(tmp_path, ended):
    with Watchdog(0.5, tmp_path / "hang.txt") as dog:
        for _ in range(4):
            time.sleep(0.15)
            dog.beat()
        with dog.paused():
            time.sleep(0.9)
        time.sleep(0.1)
    assert not ended


def test_the_first_step_has_longer(tmp_path, ended):
    with Watchdog(0.2, tmp_path / "hang.txt") as dog:
        time.sleep(0.6)
        assert not ended
        dog.beat()
        time.sleep(0.6)
        assert ended


def test_zero_seconds_watch_nothing(tmp_path, ended):
    with Watchdog(0, tmp_path / "hang.txt") as dog:
        dog.beat()
        time.sleep(0.2)
    assert not ended and not list(tmp_path.iterdir())
