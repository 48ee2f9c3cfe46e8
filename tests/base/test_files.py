"""Files and folders written whole or not at all, and the one module that writes them."""

import ast
import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from vimoe_jax.base import files
from vimoe_jax.base.errors import UserError

PACKAGE = Path(files.__file__).parent.parent


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def run(code, *args, **options):
    """A process that runs `code`, with this package's path."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)


def test_what_is_written(tmp_path):
    files.write_text(tmp_path / "text", "màu đỏ\n")
    files.write_bytes(tmp_path / "bytes", b"\0\xff")
    files.write_json(tmp_path / "object.json", {"đỏ": [1, "\ud800"]})
    files.write_text(tmp_path / "safe", "on the disk", fsync=True)
    assert (tmp_path / "text").read_bytes() == "màu đỏ\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\0\xff"
    text = (tmp_path / "object.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"đỏ": [1, "\ud800"]} and "đỏ" in text and text.endswith("}\n")
    assert names(tmp_path) == ["bytes", "object.json", "safe", "text"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError("not whole")])
@pytest.mark.parametrize("old", ["old", None])
def test_an_interrupted_write_changes_nothing(tmp_path, error, old):
    path = tmp_path / "report.json"
    if old:
        path.write_text(old)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        with files.replacing(path) as f:
            f.write("half")
            f.flush()
            assert [n for n in names(tmp_path) if not n.startswith(".")] == (
                [path.name] * bool(old)
            )
            assert not list(tmp_path.glob("*.json")) or path.read_text() == old
            raise error
    assert names(tmp_path) == ([path.name] if old else [])
    assert not old or path.read_text() == old


def test_a_value_that_is_no_json_changes_nothing(tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text() == "1\n" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("when", ["write", "close", "fsync", "replace"])
def test_a_full_disk_is_one_line_with_the_files_name(tmp_path, monkeypatch, when):
    path = tmp_path / "predictions.jsonl"
    path.write_text("old")

    def full(*args):
        named = [a for a in args[:1] if isinstance(a, Path)]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)

    class Full:
        """A file whose buffer does not reach the disk."""

        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()
            full()

        def write(self, text):
            return full() if when == "write" else self._file.write(text)

    if when in ("write", "close"):
        really = open
        monkeypatch.setattr(files, "open", lambda *a, **k: Full(really(*a, **k)), raising=False)
    else:
        monkeypatch.setattr(os, when, full)
    with pytest.raises(UserError) as e:
        files.write_text(path, "new", fsync=True)
    assert str(e.value) == f"{path}: cannot write: No space left on device"
    assert names(tmp_path) == ["predictions.jsonl"] and path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_device_is_written_to_and_stays_one():
    with pytest.raises(UserError, match=r"^/dev/full: cannot write: No space left on device$"):
        files.write_text("/dev/full", "x")
    files.write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_standard_output_is_written_to():
    code = "from vimoe_jax.base import files; files.write_json('/dev/stdout', [1])"
    assert json.loads(run(code).communicate()[0]) == [1]


def test_names_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("folder", "Is a directory"), ("none/a", "No such file"), ("file/a", "Not a directory"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{tmp_path / name}: cannot write: {reason}"):
            files.write_text(tmp_path / name, "x")
    for name in ("file", "file/a", "file/a/b"):
        with pytest.raises(
            UserError, match=f"^{tmp_path / name}: (cannot write: (Not|File)|exists)"
        ):
            with files.new_folder(tmp_path / name):
                pass
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "old"


def test_a_relative_path_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda p: files.write_text(p, "x"), lambda p: files.write_bytes(p, b"x")):
        with pytest.raises(UserError, match=r"^none/a\.txt: cannot write: No such file"):
            write("none/a.txt")
    with files.replacing("a.txt") as f:
        f.write("here")
        monkeypatch.chdir("/")
    assert (tmp_path / "a.txt").read_text() == "here"


def test_errors_about_other_files_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match="another"):
        with files.replacing(tmp_path / "a") as f:
            f.write(Path(tmp_path / "another").read_text())
    with pytest.raises(OSError, match="not of the file system"):
        with files.replacing(tmp_path / "a"):
            raise OSError("not of the file system")
    assert names(tmp_path) == []


def test_permissions(tmp_path):
    path = tmp_path / "private"
    path.touch(mode=0o600)
    before = os.umask(0o022)
    try:
        files.write_text(path, "x")
        files.write_text(tmp_path / "public", "x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "public")]
    assert modes == [0o600, 0o644]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/real").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/real")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere/real").read_text() == "new"
    assert names(tmp_path / "elsewhere") == ["real"]


def test_a_name_as_long_as_a_name_may_be(tmp_path):
    for name in ("x" * 255, "đ" * 127):
        files.write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


def test_a_killed_process_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    (tmp_path / ".config.json.mine.tmp").write_text("not ours")
    code = """
        import os, signal, sys
        from vimoe_jax.base import files
        with files.replacing(sys.argv[1]) as f:
            f.write("half")
            f.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    process = run(code, path)
    assert process.wait() == -signal.SIGKILL
    assert path.read_text() == "old" and len(names(tmp_path)) == 3
    assert list(tmp_path.glob("*.json")) == [path]
    files.write_text(tmp_path / "another.json", "x")
    assert len(names(tmp_path)) == 4
    files.write_text(path, "new")
    assert names(tmp_path) == [".config.json.mine.tmp", "another.json", "config.json"]


