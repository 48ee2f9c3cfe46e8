"""The configuration: files, overrides, complaints that name the field."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vimoe_jax import config
from vimoe_jax.base import schema
from vimoe_jax.base.errors import UserError

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "configs/moe_small.py"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_loads_and_fits_a_screen(path):
    config.load(path)
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("optim.lerning_rate", "1", "did you mean 'learning_rate'?"),
        ("mdel.image_size", "1", "did you mean 'model'?"),
        ("optim.learning_rate", "fast", "config.optim.learning_rate: must be float, not 'fast'"),
        ("train.steps", "1.5", "config.train.steps: must be int"),
        ("train.steps", "0", "config.train.steps: must be at least 1"),
        ("model.decoder.moe.experts_per_token", "9", "9 is more than num_experts = 8"),
        ("model.vision.num_heads", "5", "model.vision.num_heads: 5 does not divide width"),
        ("model.decoder.num_kv_heads", "3", "does not divide num_heads"),
        ("model.decoder.head_dim", "7", "must be even"),
        ("model.image_size", "60", "no multiple of model.patch_size"),
        ("model.dtype", "fp32", "did you mean 'float32'?"),
        (
            "model.decoder.moe.router",
            "expert_choice",
            "config.model.decoder.moe.router: 'expert_choice' decides about a token by the tokens "
            "after it, which the causal decoder may not see; use it in the tower or the connector",
        ),
        ("model.decoder.moe.router", "soft", "config.model.decoder.moe.router: 'soft' decides"),
        ("model.decoder.moe.router", "topk", "did you mean 'top_k'?"),
        ("model.decoder.moe.granularity", "7", "granularity: 7 does not divide the hidden width"),
        ("model.decoder.moe.placement", "evry_2", "config.model.decoder.moe.placement: must be"),
        ("train.accumulate", "3", "does not divide"),
        ("data.dataset", "jsonl", "data.source"),
        ("seed.x", "1", "no fields of its own"),
        ("model", "1", "a group of fields"),
    ],
)
def test_complaints_name_the_field(field, value, complaint):
    with pytest.raises(UserError) as e:
        config.load(CONFIG, [(field, value)])
    assert complaint in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def get_config(:\n  pass\n", "bad.py:1: "),
        ("x = 1\n", "no function get_config()"),
        (
            "from vimoe_jax.config import defaults\ndef get_config():\n"
            "  c = defaults()\n  c.optim.lerning_rate = 3\n  return c\n",
            "bad.py:4: no field 'lerning_rate' (did you mean 'learning_rate'?)",
        ),
        ("def get_config():\n  return 1 / 0\n", "bad.py:2: division by zero"),
    ],
)
def test_broken_files_name_the_line(tmp_path, text, complaint):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UserError) as e:
        config.load(path)
    assert complaint in str(e.value)


def test_names_of_fields():
    schema.check_name(config.Config, "model.decoder.moe.num_experts")
    with pytest.raises(UserError, match=r"--config\.optim\.lerning_rate: .*'learning_rate'"):
        schema.check_name(config.Config, "optim.lerning_rate")
    with pytest.raises(UserError, match=r"--config\.seed\.x: seed has no fields of its own"):
        schema.check_name(config.Config, "seed.x")


def test_overrides_are_typed():
    c = config.load(
        CONFIG,
        [("optim.learning_rate", "1"), ("data.test_splits", "['test']"), ("eval.at_end", "false")],
    )
    assert c.optim.learning_rate == 1.0
    assert c.data.test_splits == ("test",)
    assert c.eval.at_end is False


def test_json_round_trip(tmp_path):
    c = config.load(CONFIG)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(schema.to_dict(c)))
    assert config.from_json(path) == c


def test_every_field_says_what_it_means():
    lines = list(config.describe())
    assert len(lines) > 80
    assert all(len(line.split("\n")[1].strip()) > 5 for line in lines)


MODULES = ["main", "generate", "evaluate", "data.prepare", "data.tokenizer"]


@pytest.mark.parametrize("module", MODULES)
def test_help_is_quick(module):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"vimoe_jax.{module}", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert f"python -m vimoe_jax.{module}" in done.stdout
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["main", "--config=nope.py"],
        ["main", f"--config={CONFIG}", "--config.train.stps=3"],
        ["generate", "--workdir=nope", f"--image={CONFIG}"],
        ["evaluate", "--workdir=nope"],
        ["data.prepare", "--dataset=vivq"],
        ["data.tokenizer", "--input=nope", "--vocab_size=9", "--out=x"],
    ],
    ids=lambda a: " ".join(a)[:30],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, tmp_path):
    module, *rest = arguments
    done = subprocess.run(
        [sys.executable, "-m", f"vimoe_jax.{module}", *rest],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
