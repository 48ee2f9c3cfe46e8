"""Checkpoints in one process: the manifest, what is passed over, the lock."""

import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.faults.damage import example, read, shapes_of, write_two
from vimoe_jax.base.errors import UserError
from vimoe_jax.config.train import Checkpoint
from vimoe_jax.run import lock, manifest
from vimoe_jax.run.checkpoint import Checkpoints


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def states(folder):
    return write_two(folder)


def largest(checkpoint):
    files = [p for p in checkpoint.rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_the_manifest_names_every_file(folder, states):
    for step in states:
        checkpoint = folder / str(step)
        assert manifest.check(checkpoint)
        files = json.loads((checkpoint / manifest.NAME).read_text())["files"]
        present = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*")}
        present = {n for n in present if (checkpoint / n).is_file()}
        assert present - set(files) == {manifest.NAME, "commit_success.txt"}


def test_hosts_share_the_files(folder, states):
    file = largest(folder / "2")
    flip(file, 0)
    noticed = 0
    for part in range(3):
        try:
            manifest.check(folder / "2", part, 3)
        except manifest.Damaged as e:
            noticed += 1
            assert file.name in str(e)
    assert noticed == 1


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: flip(p, -1), "has changed since it was written"),
        (lambda p: os.truncate(p, p.stat().st_size - 1), "bytes instead of"),
        (lambda p: os.truncate(p, 0), "has 0 bytes instead of"),
        (lambda p: p.unlink(), "is missing"),
    ],
)
def test_a_damaged_file_is_named_and_the_one_before_is_used(folder, states, harm, message):
    file = largest(folder / "2")
    harm(file)
    step, said = read(folder, states)
    assert step == 1
    assert said.count("\n") == 1
    assert f"2: {file.relative_to(folder / '2')} " in said and message in said
    # The run can write this step again.
    assert (folder.parent / "checkpoints.unreadable/2").is_dir()
    checkpoints = Checkpoints(folder, Checkpoint())
    checkpoints.save(states[2], {"batches": 2})
    checkpoints.close()
    assert read(folder, states) == (2, "")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": {}, "crc32": 1}', "\0\0"])
def test_a_damaged_manifest_is_damage(folder, states, text):
    (folder / "2" / manifest.NAME).write_text(text)
    step, said = read(folder, states)
    assert step == 1 and "manifest.json is damaged" in said


def test_metrics_that_changed_are_damage(folder, states):
    files = [p for p in (folder / "2").rglob("*") if p.is_file() and b"val/loss" in p.read_bytes()]
    for path in files:
        path.write_text(path.read_text().replace("2.0", "0.5"))
    assert files
    assert read(folder, states)[0] == 1


def test_checkpoints_of_earlier_versions_have_no_manifest(folder, states):
    for step in states:
        (folder / str(step) / manifest.NAME).unlink()
    assert read(folder, states) == (2, "")


def test_checkpoints_of_earlier_versions_have_no_health(folder):
    state = example(3)
    old = {n: getattr(state, n) for n in ("step", "params", "frozen", "opt_state")}
    with ocp.CheckpointManager(folder) as manager:
        manager.save(
            3,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(old), data=ocp.args.JsonSave({"batches": 3})
            ),
        )
    checkpoints = Checkpoints(folder, Checkpoint())
    restored, data = checkpoints.restore(shapes_of(state))
    checkpoints.close()
    assert data == {"batches": 3}
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_no_readable_checkpoint_is_an_error(folder, states):
    for step in states:
        flip(largest(folder / str(step)), 0)
    with pytest.raises(UserError, match=r"no readable checkpoint: .*has changed"):
        read(folder, states)
    assert {p.name for p in folder.iterdir()} == {"1", "2"}  # nothing is set aside for nothing


def test_what_is_not_kept_goes_in_one_rename(folder):
    """A run that is killed while it deletes leaves no directory that looks like a checkpoint."""
    checkpoints = Checkpoints(folder, Checkpoint(keep_last=1, keep_best=0))
    for step in (1, 2):
        checkpoints.save(example(step), {"batches": step})
    checkpoints._manager.wait_until_finished()
    assert {p.name for p in folder.iterdir()} == {"2", "removed"}
    checkpoints.wait()
    assert {p.name for p in folder.iterdir()} == {"2"}
    (folder / "removed/1").mkdir(parents=True)
    (folder / "7.orbax-checkpoint-tmp/state").mkdir(parents=True)
    Checkpoints(folder, Checkpoint(), read_only=True).close()
    assert {p.name for p in folder.iterdir()} == {"2", "removed", "7.orbax-checkpoint-tmp"}
    Checkpoints(folder, Checkpoint()).close()
    assert {p.name for p in folder.iterdir()} == {"2"}


def test_the_best_outlives_the_process(folder):
    checkpoints = Checkpoints(folder, Checkpoint(keep_last=1, keep_best=1))
    for step, loss in ((1, 0.5), (2, 0.1)):
        checkpoints.save(example(step), {"batches": step}, val_loss=loss)
    checkpoints.close()
    checkpoints = Checkpoints(folder, Checkpoint(keep_last=1, keep_best=1))
    for step, loss in ((3, None), (4, 0.3), (5, None)):
        checkpoints.save(example(step), {"batches": step}, val_loss=loss)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5] and checkpoints.best_step() == 2
    checkpoints.close()
    assert Checkpoints(folder, Checkpoint(), read_only=True).best_step() == 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_in_another_dtype(folder, states, dtype):
    checkpoints = Checkpoints(folder, Checkpoint(), read_only=True)
    shapes = shapes_of(states[2]).all_params()
    shapes = {n: s.update(dtype=dtype) for n, s in shapes.items()}
    params = checkpoints.read_params(shapes, 2)
    for name, value in states[2].all_params().items():
        assert params[name].dtype == dtype
        np.testing.assert_array_equal(params[name], value.astype(dtype))


def test_evaluation_does_not_take_damaged_parameters(folder, states):
    checkpoints = Checkpoints(folder, Checkpoint(), read_only=True)
    assert checkpoints.best_step() == 1
    flip(largest(folder / "1"), 5)
    with pytest.raises(UserError, match=r"checkpoints/1: .*has changed"):
        checkpoints.read_params(shapes_of(states[1]).all_params())
    assert (folder / "1").is_dir()


HOLD = """
import sys, time
from pathlib import Path
from vimoe_jax.run.lock import only_run
with only_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.multiprocess
def test_one_run_at_a_time(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {holder.pid} on .*, since 2"),
            lock.only_run(tmp_path),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock.only_run(tmp_path):  # a dead process holds nothing
        held = json.loads((tmp_path / lock.NAME).read_text())
        assert held["process"] == os.getpid()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.only_run(tmp_path / "run"):
        pass
    assert "this file system has no locks" in capsys.readouterr().err
