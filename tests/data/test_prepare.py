import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from tests.datasets import folders
from vimoe_jax.base.errors import UserError
from vimoe_jax.data import prepare
from vimoe_jax.datasets import prepared
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece

ROWS = [
    ("a.png", "train", "vqa", "con mèo màu gì", "đen"),
    ("a.png", "train", "vqa", "có mấy con mèo", "hai"),
    ("b.png", "test", "ocr_vqa", "biển ghi gì", "Phở Bò"),
    ("c.png", "train", "caption", "", "Một chiếc thuyền trên mặt hồ."),
]
TYPES = {"vqa": "color", "ocr_vqa": "sign", "caption": ""}


@pytest.fixture
def data(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    path = tmp_path / "data.jsonl"
    keys = ("image", "split", "task", "question")
    rows = [dict(zip(keys, r, strict=False), answers=[r[4]], type=TYPES[r[2]]) for r in ROWS]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def report_of(path):
    return json.loads(path.with_suffix(".report.json").read_text("utf-8"))


def test_jsonl_report(data, tmp_path, capsys):
    texts = [text for r in ROWS for text in r[3:]] + ["Mô tả ảnh: Đáp: Phở Bò?"]
    train_sentencepiece(texts, 305, model_type="bpe").save(tmp_path / "vi.model")
    arguments = ["--dataset=jsonl", f"--source={data}", f"--tokenizer={tmp_path / 'vi.model'}"]
    assert prepare.main(arguments) == 0
    report = report_of(data)
    assert report["dataset"] == "jsonl" and report["skipped"] == []
    train, test = report["splits"]["train"], report["splits"]["test"]
    assert (train["pictures"], train["questions"]) == (2, 3)
    assert train["tasks"] == {"caption": 1, "vqa": 2} and train["types"] == {"color": 2}
    assert test["tasks"] == {"ocr_vqa": 1} and test["pictures"] == 1
    assert train["tokens"]["row"]["p100"] > train["tokens"]["segment"]["p100"] > 4
    out = capsys.readouterr().out
    assert "train: 2 pictures, 3 questions" in out and "tokens a row: p50" in out


def test_unreadable_pictures_are_counted(data, tmp_path):
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.png: unreadable picture"):
        prepare.main(["--dataset=jsonl", f"--source={data}"])
    assert prepare.main(["--dataset=jsonl", f"--source={data}", "--max_bad=1"]) == 0
    assert len(report_of(data)["skipped"]) == 1


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--dataset=vivq"], "--dataset: must be one of viscenes, jsonl, vivqa,"),
        (["--dataset=jsonl"], "--source: needed"),
        (["--dataset=jsonl", "--source=nichts.jsonl"], "nichts.jsonl: No such file"),
        (["--dataset=jsonl", "--source=x", "--max_bad=two"], "--max_bad: must be a whole number"),
        (["--dataset=viscenes"], "--data_dir: needed"),
        (["--dataset=viscenes", "--max_bad=1"], "--max_bad: not an option of dataset viscenes"),
        (["--dataset=vivqa", "--data_dir=x"], "--source: needed, the folder that published files"),
        (["--dataset=vivqa", "--source=x"], "--data_dir: needed, the folder that prepared"),
        (["--dataset=vivqa", "--source=x", "--data_dir="], "--data_dir: must be a path"),
        (
            ["--dataset=vivqa", "--source=nichts", "--data_dir=x"],
            "--source: nichts is not a folder",
        ),
        (["--dataset=evjvqa", "--source=.", "--data_dir=x", "--variant=en"], "one of vi, all, not"),
        (["--dataset=vivqa", "--source=.", "--data_dir=x", "--drop_leaked=yes"], "true or false"),
        (["--dataset=viscenes", "--data_dir=x", "--variant=big"], "--variant: must be one of"),
        (["--datset=viscenes"], "did you mean --dataset"),
        (["--dataset=jsonl", "--config.seed=1"], "--config.seed: this command has no"),
        (["--dataset=jsonl", "--source=x", "--tokenizer=no.model"], "no.model: No such file"),
    ],
)
def test_bad_options(arguments, complaint):
    with pytest.raises(UserError) as e:
        prepare.main(arguments)
    assert complaint in str(e.value)


