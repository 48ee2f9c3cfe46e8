"""From published files to a prepared dataset, cut short anywhere."""

import functools
import json
import subprocess
import sys
import time

import pytest

from tests.datasets import folders
from vimoe_jax.base.errors import UserError
from vimoe_jax.data.lengths import suggest_lengths
from vimoe_jax.datasets import prepared
from vimoe_jax.datasets.preparing import builder as builders
from vimoe_jax.datasets.preparing import job
from vimoe_jax.datasets.preparing.job import Choice
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece


@pytest.fixture
def source(tmp_path):
    return folders.vivqa(tmp_path / "vivqa")


@pytest.fixture
def choice(source, tmp_path):
    return Choice("vivqa", source, tmp_path / "data")


def ids(choice, split="train"):
    opened = prepared.open_split(choice.data_dir, choice.dataset, split, choice.config)
    return [record.id for record in opened]


def counts(left_out):
    return {reason: left["count"] for reason, left in left_out.items()}


def times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_the_report(choice, source):
    (source / "images" / f"COCO_train2014_{15:012}.jpg").write_bytes(b"\xff\xd8\xff half")
    facts = job.prepare(choice)
    assert facts == json.loads((choice.folder / "report.json").read_text("utf-8"))
    train, test = facts["splits"]["train"], facts["splits"]["test"]
    assert facts["records"] == train["pictures"] + test["pictures"] == 3 + 3
    assert train["annotations"] == 10 and train["questions"] == 4
    assert train["types"] == {"color": 1, "location": 1, "number": 1, "object": 1}
    assert counts(train["left_out"]) == {
        "empty question": 1, "missing image": 1, "unreadable image": 1, "duplicate": 1,
        "conflicting duplicates": 2,
    }  # fmt: skip
    assert train["left_out"]["missing image"]["examples"][0]["where"] == "train.csv:11"
    assert test["contradictions"]["count"] == 1 and test["left_out"] == {}
    # đỏ of đỏ; biển; vàng or cam.
    assert test["answers"] == {
        "references": 4, "distinct": 4, "distinct_in_train": 1, "ceiling": round(1 / 3, 6),
    }  # fmt: skip
    assert train["answers"] == {"references": 4, "distinct": 4}
    assert train["text"]["texts"] == 8 and train["text"]["not_nfc"] == 0
    assert [(s["splits"], s["pictures"], s["pairs"]) for s in facts["shared"]] == [
        (["train", "test"], 1, 1)
    ]


def test_the_summary_fits_a_screen(choice, capsys):
    job.prepare(choice)
    out, err = capsys.readouterr()
    assert "train: 4 pictures, 5 questions of 10 annotations; 5 distinct answers" in out
    assert "missing image: 1 of 1 pictures (train.csv:11:" in out
    assert "33.33% of questions answered by one of train's" in out
    assert "train shares 1 pictures and 1 questions about them with test" in out
    assert f"report: {choice.folder / 'report.json'}" in out and out.count("\n") < 24
    assert "checking pictures: 7/7" in err and "writing vivqa: 7/7" in err and "left" in err


def test_again_nothing_is_rewritten(choice, capsys):
    job.prepare(choice)
    before = times(choice.data_dir)
    capsys.readouterr()
    job.prepare(choice)
    out, err = capsys.readouterr()
    assert "nothing has changed" in out and err == ""
    assert times(choice.data_dir) == before


def test_leaked_pictures_can_be_dropped_later_and_come_back(choice, tmp_path):
    job.prepare(choice)
    assert ids(choice) == ["11", "12", "13", "15"]
    first = folders.contents(choice.data_dir)
    drop = Choice(choice.dataset, choice.source, choice.data_dir, drop_leaked=True)
    facts = job.prepare(drop)
    assert ids(choice) == ["12", "13", "15"]
    assert counts(facts["splits"]["train"]["left_out"])["leaked to test"] == 2
    assert facts["drop_leaked"] and facts["shared"][0]["pictures"] == 1
    job.prepare(choice)
    assert folders.contents(choice.data_dir) == first


