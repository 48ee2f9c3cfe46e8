"""The registry of metrics: that it knows every name, and that the report's words are its."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.base import metrics
from vimoe_jax.config.mixture import Component
from vimoe_jax.config.parts import PARTS
from vimoe_jax.data.batch import Batch
from vimoe_jax.data.mixture import Mixture
from vimoe_jax.datasets.records import QA, Record
from vimoe_jax.model.loss import TokenLoss
from vimoe_jax.model.tokens import NUM_KINDS
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.moe.report import MoEReport
from vimoe_jax.report import meanings, page
from vimoe_jax.run.state import Health
from vimoe_jax.scores import captions, vqa
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.train import numbers
from vimoe_jax.train.meter import KINDS, Meter
from vimoe_jax.train.step import StepMetrics

FIXTURE = Path(__file__).parent.parent / "fixtures/workdir/run/metrics.jsonl"


@pytest.fixture
def registry(monkeypatch):
    """What a test defines is gone afterwards."""
    monkeypatch.setattr(metrics, "_defined", dict(metrics._defined))
    monkeypatch.setattr(vqa, "_SCORES", dict(vqa._SCORES))


def predictions():
    def asked(index, task, type, answer, prediction):
        id_ = f"p/{index}"
        return Prediction(id_, index, f"{id_}/0", task, type, "màu gì", (answer,), prediction)

    return [
        asked(0, "vqa", "color", "màu đỏ", "màu đỏ"),
        asked(1, "ocr_vqa", "title", "rừng đước", "rừng"),
        asked(2, "vqa", "color", "your answer", "đỏ"),  # the place of an answer
        asked(3, "caption", "", "một con mèo", "một con chó"),
        asked(4, "caption", "", "hai con mèo", "hai con mèo"),
    ]


def scores():
    train = [QA("0", "vqa", "màu gì", ("màu đỏ",), "color")]
    rows = predictions()
    return vqa.score(rows) | captions.score(rows) | vqa.floors(train, rows)


def step(parts):
    """A step's metrics: each part has two MoE layers, all kinds of token, every loss."""
    one, ones = jnp.ones(()), jnp.ones(2)
    names = [n for n in MoEOptions.__dataclass_fields__ if n.endswith("_weight")]
    report = MoEReport(
        losses={n.removesuffix("_weight"): ones for n in names},
        routed=jnp.ones((2, NUM_KINDS, 4)),
        kept=jnp.ones((2, NUM_KINDS, 4)),
        tokens=jnp.ones((2, NUM_KINDS)),
        unserved=jnp.ones((2, NUM_KINDS)),
        entropy=ones,
    )
    tokens = TokenLoss(*([one] * len(TokenLoss.__dataclass_fields__)))
    return StepMetrics(
        tokens=tokens,
        text_tokens=one,
        aux_loss=one,
        grad_norm=one,
        learning_rate=one,
        moe=dict.fromkeys(parts, report),
        health=Health.create(),
    )


def logged():
    """What training may log: of experts in every part, and of a mixture."""
    yield from numbers.of_step(step(PARTS))
    records = [Record("0", (), ())]
    components = Component("vivqa"), Component("viscenes", "tiny")
    meter = Meter(Mixture(components, (records, records)), {})
    segments = np.ones((2, 3), np.int32)
    record, skipped = np.arange(2, dtype=np.int32), np.zeros(2, bool)
    meter.count(Batch(None, segments, None, None, segments, None, record, skipped))
    yield from meter.rates()


def test_every_score_is_known():
    names = list(scores())
    for group in ("vqa/accuracy/color", "vqa/accuracy_task/ocr_vqa", "vqa/placeholders",
                  "vqa/floor_per_type/title", "caption/cider", "caption/bleu_4"):  # fmt: skip
        assert group in names
    assert [n for n in names if metrics.find(n) is None] == []


def test_every_number_that_training_logs_is_known():
    names = list(logged())
    for some in ("train/moe/connector/z_loss", "train/moe/vision/drop_fraction_by_layer",
                 "train/share/viscenes_tiny", "time/redone", "train/goodput"):  # fmt: skip
        assert some in names
    assert [n for n in names if metrics.find(n) is None] == []
    assert {n.removeprefix("time/") for n in names if n.startswith("time/")} == set(KINDS)


def test_every_name_of_a_whole_run_is_known():
    """A run's file as it is: what the loop and the evaluation write besides."""
    names = {n for line in FIXTURE.read_text().splitlines() for n in json.loads(line)} - {"step"}
    assert "val/loss" in names
    own = (n.partition("/")[2] if n.startswith("eval") else n for n in names)
    assert [n for n in own if metrics.find(n) is None] == []


