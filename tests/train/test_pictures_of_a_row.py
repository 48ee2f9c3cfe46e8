"""Rows without a picture, with one and with several: trained on, scored, asked, by the commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT / "tests/fixtures/workdir/data"
SIZE = [
    "model.image_size=16", "model.vision.width=16", "model.vision.depth=1",
    "model.vision.num_heads=2", "model.vision.mlp_dim=16", "model.decoder.width=16",
    "model.decoder.num_heads=2", "model.decoder.num_kv_heads=1", "model.decoder.head_dim=8",
    "model.decoder.mlp_dim=16", "model.decoder.depth=2", "model.decoder.moe.mlp_dim=16",
    "model.decoder.moe.num_experts=4", "model.decoder.moe.group_size=64", "train.batch_size=4",
    "train.log_every=1", "data.vocab_size=320", "data.text_length=48", "eval.batch_size=4",
    "eval.max_new_tokens=4",
]  # fmt: skip


def line(split, pictures, question, answer, **more):
    row = {"images": pictures, "task": "vqa", "question": question, "answers": [answer]}
    return row | {"split": split, **more}


def write(path, pictures):
    """Lines of three splits; each record has one of the numbers of pictures."""
    rows = []
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        for i in range(count):
            own = [
                str(DATA / f"train_{(i + j) % 8}.png") for j in range(pictures[i % len(pictures)])
            ]
            answer = ("có", "không")[i % 2]
            rows.append(line(split, own, f"câu hỏi số {i} đúng không", answer, type=str(len(own))))
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    return path


def run(module, *arguments, fields=(), code=0):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    overrides = [f"--config.{field}" for field in fields]
    command = [sys.executable, "-m", module, *map(str, arguments), *overrides]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A run on records of 0, 1 and 2 pictures."""
    folder = tmp_path_factory.mktemp("mixed")
    source = write(folder / "data.jsonl", [0, 1, 2])
    fields = [
        *SIZE, "data.dataset=jsonl", f"data.source={source}", "data.max_pictures=2",
        "data.test_splits=('test',)", "train.steps=3", "eval.every=3",
    ]  # fmt: skip
    main = ("--config=configs/moe_small.py", f"--workdir={folder / 'run'}")
    run("vimoe_jax.main", *main, fields=fields)
    return folder


def test_every_question_is_answered_whatever_its_pictures(mixed):
    lines = (mixed / "run/eval/test/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(text)["type"] for text in lines) == ["0", "0", "1", "1", "2", "2"]
    report = json.loads((mixed / "run/eval/test/experts.json").read_text())
    assert {"image", "question", "answer"} <= set(report["layers"][0]["by_kind"])
    assert len(list((mixed / "run/eval/test/images").glob("*.png"))) == 4
    assert (mixed / "run/report.html").stat().st_size > 10_000
    assert "decoder.blocks" in (mixed / "run/parameters.txt").read_text()


def test_generate_takes_as_many_as_the_run(mixed):
    ask = (f"--workdir={mixed / 'run'}", "--question=đúng không")
    one, two = DATA / "train_0.png", f"{DATA / 'train_0.png'},{DATA / 'train_1.png'}"
    for image in ([], [f"--image={one}"], [f"--image={two}"]):
        assert run("vimoe_jax.generate", *ask, *image).stdout.endswith("\n")
    three = run("vimoe_jax.generate", *ask, f"--image={two},{one}", code=2)
    assert "3 pictures, but config.data.max_pictures = 2" in three.stderr
    nothing = run("vimoe_jax.generate", f"--workdir={mixed / 'run'}", code=2)
    assert nothing.stderr.startswith("error: --image: needed")


def test_text_alone_by_a_config(tmp_path):
    source = write(tmp_path / "data.jsonl", [0])
    workdir = f"--workdir={tmp_path / 'run'}"
    fields = [*SIZE, f"data.source={source}", "train.steps=3", "eval.every=3"]
    run("vimoe_jax.main", "--config=configs/text_small.py", workdir, fields=fields)
    lines = (tmp_path / "run/eval/test/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6
    logged = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").open()]
    assert not any("vision" in name for row in logged for name in row)
    asked = run("vimoe_jax.generate", workdir, "--question=đúng không")
    assert asked.stdout.endswith("\n")
    refused = run("vimoe_jax.generate", workdir, f"--image={DATA / 'train_0.png'}", code=2)
    assert "1 pictures, but config.data.max_pictures = 0" in refused.stderr
    trained = run(
        "vimoe_jax.main", "--config=configs/text_small.py", f"--workdir={tmp_path / 'other'}",
        fields=[*fields, "optim.vision_rate=1"], code=2,
    )  # fmt: skip
    assert "config.optim.vision_rate: 1.0, but no picture reaches the vision" in trained.stderr