def test_changed_files_are_prepared_anew(choice, source, capsys):
    job.prepare(choice)
    folders.table(source / "train.csv", folders.TRAIN[:1])
    job.prepare(choice)
    assert ids(choice) == ["11"]
    folders.picture(source / "images" / f"COCO_train2014_{11:012}.jpg", 77, size=(40, 40))
    capsys.readouterr()
    job.prepare(choice)
    assert "checking pictures: 1/1" in capsys.readouterr().err
    picture = next((source / "images").glob("*000011.jpg")).read_bytes()
    assert prepared.open_split(choice.data_dir, "vivqa", "train")[0].pictures[0] == picture
    folders.picture(source / "images" / f"COCO_train2014_{99:012}.jpg", 99)
    folders.table(source / "train.csv", folders.TRAIN)
    job.prepare(choice)
    assert "99" in ids(choice)


def test_annotations_only(source, tmp_path):
    for picture in (source / "images").iterdir():
        picture.unlink()
    choice = Choice("vivqa", source, tmp_path / "data", annotations_only=True)
    facts = job.prepare(choice)
    assert counts(facts["splits"]["train"]["left_out"]) == {
        "empty question": 1, "duplicate": 1, "conflicting duplicates": 2,
    }  # fmt: skip
    lines = (choice.folder / "texts.txt").read_text("utf-8").splitlines()
    assert lines[:4] == ["xe màu gì", "đỏ", "có mấy con chó", "hai"] and len(lines) == 12
    assert choice.folder == tmp_path / "data" / "vivqa" / "annotations"
    assert not (tmp_path / "data" / "vivqa" / "checked_pictures.jsonl").exists()
    assert len(ids(choice)) == 5
    with pytest.raises(UserError, match=r"nothing to keep: 14 annotations; empty question 1 \(.*"):
        job.prepare(Choice("vivqa", source, tmp_path / "data"))


def test_damaged_datasets_are_made_anew(choice):
    job.prepare(choice)
    whole = folders.contents(choice.data_dir)
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:50]), lambda p: p.unlink()):
        for name in ("vivqa-test.array_record-00000-of-00001", "dataset_info.json"):
            damage(choice.folder / "1.0.0" / name)
            job.prepare(choice)
            assert folders.contents(choice.data_dir) == whole
    for path in (choice.folder / "report.json", choice.folder / "1.0.0" / "metadata.json"):
        path.unlink()
        job.prepare(choice)
        assert folders.contents(choice.data_dir) == whole


def test_an_evaluation_split_alone_is_a_dataset(choice, source):
    (source / "train.csv").unlink()
    facts = job.prepare(choice)
    assert list(facts["splits"]) == ["test"] and facts["shared"] == []
    assert "ceiling" not in facts["splits"]["test"]["answers"]
    assert prepared.splits(choice.data_dir, "vivqa") == ["test"]


def test_a_split_of_which_nothing_is_kept_is_reported(choice, source):
    folders.table(source / "test.csv", [("cờ màu gì", "your answer", 22, 2)])
    facts = job.prepare(choice)
    assert counts(facts["splits"]["test"]["left_out"]) == {"placeholder answer": 1}
    assert facts["splits"]["test"]["pictures"] == 0
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        prepared.open_split(choice.data_dir, "vivqa", "test")


def test_tokens_are_counted_on_request(choice, capsys):
    texts = [text for row in folders.TRAIN for text in row[:2]] + ["Đáp án ngắn: Câu hỏi?"]
    facts = job.prepare(
        choice,
        functools.partial(
            suggest_lengths, tokenizer=train_sentencepiece(texts, 320, model_type="bpe")
        ),
    )
    assert facts["splits"]["train"]["tokens"]["row"]["p100"] > 4
    assert "tokens a row: p50" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("write() failed: No space left on")],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(choice, monkeypatch, error):
    def full(self):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(builders._Unchanged, "read", full)
        with pytest.raises(UserError, match="No space left"):
            job.prepare(choice)
    assert [p.name for p in choice.folder.iterdir()] == []
    job.prepare(choice)
    assert len(ids(choice)) == 4


