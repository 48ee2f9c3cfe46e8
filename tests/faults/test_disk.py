"""Full and read-only disks, on small file systems of their own."""

import subprocess

import pytest

from tests.faults.damage import example, read, shapes_of
from vimoe_jax.base.errors import UserError
from vimoe_jax.config.train import Checkpoint
from vimoe_jax.run import manifest
from vimoe_jax.run.checkpoint import Checkpoints
from vimoe_jax.run.lock import only_run


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MB, for tests that may change its options."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=False)


def remount(disk, options):
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def fill(disk, leave=0):
    """Writes a file until the disk is full but for some bytes."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as f:
        try:
            while f.write(b"x" * 4096):
                pass
        except OSError:
            pass
    if leave:
        with open(filler, "r+b") as f:
            f.truncate(filler.stat().st_size - leave)
    return filler


def save(checkpoints, step, states):
    states[step] = example(step)
    checkpoints.save(states[step], {"batches": step})
    checkpoints.wait()


# Pages of 4 KiB: none for the directory, some of the arrays' files, all but the last files.
@pytest.mark.parametrize("pages", [0, 1, 3, 6, 9, 12, 15, 18])
def test_full_during_a_save(disk, pages):
    states = {}
    checkpoints = Checkpoints(disk / "checkpoints", Checkpoint())
    save(checkpoints, 1, states)
    save(checkpoints, 2, states)
    filler = fill(disk, pages * 4096)
    with pytest.raises(UserError, match=r"disk full|No space left"):
        for step in range(3, 20):  # those that fit push out the oldest
            save(checkpoints, step, states)
    whole = sorted(int(p.name) for p in (disk / "checkpoints").iterdir() if p.name.isdigit())
    assert len(whole) >= 2
    for kept in whole:
        assert manifest.check(disk / "checkpoints" / str(kept))
    filler.unlink()
    states.setdefault(2, states[1])
    step, said = read(disk / "checkpoints", states)
    assert step == whole[-1] and "unreadable" not in said


def test_full_when_the_manifest_is_written(disk, monkeypatch):
    states = {}
    checkpoints = Checkpoints(disk / "checkpoints", Checkpoint())
    save(checkpoints, 1, states)
    save(checkpoints, 2, states)
    write, fillers = manifest.write, []

    def late(folder):
        fillers.append(fill(disk))
        write(folder)

    monkeypatch.setattr(manifest, "write", late)
    with pytest.raises(UserError, match=r"disk full|No space left"):
        save(checkpoints, 3, states)
    monkeypatch.undo()
    assert not (disk / "checkpoints/3").exists()
    fillers[0].unlink()
    assert read(disk / "checkpoints", states)[0] == 2
    again = Checkpoints(disk / "checkpoints", Checkpoint())
    save(again, 3, states)
    again.close()
    assert read(disk / "checkpoints", states)[0] == 3


def test_a_read_only_disk_is_read_and_not_written(disk):
    states = {}
    checkpoints = Checkpoints(disk / "checkpoints", Checkpoint())
    save(checkpoints, 1, states)
    save(checkpoints, 2, states)
    remount(disk, "ro")
    with pytest.raises(UserError, match=r"Read-only file system|not written"):
        save(checkpoints, 3, states)
    reader = Checkpoints(disk / "checkpoints", Checkpoint(), read_only=True)
    restored, data = reader.restore(shapes_of(states[2]))
    assert int(restored.step) == 2 and data == {"batches": 2}
    reader.close()
    with pytest.raises(OSError, match="Read-only"), only_run(disk):
        pass