def test_what_is_in_use_is_no_leftover(tmp_path):
    path = tmp_path / "a"
    with files.replacing(path) as first:
        files.write_text(path, "second")
        assert path.read_text() == "second"
        first.write("first")
    assert path.read_text() == "first" and names(tmp_path) == ["a"]


def test_two_processes_and_their_threads_write_one_file(tmp_path):
    path, go = tmp_path / "a.json", tmp_path / "go"
    code = """
        import pathlib, sys, threading, time
        from vimoe_jax.base import files
        path, go, mine = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
        def work(n):
            for i in range(100):
                files.write_json(path, [f"{mine}{n}"] * 2000)
        print("ready", flush=True)
        while not go.exists():
            time.sleep(0.01)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print("done")
    """
    processes = [run(code, path, go, name) for name in "ab"]
    assert [p.stdout.readline() for p in processes] == ["ready\n", "ready\n"]
    go.touch()
    seen = set()
    while any(p.poll() is None for p in processes):
        if path.exists():
            value = json.loads(path.read_text())
            assert len(value) == 2000 and len(set(value)) == 1
            seen.add(value[0][0])
    assert [p.stdout.read() for p in processes] == ["done\n", "done\n"]
    assert seen == {"a", "b"} and names(tmp_path) == ["a.json", "go"]