@pytest.fixture
def published(tmp_path):
    return folders.vivqa(tmp_path / "vivqa")


def run(published, *options):
    data_dir = published.parent / "data"
    command = [sys.executable, "-m", "vimoe_jax.data.prepare", "--dataset=vivqa", *options]
    command += [f"--source={published}", f"--data_dir={data_dir}"]
    return subprocess.run(command, capture_output=True, text=True)


def test_published_files_become_a_dataset(published, tmp_path):
    done = run(published, "--drop_leaked", "--annotations_only=false")
    assert done.returncode == 0, done.stderr
    assert "leaked to test: 2 of 1 pictures" in done.stdout
    assert "\r" not in done.stderr and "writing vivqa: 6/6" in done.stderr
    source = prepared.open_split(tmp_path / "data", "vivqa", "train")
    assert [r.id for r in source] == ["12", "13", "15"]
    assert run(published, "--drop_leaked").stdout.endswith("default is complete\n")


_INTERRUPTED = """
import runpy, sys

from vimoe_jax.datasets.preparing import pictures

def interrupted(path):
    raise KeyboardInterrupt

pictures.check = interrupted
runpy.run_module("vimoe_jax.data.prepare", run_name="__main__")
"""


def test_control_c_leaves_what_can_be_finished(published):
    arguments = ["--dataset=vivqa", f"--source={published}", f"--data_dir={published.parent}/data"]
    command = [sys.executable, "-c", _INTERRUPTED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr.endswith("interrupted; the same command finishes the job\n")
    assert run(published).returncode == 0


def broken(folder):
    (folder / "train.csv").write_bytes(b"\xff\xfe,question")


def headless(folder):
    (folder / "train.csv").write_text("a,b\n1,2\n")


def emptied(folder):
    for path in folder.glob("*.csv"):
        path.unlink()


def without_pictures(folder):
    for path in (folder / "images").iterdir():
        path.unlink()


def occupied(folder):
    (folder.parent / "data").write_text("")


@pytest.mark.parametrize(
    "spoil, complaint",
    [
        (broken, r"train\.csv: not UTF-8"),
        (headless, r"train\.csv:1: no column 'question'"),
        (emptied, r"vivqa: no annotations of ViVQA; expected train\.csv, test\.csv"),
        (without_pictures, r"vivqa: nothing to keep: 14 annotations; empty question 1 .*"),
        (occupied, r"data"),
    ],
)
def test_what_cannot_be_prepared_is_one_line_and_writes_no_dataset(published, spoil, complaint):
    spoil(published)
    done = run(published)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and re.search(complaint, last)
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not list((published.parent / "data").glob("vivqa/*/1.0.0"))


def test_the_command_ends_with_one_line_and_code_2(data):
    lines = data.read_text("utf-8").splitlines()
    data.write_text("\n".join([*lines[:2], lines[2][:-7], lines[3]]), "utf-8")
    command = [sys.executable, "-m", "vimoe_jax.data.prepare", "--dataset=jsonl", "--source", data]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {data}:3: broken JSON") and done.stderr.count("\n") == 1


def test_the_real_photographs_are_all_readable(real_data, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("coco", "pairs.jsonl"):
        (folder / name).symlink_to(real_data / "images" / name)
    # The report lies beside the link, not in the real folder.
    assert prepare.main(["--dataset=jsonl", f"--source={folder / 'pairs.jsonl'}"]) == 0
    report = report_of(folder / "pairs.jsonl")
    assert report["skipped"] == [] and report["splits"]["train"]["pictures"] > 30
    assert not (real_data / "images" / "pairs.report.json").exists()
