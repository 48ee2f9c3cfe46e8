"""The examples run, and do what they say."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_all_of_them_are_tested():
    assert {f.stem for f in EXAMPLES.glob("*.py")} == {"moe_layer", "my_dataset", "answering"}


def test_moe_layer():
    accuracy, load = module("moe_layer").main(steps=60)
    assert accuracy > 0.8 and 1 <= load < 4


def test_my_dataset(tmp_path):
    """As a user names it on the command line, with worker processes."""
    env = os.environ | {"PYTHONPATH": f"{EXAMPLES}{os.pathsep}{ROOT}"}
    env.pop("XLA_FLAGS", None)
    command = [
        sys.executable, "-m", "vimoe_jax.main", f"--config={EXAMPLES / 'my_dataset.py'}",
        f"--workdir={tmp_path / 'run'}", "--config.data.workers=1",
    ]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run/eval/test/predictions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    assert len(rows) == 16 and {r["type"] for r in rows} == {"text", "colour", "compare"}
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    losses = [r["train/loss"] for r in logged if "train/loss" in r]
    assert losses[-1] < losses[0] or len(losses) == 1


def test_my_dataset_with_a_wrong_name(tmp_path):
    env = os.environ | {"PYTHONPATH": f"{EXAMPLES}{os.pathsep}{ROOT}"}
    command = [
        sys.executable, "-m", "vimoe_jax.main", f"--config={EXAMPLES / 'my_dataset.py'}",
        f"--workdir={tmp_path / 'run'}",
    ]  # fmt: skip
    for field, complaint in (
        ("dataset=my_dataset:Circles", "my_dataset has no 'Circles'"),
        ("dataset=no_such_module:Squares", "cannot be imported: No module named"),
        ("test_splits=('exam',)", "has no split 'exam'; it has train, validation, test"),
    ):
        done = subprocess.run(
            [*command, f"--config.data.{field}"], env=env, capture_output=True, text=True
        )
        assert done.returncode == 2 and complaint in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1


def test_answering(viscenes_dir, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("VIMOE_FIXTURE_DATA", "tests/fixtures/workdir/data/data.jsonl")
    scores = module("answering").main("tests/fixtures/workdir/run", str(viscenes_dir), "tiny")
    assert scores["vqa/count"] > 10 and "?" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["moe_layer", "my_dataset", "answering"])
def test_each_says_how_to_run_it(name):
    assert f"examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