def test_threads_write_files_of_one_name_at_once(tmp_path):
    barrier, errors = threading.Barrier(4), []

    def work(n):
        try:
            with files.replacing(tmp_path / "a") as f:
                f.write(str(n))
                barrier.wait(10)  # all have their hidden files now
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors and names(tmp_path) == ["a"] and (tmp_path / "a").read_text() in "0123"


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "above" / "out"
    with files.new_folder(out) as folder:
        files.write_text(folder / "a", "x")
        (folder / "below").mkdir()
        assert not out.exists() and folder.parent == out.parent and folder.name.startswith(".")
    assert names(out) == ["a", "below"] and names(out.parent) == ["out"]
    with pytest.raises(UserError, match=f"^{out}: exists and is not an empty folder$"):
        with files.new_folder(out):
            pass
    (tmp_path / "empty").mkdir()
    with files.new_folder(tmp_path / "empty") as folder:
        files.write_text(folder / "a", "x")
    assert names(tmp_path / "empty") == ["a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_folder_vanishes(tmp_path, error):
    with pytest.raises(error):
        with files.new_folder(tmp_path / "out") as folder:
            files.write_text(folder / "a", "x")
            raise error
    assert names(tmp_path) == []


def test_errors_in_a_folder_name_its_last_place(tmp_path):
    for fails in (
        lambda folder: files.write_text(folder / "none" / "a", "x"),
        lambda folder: open(folder / "none" / "a", "w"),
    ):
        with pytest.raises(UserError, match=f"^{tmp_path}/out/none/a: cannot write: No such file"):
            with files.new_folder(tmp_path / "out") as folder:
                fails(folder)
    with pytest.raises(UserError, match=f"^{tmp_path}/out: cannot write: Directory not empty"):
        with files.new_folder(tmp_path / "out") as folder:
            (tmp_path / "out").mkdir()
            (tmp_path / "out/of-somebody-else").touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["of-somebody-else"]


def test_what_killed_folders_left(tmp_path):
    code = """
        import os, signal, sys
        from vimoe_jax.base import files
        with files.new_folder(sys.argv[1]) as folder:
            files.write_text(folder / "half", "x")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(code, tmp_path / "out").wait() == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    with files.new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == []


# Who writes files in another way, and why.
REASONS = {
    "run/log.py": "metrics.jsonl is appended to, line by line",
    "run/lock.py": "the lock's file is never replaced: its inode is the lock",
    "datasets/preparing/pictures.py": "the journal is appended to, and survives a kill",
    "datasets/preparing/builder.py": "beside TFDS's files, in a folder that appears whole",
    "datasets/prepared.py": "TFDS's folders, under names that TFDS takes for unfinished",
    "train/watchdog.py": "a process that hangs: half a list of stacks is better than none",
}


MOVES = ("replace", "rename", "renames", "copyfile", "copy")
TEMPORARY = ("NamedTemporaryFile", "mkstemp", "mkdtemp")


def writes(tree):
    """Lines that write a file or give it its name, by what the code looks like."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        of = getattr(getattr(node.func, "value", None), "id", "")
        given = [*node.args, *(k.value for k in node.keywords)]
        texts = [str(a.value) for a in given if isinstance(a, ast.Constant)]
        opens = name in ("open", "fdopen") and any(re.fullmatch(r"[wax+bt]{1,3}", t) for t in texts)
        method = isinstance(node.func, ast.Attribute) and of != "files"
        own = name in ("write_text", "write_bytes") and method
        # Arrays have a `replace` too, of what is computed there and then.
        path = len(node.args) == len(given) == 1 and isinstance(given[0], ast.Name | ast.Attribute)
        moves = (name in MOVES and of in ("os", "shutil")) or (name in MOVES[:2] and path)
        if opens or own or moves or name in TEMPORARY:
            yield node.lineno, name


def test_every_whole_file_is_written_here():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if lines := list(writes(ast.parse(path.read_text(encoding="utf-8")))):
            found[name] = lines
    found.pop("base/files.py")
    assert set(found) - set(REASONS) == set(), found
    assert set(REASONS) - set(found) == set(), "a reason that nothing needs any more"


@pytest.mark.parametrize(
    "code",
    ["open(p, 'w')", "open(p, mode='wb')", "p.open('a')", "p.write_text(x)", "os.replace(a, b)",
     "a.replace(b)", "a.rename(b)", "Path(p).write_bytes(x)", "shutil.copyfile(a, b)"],
)  # fmt: skip
def test_other_ways_of_writing_are_noticed(code):
    assert list(writes(ast.parse(code)))
    for fine in (
        "open(p)", "open(p, 'rb')", "open(p, encoding='utf-8')", "text.replace('a', b)",
        "files.write_text(p, x)", "write_json(p, x)", "state.replace(params=x)",
        "array.replace(array * 2)",
    ):  # fmt: skip
        assert not list(writes(ast.parse(fine))), fine
