"""The main command on a mixture: trained, resumed, scored by dataset."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.test_main import TINY, losses, parameters


@pytest.fixture(scope="module")
def env(viscenes_dir):
    clean = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return clean | {"VIMOE_TEST_DATA": str(viscenes_dir), "JAX_PLATFORMS": "cpu"}


def python(env, *arguments):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], env=env, capture_output=True, text=True
    )


def jsonl(folder, name, splits):
    """A picture of a question and a caption with two references for each entry of `splits`."""
    rng, lines = np.random.default_rng(0), []
    for i, split in enumerate(splits):
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        row = {"image": f"{i}.png", "split": split}
        asked = {"task": "vqa", "question": f"tranh số {i} vẽ gì", "answers": ["hoa", "bông hoa"]}
        captions = {"task": "caption", "answers": [f"Bức tranh số {i}.", "Một bức tranh."]}
        lines += [json.dumps(row | asked), json.dumps(row | captions)]
    (folder / name).write_text("\n".join(lines))
    return folder / name


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    source = jsonl(tmp_path_factory.mktemp("mine"), "mine.jsonl", ["train"] * 6 + ["test"] * 3)
    return [
        f"--config={TINY}", f"--config.data.source={source}",
        "--config.data.dataset=viscenes@tiny:3,jsonl", "--config.data.style=jsonl=detailed",
        "--config.data.vary_prompts=True", "--config.data.vocab_size=440",
        "--config.eval.limit=4", "--config.train.steps=6",
        # What is tested does not depend on the model: the one that compiles fastest will do.
        "--config.model.decoder.moe.num_experts=0", "--config.model.connector.moe.num_experts=0",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(arguments, env, tmp_path_factory):
    """A run that nobody disturbed, and what it wrote on stderr."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    scored = ["--config.eval.at_end=True", "--config.data.test_splits=('test',)"]
    done = python(env, "vimoe_jax.main", *arguments, *scored, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


def test_resumed_it_ends_with_the_same_bits(whole, arguments, env, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    done = python(env, "vimoe_jax.main", *arguments, f"--workdir={workdir}")
    assert done.returncode == 0 and "resuming at step 3 of 6" in done.stderr, done.stderr
    assert losses(workdir) == losses(whole[0]) != []
    before, after = (parameters(run, 6) for run in (whole[0], workdir))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_shares_are_logged(whole):
    lines = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    shares = [(r["train/share/viscenes_tiny"], r["train/share/jsonl"]) for r in lines[:5]]
    assert shares == [(0.75, 0.25)] * 5


def test_datasets_are_scored_apart(whole):
    workdir, stderr = whole
    assert stderr.count("config.data.val_split: left out: ") == 1
    names = ["jsonl_test", "viscenes_tiny_test"]
    assert sorted(p.name for p in (workdir / "eval").iterdir()) == names
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    prefixes = {name.split("/")[0] for name in last} - {"step"}
    assert prefixes == {f"eval_{name}" for name in names}
    assert last["eval_jsonl_test/vqa/count"] == 3
    # The floor is the JSONL file's own: its training answers, not ViScenes's.
    assert last["eval_jsonl_test/vqa/floor_majority"] == 1
    rows = (workdir / "eval/jsonl_test/predictions.jsonl").read_text().splitlines()
    references = [json.loads(row)["answers"] for row in rows]
    assert ["hoa", "bông hoa"] in references and ["Bức tranh số 7.", "Một bức tranh."] in references
    report = (workdir / "report.html").read_text()
    assert all(name.replace("_", " ") in report for name in names)


def test_a_dataset_that_was_not_trained_on(whole, env, tmp_path):
    other = jsonl(tmp_path, "other.jsonl", ["dev"] * 2)
    options = ["--dataset=jsonl", f"--source={other}", "--split=dev"]
    done = python(env, "vimoe_jax.evaluate", f"--workdir={whole[0]}", *options)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["vqa/count"] == 2 and "vqa/floor_majority" in metrics
    assert Path(whole[0] / "eval/jsonl_dev/metrics.json").exists()
    for wrong, complaint in (
        (["--dataset=vivq"], "--dataset: one dataset to score, please: 'vivq' is none of"),
        (["--dataset=jsonl", "--split=dev"], "no records of split 'dev'"),
        (["--dataset=ktvic", "--split=test"], "not prepared"),
    ):
        done = python(env, "vimoe_jax.evaluate", f"--workdir={whole[0]}", *wrong)
        assert done.returncode == 2 and complaint in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_part_without_the_training_split(arguments, env, tmp_path):
    more = ["--config.data.train_split=test_compositional", f"--workdir={tmp_path}"]
    done = python(env, "vimoe_jax.main", *arguments, *more)
    assert done.returncode == 2
    assert "config.data.train_split: " in done.stderr and "mine.jsonl: no records" in done.stderr
