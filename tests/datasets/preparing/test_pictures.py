"""Pictures are decoded once, and what was found survives a kill."""

import json
import os

import pytest
from PIL import Image

from tests.datasets import folders
from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.preparing import pictures


@pytest.fixture
def paths(tmp_path):
    made = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(made):
        folders.picture(path, i)
    return made


def checker(tmp_path):
    return pictures.Checker(tmp_path / "made" / "journal.jsonl", progress=False)


def test_verdicts(paths, tmp_path):
    whole = paths[0].read_bytes()
    paths[1].write_bytes(whole)
    paths[2].write_bytes(whole[: len(whole) // 2])
    paths[3].write_bytes(b"GIF89a, or so it says")
    paths[4].write_bytes(b"")
    paths[5].unlink()
    verdicts = pictures.Checker(progress=False)(paths)
    assert list(verdicts) == paths
    assert verdicts[paths[0]] == verdicts[paths[1]] and not verdicts[paths[0]].error
    assert len(verdicts[paths[0]].digest) == 64
    assert all("unreadable picture" in verdicts[p].error for p in paths[2:5])
    assert verdicts[paths[5]] == pictures.Verdict("", "No such file or directory")


def test_what_the_journal_knows_is_not_decoded_again(paths, tmp_path):
    first = checker(tmp_path)
    verdicts = first(paths[:4])
    assert first.decoded == 4
    second = checker(tmp_path)
    assert second(paths).keys() == set(paths) and second.decoded == 2
    third = checker(tmp_path)
    assert {p: third(paths)[p] for p in paths[:4]} == verdicts and third.decoded == 0


def test_changed_pictures_are_decoded_again(paths, tmp_path):
    checker(tmp_path)(paths)
    folders.picture(paths[0], 99)
    os.utime(paths[0], ns=(1, 1))
    os.utime(paths[1], ns=(1, 1))
    again = checker(tmp_path)
    again(paths)
    assert again.decoded == 2


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_torn_journal_loses_its_last_lines_only(paths, tmp_path, cut):
    checker(tmp_path)(paths)
    journal = tmp_path / "made" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-cut])
    again = checker(tmp_path)
    again(paths)
    assert again.decoded == whole[-cut:].count(b"\n")
    assert journal.read_bytes() == whole


def test_lines_of_something_else_are_passed_over(paths, tmp_path):
    journal = tmp_path / "made" / "journal.jsonl"
    journal.parent.mkdir()
    journal.write_bytes(b'{"a": 1}\n[1, 2]\nnull\n7\n[[], 1, 2, "", ""]\n\xff\n')
    again = checker(tmp_path)
    assert again(paths) and again.decoded == 6
    rows = journal.read_bytes().splitlines()[6:]
    assert [json.loads(row)[0] for row in rows] == [str(p) for p in paths]


def test_a_journal_that_cannot_be_written_is_named(paths, tmp_path, monkeypatch):
    blocked = pictures.Checker(paths[0] / "journal.jsonl", progress=False)
    with pytest.raises(UserError, match=r"0\.png"):
        blocked(paths)
    full = open("/dev/full", "w", encoding="utf-8")
    monkeypatch.setattr(pictures, "open", lambda *args, **kwargs: full, raising=False)
    with pytest.raises(UserError, match=r"journal\.jsonl: No space left"):
        checker(tmp_path)(paths)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_any_mode_can_be_read(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (3, 3)).save(path)
    assert not pictures.check(path).error
