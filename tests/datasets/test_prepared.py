"""Prepared datasets on disk: written whole, read as a `Source`."""

import fcntl
import os
import pickle
import shutil
import time

import pytest

from tests.datasets import folders
from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets import prepared
from vimoe_jax.datasets.preparing import job
from vimoe_jax.datasets.preparing.builder import ViVQA
from vimoe_jax.datasets.records import questions


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    source = folders.vivqa(tmp_path_factory.mktemp("published") / "vivqa")
    data_dir = tmp_path_factory.mktemp("data")
    job.prepare(job.Choice("vivqa", source, data_dir))
    job.prepare(job.Choice("vivqa", source, data_dir, annotations_only=True))
    return data_dir


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def version(data_dir, variant="default"):
    return data_dir / "vivqa" / variant / str(ViVQA.VERSION)


def test_records_come_in_the_order_of_publication(made):
    source = prepared.open_split(made, "vivqa", "train")
    assert len(source) == 4 and [len(r.qa) for r in source] == [2, 1, 1, 1]
    assert source[0].pictures[0].startswith(b"\xff\xd8")
    first = source[0].qa[0]
    assert (first.question, first.answers, first.type) == ("xe màu gì", ("đỏ",), "color")
    assert first.explanations == ()
    with pytest.raises(IndexError):
        source[4]
    test = prepared.open_split(made, "vivqa", "test")
    assert [q.answers for r in test for q in r.qa][-1] == ("vàng", "cam")


def test_splits_are_listed(made):
    assert prepared.splits(made, "vivqa") == ["train", "test"]


def test_annotations_alone_are_records_without_pictures(made):
    source = prepared.open_split(made, "vivqa", "train", "annotations")
    assert len(source) == 6 - 1 and {r.pictures for r in source} == {()}


def test_questions_are_read_without_the_pictures(copy):
    source = prepared.open_split(copy, "vivqa", "train")
    want = [qa for record in source for qa in record.qa]
    for shard in version(copy).glob("*.array_record*"):
        shard.unlink()
    assert list(questions(source)) == want


def test_a_damaged_questions_file_is_named(copy):
    path = version(copy) / "questions-train.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    source = prepared.open_split(copy, "vivqa", "train")
    with pytest.raises(UserError, match=r"questions-train\.jsonl:5: damaged"):
        list(questions(source))
    path.unlink()
    assert len(list(questions(source))) == 5  # from the records


def test_a_source_can_be_sent_to_another_process(made):
    source = prepared.open_split(made, "vivqa", "test")
    first = source[0]
    assert len(pickle.dumps(source)) < 1000
    assert pickle.loads(pickle.dumps(source))[0] == first


def test_what_is_not_there_is_named(made, tmp_path):
    command = r"not prepared; run python -m vimoe_jax\.data\.prepare --dataset=vivqa --source=DIR "
    with pytest.raises(UserError, match=command + "--data_dir"):
        prepared.open_split(tmp_path, "vivqa", "train")
    with pytest.raises(UserError, match=command + "--annotations_only --data_dir"):
        prepared.open_split(tmp_path, "vivqa", "train", "annotations")
    with pytest.raises(UserError, match=r"evjvqa/vi/1\.0\.0: not .* --source=DIR --data_dir"):
        prepared.open_split(tmp_path, "evjvqa", "train")
    with pytest.raises(UserError, match=r"--variant=all --annotations_only --data_dir"):
        prepared.open_split(tmp_path, "evjvqa", "train", "all_annotations")
    with pytest.raises(UserError, match=r"vivqa has no split 'dev'; it has train, test"):
        prepared.open_split(made, "vivqa", "dev")
    with pytest.raises(UserError, match=r"no variant 'big'; it has default, annotations"):
        prepared.open_split(made, "vivqa", "train", "big")
    with pytest.raises(UserError, match=r"'vivq'; there are vivqa"):
        prepared.splits(made, "vivq")


@pytest.mark.parametrize("keep", [0.5, None])
@pytest.mark.parametrize("name", ["vivqa-train.array_record-00000-of-00001", "dataset_info.json"])
def test_damaged_files_are_named_and_made_anew(copy, made, name, keep):
    damaged = version(copy) / name
    whole = damaged.read_bytes()
    damaged.unlink()
    if keep is not None:
        damaged.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match="damaged"):
        prepared.open_split(copy, "vivqa", "train")
    assert prepared.fingerprint(copy, "vivqa") is None


def test_the_fingerprint_is_that_of_the_builder(made, tmp_path):
    assert len(prepared.fingerprint(made, "vivqa")) == 64
    assert prepared.fingerprint(tmp_path, "vivqa") is None


def test_leftovers_are_removed_unless_somebody_works_on_them(tmp_path):
    where = version(tmp_path)
    names = ("incomplete.locked_dead_1.0.0", "incomplete.locked_busy_1.0.0", "incomplete.OLD_1.0.0")
    dead, busy, old = (where.parent / name for name in names)
    young = where.parent / "incomplete.YOUNG1_1.0.0"
    for path in (dead, busy, old, young):
        path.mkdir(parents=True)
    os.utime(old, (time.time() - 9000,) * 2)
    handle = os.open(busy, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    prepared.remove_unfinished(tmp_path, "vivqa")
    assert [p.exists() for p in (dead, busy, old, young)] == [False, True, False, True]
    os.close(handle)
    prepared.remove_unfinished(tmp_path, "vivqa")
    assert not busy.exists()


def test_the_old_dataset_stays_until_the_new_one_is_whole(copy, made):
    def fail(builder):
        raise UserError("no")

    before = folders.contents(copy)
    with pytest.raises(UserError):
        prepared.write(copy, "vivqa", prime=fail, replace=True)
    assert folders.contents(copy) == before
    prepared.write(copy, "vivqa", prime=fail)  # it is there: nothing to do
