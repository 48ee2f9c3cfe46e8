"""ViScenes on disk: prepared through TFDS, read as a `Source`."""

import os
import pickle
import shutil
import subprocess
import sys
import time

import pytest

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets import viscenes
from vimoe_jax.datasets.records import TASKS
from vimoe_jax.datasets.viscenes import builder

SIZES = {"train": 24, "validation": 8, "test": 8, "test_compositional": 8}


def shards(data_dir):
    return {p.name: p.read_bytes() for p in sorted(data_dir.rglob("*.array_record-*"))}


def version(data_dir):
    return data_dir / "viscenes" / "tiny" / str(builder.ViScenes.VERSION)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    viscenes.prepare(data_dir, "tiny", progress=False)
    return data_dir


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def test_splits_have_the_configured_sizes_and_unique_ids(prepared):
    for split, size in SIZES.items():
        records = list(viscenes.open_split(prepared, split, "tiny"))
        assert len(records) == size == len({r.id for r in records})
        asked = [q for r in records for q in r.qa]
        assert len({q.id for q in asked}) == len(asked)
        assert {q.task for q in asked} <= set(TASKS)
        for record in records:
            captions = [q for q in record.qa if q.task == "caption"]
            assert len(captions) == 1 and len(captions[0].answers) == 5
            assert captions[0].question == captions[0].type == ""
            assert all(q.question and q.type and len(q.answers) == 1 for q in record.qa[1:])


def test_records_are_those_drawn_in_order(prepared):
    source = viscenes.open_split(prepared, "test", "tiny")
    for i in range(len(source)):
        want = builder.example(0, "test", i)
        assert source[i].id == want["id"]
        assert source[i].pictures[0] == want["image"].getvalue()
        assert [(q.question, "\n".join(q.answers)) for q in source[i].qa] == [
            (row["question"], row["answers"]) for row in want["qa"]
        ]


def test_prepared_twice_the_files_are_the_same(prepared, tmp_path):
    viscenes.prepare(tmp_path, "tiny", progress=False)
    assert len(shards(tmp_path)) == len(SIZES)
    assert shards(tmp_path) == shards(prepared)


def test_prepared_by_another_process_the_files_are_the_same(prepared, tmp_path):
    code = "import sys, vimoe_jax.datasets.viscenes as v; v.prepare(sys.argv[1], 'tiny')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    assert shards(tmp_path) == shards(prepared)


def test_prepared_data_are_left_alone(prepared, monkeypatch):
    monkeypatch.setattr(builder, "example", None)
    viscenes.prepare(prepared, "tiny", progress=False)


def test_a_source_can_be_sent_to_another_process(prepared):
    source = viscenes.open_split(prepared, "validation", "tiny")
    first = source[0]
    assert len(pickle.dumps(source)) < 1000
    assert pickle.loads(pickle.dumps(source))[0] == first


def test_progress_shows_rate_and_time_left(tmp_path, capfd):
    viscenes.prepare(tmp_path, "tiny")
    out, err = capfd.readouterr()
    assert not out
    assert "48/48" in err and "/s" in err and "left" in err


def test_what_is_not_there_is_named(prepared, tmp_path):
    with pytest.raises(UserError, match=r"not prepared.*--variant=tiny"):
        viscenes.open_split(tmp_path, "train", "tiny")
    with pytest.raises(UserError, match=r"'dev'.*train, validation, test, test_compositional"):
        viscenes.open_split(prepared, "dev", "tiny")
    with pytest.raises(UserError, match=r"'huge'.*default, tiny"):
        viscenes.open_split(prepared, "train", "huge")


@pytest.mark.parametrize("keep", [0.5, None])
def test_a_damaged_shard_is_named(copy, keep):
    shard = next(copy.rglob("viscenes-train.array_record-*"))
    whole = shard.read_bytes()
    shard.unlink()
    if keep is not None:
        shard.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match=r"split train is damaged"):
        viscenes.open_split(copy, "train", "tiny")
    viscenes.open_split(copy, "test", "tiny")


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("write() failed: No space left on")],
)
def test_a_run_cut_short_leaves_nothing_and_can_be_repeated(prepared, tmp_path, monkeypatch, error):
    draw = builder.example

    def fail(seed, split, index):
        if (split, index) == ("test", 3):
            raise error
        return draw(seed, split, index)

    monkeypatch.setattr(builder, "example", fail)
    with pytest.raises(UserError, match="No space left"):
        viscenes.prepare(tmp_path, "tiny", progress=False)
    with pytest.raises(UserError, match="not prepared"):
        viscenes.open_split(tmp_path, "train", "tiny")
    monkeypatch.setattr(builder, "example", draw)
    viscenes.prepare(tmp_path, "tiny", progress=False)
    assert shards(tmp_path) == shards(prepared)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        viscenes.prepare(tmp_path / "file", "tiny", progress=False)


def test_another_process_may_be_first(prepared, tmp_path, monkeypatch):
    draw = builder.example

    def overtaken(seed, split, index):
        if not version(tmp_path).exists():
            shutil.copytree(version(prepared), version(tmp_path))
        return draw(seed, split, index)

    monkeypatch.setattr(builder, "example", overtaken)
    viscenes.prepare(tmp_path, "tiny", progress=False)
    assert shards(tmp_path) == shards(prepared)
    assert len(viscenes.open_split(tmp_path, "train", "tiny")) == SIZES["train"]


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    folder = version(tmp_path)
    old, young = (folder.parent / f"incomplete.{x}_{folder.name}" for x in ("OLDOLD", "YOUNG1"))
    old.mkdir(parents=True)
    young.mkdir()
    os.utime(old, (time.time() - 9000,) * 2)
    viscenes.prepare(tmp_path, "tiny", progress=False)
    assert not old.exists() and young.exists()


_FOREIGN_USE = """
import socket, sys

def refuse(*args, **kwargs):
    raise OSError("no network here")

socket.socket.connect = socket.getaddrinfo = refuse
import vimoe_jax.datasets.viscenes
assert "tensorflow_datasets" not in sys.modules and "PIL" not in sys.modules
import tensorflow_datasets as tfds
import vimoe_jax.datasets.viscenes.builder

assert tfds.builder_cls("viscenes").__name__ == "ViScenes"
source = tfds.builder("viscenes/tiny", data_dir=sys.argv[1]).as_data_source(
    split="train", decoders={"image": tfds.decode.SkipDecoding()}
)
row = source[0]
assert len(source) == 24 and row["image"].startswith(b"\\x89PNG")
assert set(row) == {"id", "image", "qa"}
assert set(row["qa"]) == {"id", "task", "type", "question", "answers"}
assert "tensorflow" not in sys.modules and "matplotlib" not in sys.modules
"""


def test_tfds_alone_opens_it_without_tensorflow_network_or_warnings(prepared):
    done = subprocess.run(
        [sys.executable, "-c", _FOREIGN_USE, str(prepared)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