def test_a_folder_that_cannot_be_made_is_named(choice, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        job.prepare(Choice("vivqa", choice.source, tmp_path / "file"))


# What is killed, and when: the command ends with SIGKILL at the nth call of a function.
_KILLED = """
import importlib, os, signal, sys

from vimoe_jax.data import prepare

module, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
module = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    module = getattr(module, part)
real = getattr(module, name)

def deadly(*args, **kwargs):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

setattr(module, name, deadly)
prepare.main(sys.argv[4:])
"""
_HERE = "vimoe_jax.datasets"


@pytest.mark.parametrize(
    "module, name, count, older",
    [
        (f"{_HERE}.preparing.pictures", "check", 4, False),
        (f"{_HERE}.preparing.builder", "Published._write_questions", 1, False),
        (f"{_HERE}.preparing.builder", "_Unchanged.read", 5, False),
        (f"{_HERE}.preparing.builder", "_Unchanged.read", 5, True),
        (f"{_HERE}.prepared", "_publish", 0, False),
        ("os", "rename", 2, True),  # between the old dataset's going and the new one's coming
        (f"{_HERE}.preparing.job", "_facts", 0, True),
        ("os", "replace", 1, False),
    ],
)
def test_killed_anywhere_it_ends_with_the_same_bytes(choice, tmp_path, module, name, count, older):
    if older:
        job.prepare(Choice(choice.dataset, choice.source, choice.data_dir, drop_leaked=True))
        (choice.data_dir / "vivqa" / "checked_pictures.jsonl").unlink()
    arguments = ["--dataset=vivqa", f"--source={choice.source}", f"--data_dir={choice.data_dir}"]
    command = [sys.executable, "-c", _KILLED, module, name, str(count), *arguments]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    if older and name != "rename":
        assert len(ids(choice)) == (4 if name in ("_facts", "replace") else 3)
    journal = choice.data_dir / "vivqa" / "checked_pictures.jsonl"
    known = journal.read_bytes() if journal.exists() else b""
    job.prepare(choice)
    assert journal.read_bytes().startswith(known) and journal.read_bytes().count(b"\n") == 7
    whole = Choice(choice.dataset, choice.source, tmp_path / "whole")
    job.prepare(whole)
    assert folders.contents(choice.data_dir) == folders.contents(whole.data_dir)
    left = {p.name for p in choice.folder.iterdir()}
    assert left == {"report.json", "1.0.0"}


def test_killed_at_any_time_it_ends_with_the_same_bytes(choice, tmp_path):
    for number in range(100, 400):
        folders.picture(choice.source / "images" / f"{number:012}.png", number, (200, 200))
    rows = [("cái gì", f"vật {i}", i, 0) for i in range(100, 400)]
    folders.table(choice.source / "train.csv", folders.TRAIN + rows)
    arguments = ["--dataset=vivqa", f"--source={choice.source}", f"--data_dir={choice.data_dir}"]
    command = [sys.executable, "-m", "vimoe_jax.data.prepare", *arguments]
    for delay in (0.8, 1.0, 1.1):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
    assert subprocess.run(command, capture_output=True).returncode == 0
    whole = Choice(choice.dataset, choice.source, tmp_path / "whole")
    job.prepare(whole)
    assert folders.contents(choice.data_dir) == folders.contents(whole.data_dir)
    assert len(ids(choice)) == 304


def test_real_vivqa(real_data, tmp_path):
    choice = Choice("vivqa", real_data / "vivqa", tmp_path, annotations_only=True)
    train = job.prepare(choice)["splits"]["train"]
    assert train["annotations"] == 11_999
    left = train["left_out"]
    # 107 questions are there twice, 18 of them with two answers; pictures may have several.
    assert left["conflicting duplicates"]["count"] == 36
    assert left["duplicate"]["count"] == 91 and len(left) == 2
    assert train["questions"] == 11_999 - 36 - 91
    assert train["text"]["not_nfc"] == 0 and train["text"]["tones_old"] > 400
    assert train["text"]["tones_new"] < 10


def test_real_photographs_of_vivqa(real_data, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.csv").symlink_to(real_data / "vivqa" / "train.csv")
    (source / "coco").symlink_to(real_data / "images" / "coco")
    choice = Choice("vivqa", source, tmp_path / "data")
    train = job.prepare(choice)["splits"]["train"]
    missing = train["left_out"]["missing image"]
    assert train["pictures"] == 36 and missing["count"] > 11_900 and missing["pictures"] > 8_800
    assert "unreadable image" not in train["left_out"]
    assert "left out, missing image: 119" in capsys.readouterr().out
    record = prepared.open_split(choice.data_dir, "vivqa", "train")[0]
    files = [p.read_bytes() for p in (real_data / "images" / "coco").glob("*.jpg")]
    assert record.pictures[0] in files
