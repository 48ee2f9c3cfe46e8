"""`import vimoe_jax as vm`: lazy, and what it loads answers without compiling twice."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vimoe_jax as vm

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests/fixtures/workdir"
PICTURES = sorted((FIXTURE / "data").glob("test_*.png"))


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("VIMOE_FIXTURE_DATA", "tests/fixtures/workdir/data/data.jsonl")


@pytest.fixture
def model(in_root):
    return vm.load(FIXTURE / "run")


@pytest.fixture
def compilations(caplog):
    """Functions that JAX compiled since it was last asked."""
    import jax

    with jax.log_compiles(), caplog.at_level(logging.WARNING):

        def count():
            names = [r.getMessage() for r in caplog.records if "Finished XLA compi" in r.message]
            caplog.clear()
            return names

        yield count


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, vimoe_jax as vm; dir(vm); vm.__version__;"
        "print(sorted({'jax', 'flax', 'numpy', 'orbax', 'PIL', 'grain'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_name_is_there():
    for name in vm.__all__:
        assert getattr(vm, name) is not None and name in dir(vm)
    with pytest.raises(AttributeError, match="laod"):
        vm.laod  # noqa: B018


def test_scores_and_options():
    assert vm.scores.vqa.f1_squad("hai con mèo", "con mèo") == pytest.approx(0.8)
    assert vm.MoEOptions(num_experts=4).experts == 4


def test_a_second_question_compiles_nothing(model, compilations):
    first = model.answer(PICTURES[0], "con vật màu gì")
    assert isinstance(first, str) and compilations()
    for picture, question in ((PICTURES[0], "đây là gì"), (PICTURES[1], "có mấy con mèo?")):
        assert isinstance(model.answer(picture, question), str)
    model.caption(PICTURES[2])
    assert compilations() == []
    batch = model.answer(PICTURES[0], ["con vật màu gì", "đây là gì", "có mấy con"])
    assert batch[0] == first and compilations()
    model.answer(list(PICTURES), "con vật màu gì")
    model.caption(list(PICTURES))
    assert compilations() == []


def test_answers_are_those_of_the_command(model):
    rows = [json.loads(line) for line in (FIXTURE / "predictions.jsonl").open(encoding="utf-8")]
    assert rows  # of the same run, later: the questions are what is compared here
    record = vm.datasets.open("jsonl", "test", source="tests/fixtures/workdir/data/data.jsonl")[0]
    found = model.predict([record], quiet=True)
    asked = [qa for qa in record.qa if qa.task != "caption"]
    answers = model.answer(record.pictures[0], [qa.question for qa in asked])
    by_id = {p.qa_id: p.prediction for p in found}
    assert answers == [by_id[qa.id] for qa in asked]
    assert model.caption(record.pictures[0]) == by_id[record.qa[0].id]


def test_pictures_of_every_kind(model):
    from PIL import Image

    path, image = PICTURES[0], Image.open(PICTURES[0]).convert("RGB")
    ways = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    assert len(set(model.caption(ways))) == 1


def test_mistakes(model, tmp_path):
    from vimoe_jax.base.errors import UserError

    with pytest.raises(UserError, match=r"nowhere.png: No such file"):
        model.caption(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="unreadable picture"):
        model.caption(b"no picture")
    with pytest.raises(UserError, match=r"2 pictures, but config\.data\.max_pictures = 1"):
        model.answer((PICTURES[0], PICTURES[1]), "giống nhau không")
    with pytest.raises(ValueError, match="2 pictures, but 3 questions"):
        model.answer([PICTURES[0]] * 2, ["a", "b", "c"])
    with pytest.raises(ValueError, match="empty question"):
        model.answer(PICTURES[0], " ?")
    with pytest.raises(ValueError, match="uint8"):
        model.caption(np.zeros((4, 4, 3), np.float32))
    assert model.caption([]) == []
    with pytest.raises(UserError, match="neither a run's workdir nor"):
        vm.load(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint 7"):
        vm.load(FIXTURE / "run", step=7)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A dense run, and what it exports to."""
    import os

    from vimoe_jax.hf import export, load  # noqa: F401

    folder = tmp_path_factory.mktemp("exported")
    data = "tests/fixtures/workdir/data/data.jsonl"
    env = os.environ | {"VIMOE_FIXTURE_DATA": data, "XLA_FLAGS": ""}  # one device: batches of 4
    fields = [
        "train.steps=2", "model.decoder.moe.num_experts=0", "model.vision.moe.num_experts=0",
        "model.connector.moe.num_experts=0", "eval.at_end=False", "data.style='short'",
        "eval.max_new_tokens=5",
    ]  # fmt: skip
    command = [sys.executable, "-m", "vimoe_jax.main", f"--config={FIXTURE / 'config.py'}"]
    overrides = [f"--config.{field}" for field in fields]
    run = [*command, f"--workdir={folder / 'run'}", *overrides]
    subprocess.run(run, check=True, env=env, cwd=ROOT, capture_output=True)
    export.main([f"--workdir={folder / 'run'}", f"--out={folder / 'hf'}"])
    return folder


def test_an_exported_folder_answers_as_the_run_does(exported, in_root):
    ours, theirs = vm.load(exported / "run"), vm.load(exported / "hf")
    assert theirs.run.config.data.style == "short"
    assert theirs.run.config.eval.max_new_tokens == 5
    questions = ["con vật màu gì", "đây là gì"]
    assert ours.answer(PICTURES[0], questions) == theirs.answer(PICTURES[0], questions)
    assert ours.caption(PICTURES[1]) == theirs.caption(PICTURES[1])
    changed = vm.load(exported / "hf", config={"eval.max_new_tokens": 2})
    assert changed.run.config.eval.max_new_tokens == 2