def test_values_are_within_their_range():
    for name, value in scores().items():
        known = metrics.find(name)
        assert known.low <= value and (known.high is None or value <= known.high), name


def test_nothing_unknown_is_known():
    for name in ("train/lost", "vqa/", "vqa/accuracy/", "train/moe/decoder/w_loss", "time/other",
                 "train/moe/decoder/losses", "vqa/accurac", "xvqa/accuracy"):  # fmt: skip
        assert metrics.find(name) is None, name


def test_the_most_literal_pattern_counts():
    at = "train/moe/decoder/drop_fraction"
    assert metrics.find(f"{at}_image").title == "Dropped choices, image"
    assert metrics.find(f"{at}_by_layer").title == "Dropped choices by layer"
    assert metrics.find("vqa/accuracy/{odd}\n(type)").title == "Accuracy: {odd}\n(type)"


def test_every_entry_says_what_it_is():
    for m in metrics.defined():
        assert m.title and m.meaning.endswith((".", "× 100.")) and "\n" not in m.meaning, m
        assert m.better in ("higher", "lower", "neither")
        assert m.unit != metrics.SHARE or (m.low, m.high) == (0, 1)
    for name, better in (
        ("vqa/cer", "lower"), ("vqa/anls", "higher"), ("vqa/count", "neither"),
        ("val/loss", "lower"), ("train/data_wait", "lower"), ("caption/cider", "higher"),
    ):  # fmt: skip
        assert metrics.find(name).better == better


def test_wrong_entries_are_refused(registry):
    metrics.define("a/{b}", "A {b}", "What.")
    metrics.define("a/{b}", "A {b}", "What.")  # the same again, as a reloaded module does
    for name, title, meaning, said in (
        ("a/{b}", "B", "What.", "defined already"),
        ("a/c", "A", "", "a title and a meaning"),
        ("a/{b}/d", "A", "Of {d}.", "the name has no d"),
    ):
        with pytest.raises(ValueError, match=said):
            metrics.define(name, title, meaning)


def test_the_reports_words_are_the_registrys():
    for m in metrics.defined():
        name = m.name.replace("{part}", "decoder").replace("{kind}", "image")
        shown, known = meanings.meaning(name), metrics.find(name)
        assert (shown.meaning, shown.unit, shown.better) == (
            known.meaning, known.unit, known.better,
        )  # fmt: skip
        assert shown.title.lower().endswith(known.title.lower())
    assert meanings.meaning("train/moe/decoder/drop_fraction_image").title == (
        "MoE decoder: dropped choices, image"
    )
    assert meanings.meaning("vqa/new").title == "vqa/new"
    assert meanings.moe_meaning("new_loss").title == "New loss"


def test_a_score_added_in_one_place_is_scored_and_reported(registry, tmp_path):
    """All that a newcomer writes is this function, in `scores/vqa.py`."""

    @vqa.metric("vqa/wordy", "Wordiness", "Syllables that no reference has.", better="lower")
    def wordy(prediction, reference, profile):
        answer = set(profile(prediction).split())
        return len(answer - set(profile(reference).split())) / max(len(answer), 1)

    @vqa.metric("vqa/refs", "References", "How many there are.", unit="", all_references=True)
    def count(prediction, references, profile):
        return len(references)

    rows = [
        Prediction("p", 0, "p/0", "vqa", "color", "màu gì", ("đỏ", "màu tím"), "màu vàng"),
        Prediction("p", 0, "p/1", "vqa", "color", "màu gì", ("tím", "đen"), "tím"),
    ]
    found = vqa.score(rows)
    assert found["vqa/wordy"] == 0.25  # the best reference is the one with the lowest value
    assert found["vqa/refs"] == 2 and found["vqa/accuracy"] == 0.5
    (tmp_path / "eval/test").mkdir(parents=True)
    (tmp_path / "eval/test/metrics.json").write_text(json.dumps(found))
    text = page.write_report(tmp_path).read_text(encoding="utf-8")
    assert 'Wordiness<span class="arrow"> ↓</span><small>Syllables that no reference has.' in text
    assert '</td><td class="n">25.0%</td>' in text


def test_the_registry_needs_no_jax():
    code = (
        "import sys; from vimoe_jax.base import metrics; from vimoe_jax.report import meanings; "
        "assert meanings.meaning('train/loss').better == 'lower'; print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
