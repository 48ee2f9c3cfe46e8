"""The benchmarks run, on shapes for a CPU, and count what they say they count."""

import json
import math

import pytest

from benchmarks import peers, train_step

B, P, S = 2, 16, 6  # rows, patches, text tokens


@pytest.mark.parametrize("model", ["dense", "moe"])
def test_train_step_prints_sensible_numbers(monkeypatch, capsys, tmp_path, model):
    # In this process: starting another one takes longer than all the rest.
    monkeypatch.setattr(train_step, "measure_apart", lambda v, timeout: train_step.measure(v))
    monkeypatch.setattr(train_step, "ROUND", 1)
    out = tmp_path / "records.json"
    sizes = [f"--batch={B}", f"--text={S}", "--steps=1"]
    train_step.main(["--tiny", "--model", model, *sizes, f"--out={out}"])
    (record,) = json.loads(out.read_text())
    assert record["tokens_per_s"] == pytest.approx(1e3 * B * (P + S) / record["ms"])
    assert 0 < record["mfu"] < 1
    assert record["argument_gib"] * 2**30 > 12 * record["params"]  # weights and two moments
    assert all(abs(loss - math.log(128)) < 1 for loss in record["loss"])
    if model == "moe":
        assert 0 <= record["drop"] < 0.5
        assert record["active_params"] < record["params"]
    head, line, summary = capsys.readouterr().out.splitlines()
    assert "tokens/s" in head and "MFU" in head
    assert line.startswith(record["name"]) and f"{record['ms']:.1f}" in line
    assert "model TFLOP a step" in summary


def test_variants_have_names_of_their_own():
    variants = [
        train_step.Variant(),
        train_step.Variant("moe"),
        train_step.Variant("moe", capacity=2),
        train_step.Variant("moe", "dropless"),
        train_step.Variant(remat="full"),
        train_step.Variant(unroll=4),
        train_step.Variant(overrides=(("model.decoder.moe.group_size", "512"),)),
    ]
    assert len({v.name() for v in variants}) == len(variants)


@pytest.mark.multiprocess
@pytest.mark.peer
def test_sharded_peer_counts_the_tokens_of_all_its_processes():
    sizes = [f"--batch={B}", f"--text={S}", "--repeats=2"]
    model = ["model", "--tiny", "--kind=moe", "--precision=float32"]
    (record,) = peers.run([*model, *sizes, "--gpus=2"], timeout=300)
    assert "error" not in record, record["error"]
    assert record["name"] == "llava_moe_float32_grouped_mm_fsdp2" and record["gpus"] == 2
    patches = 4  # the peer's: 32 x 32 pixels in squares of 16
    assert record["tokens_per_s"] == pytest.approx(1e3 * 2 * B * (patches + S) / record["ms"])
    assert record["params"] == 6_066_832  # of the whole model, though every process holds half
