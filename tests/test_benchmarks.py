"""The benchmarks run, on shapes for a CPU, and count what they say they count."""

import json
import math
import subprocess
import sys

import pytest

from benchmarks import (
    peers,
    profiling,
    several_gpus,
    train_step,
    turns,
    upcycling,
    upcycling_report,
)
from benchmarks.upcycling_report import ARMS

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


@pytest.mark.peer
def test_peer_compiled_block_by_block():
    sizes = [f"--batch={B}", f"--text={S}", "--repeats=2"]
    model = ["model", "--tiny", "--kind=dense", "--precision=float32", "--compile", "--blocks"]
    (record,) = peers.run([*model, *sizes], timeout=300)
    assert "error" not in record, record["error"]
    assert record["name"] == "llava_dense_float32_compile_blocks" and record["ms"] > 0


def test_several_devices_beside_one(tmp_path):
    """On simulated devices, chosen by name, with experts chosen evenly."""
    command = ["--tiny", "--gpus=2", "--parts=scaling", "--at_once", "--balanced", "--steps=4"]
    some = ["--only=moe_gather.*(c1|expert2)_noise", "--remat=none", "--unroll=1"]
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.several_gpus", *command, *some, f"--out={out}"],
        cwd=train_step.ROOT, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    alone, shared = json.loads(out.read_text())["scaling"]
    assert (alone["devices"], shared["devices"]) == (1, 2)
    assert alone["efficiency"] == 1 and 0 < shared["efficiency"] != 1
    assert shared["sent_gib"] and not alone["sent_gib"]
    assert max(alone["drop"], shared["drop"]) < 0.2  # an untrained router drops more and more


def test_time_in_collectives_and_beside_computation():
    def event(device, kernel, start, end):
        return profiling.Event(device, kernel, "", start, end)

    events = [
        event("GPU:0", "gemm", 0, 40),
        event("GPU:0", "ncclDevKernel_AllGather", 30, 60),  # 10 of 30 beside the product
        event("GPU:0", "ncclDevKernel_AllReduce", 50, 70),  # 10 of them once more
        event("GPU:0", "gemm", 70, 100),
        event("GPU:1", "gemm", 0, 100),
    ]
    share, overlap = profiling.communication(events)
    assert share == pytest.approx((0.4 + 0) / 2) and overlap == pytest.approx((10 / 40 + 0) / 2)
    assert profiling.computation(events, calls=1) == pytest.approx((70 + 100) / 2 * 1e-6)
    assert profiling.kernels(events, calls=1)[0] == ("gemm", "", pytest.approx(170e-6))


def test_kernels_are_told_apart_by_scope():
    hlo = """
  %loop_add_fusion.3 = f32[2] fusion(%a), metadata={op_name="jit(step)/optimizer/add"}
  ROOT %dot.1 = f32[2] dot(%a, %b), metadata={op_name="jit(step)/transpose(jvp(decoder))/mlp/dot"}
"""
    rows = [
        ("loop_add_fusion_3", "command_buffer", 2.0),
        ("gemm", "dot.1", 3.0),
        ("cudnn", "", 1.0),
    ]
    assert profiling.by_scope(profiling.scopes_of(rows, hlo)) == [
        ("decoder mlp backward", 3.0), ("optimizer", 2.0), ("cudnn", 1.0),
    ]  # fmt: skip


def test_seeds_of_several_files_are_one_study():
    def study(*seeds, train=48, arms=("parent", *ARMS)):
        runs = [{"arm": arm, "seed": seed, "curve": []} for seed in seeds for arm in arms]
        return {"size": {"train": train}, "device": "cpu", "jax": "1", "runs": runs}

    whole = upcycling.merged([study(0, 1), study(2)])
    assert [run["seed"] for run in whole["runs"] if run["arm"] == "copy"] == [0, 1, 2]
    with pytest.raises(SystemExit, match="more than one"):
        upcycling.merged([study(0), study(0)])
    with pytest.raises(SystemExit, match="different sizes"):
        upcycling.merged([study(0), study(1, train=49)])
    with pytest.raises(SystemExit, match="not every seed has every arm"):
        upcycling.merged([study(0), study(1, arms=("parent", "dense"))])  # was cut off


def test_a_report_compares_seeds_with_their_own_parent(tmp_path):
    def curve(end):
        return [
            {"step": i, "flops": i, "seconds": i, "loss": loss, "accuracy": 0.5}
            for i, loss in enumerate((1.0, (1 + end) / 2, end))
        ]

    ends = {"parent": 1.0, "dense": 0.5, "copy": 0.45}
    runs = [
        {"arm": arm, "seed": seed, "parameters": 1, "active": 1,
         "curve": curve((1 + seed) * ends.get(arm, 0.6))}
        for arm in ("parent", *ARMS) for seed in range(3)
    ]  # fmt: skip
    size = {"train": 1, "width": 1, "depth": 1, "batch_size": 1, "parent_steps": 1, "extra": 1}
    text = upcycling_report.report(
        {"size": size, "device": "cpu", "jax": "1", "runs": runs}, tmp_path
    )
    assert "| copy | 1 | 1 | 2 |" in text and "| 0.900 ± 0.000 |" in text
    assert (tmp_path / "upcycling.png").stat().st_size > 10_000


def test_runs_of_few_gpus_are_beside_each_other():
    runs = [
        turns.Run(train_step.Variant(mesh=(("data", n),) if n > 1 else (), steps=i))
        for i, n in enumerate((1, 1, 1, 2, 2, 4, 2))
    ]
    found = [[(first, r.variant.steps) for first, r in turn] for turn in turns.packed(runs, 4)]
    assert found == [[(0, 0), (1, 1), (2, 2)], [(0, 3), (2, 4)], [(0, 5)], [(0, 6)]]


def test_best_flags_are_those_of_all_that_was_tuned():
    def record(name, speed, **more):
        return {"name": name, "tokens_per_s": speed, "devices": 4, **more}

    records = [
        record("a plain", 9), record("b plain", 9), record("a hide", 8), record("b hide", 11),
        record("a combine", 99), {"name": "b combine", "error": "timed out"},
        record("c combine", 99, devices=1) | {"devices": 1},
    ]  # fmt: skip
    assert several_gpus.best(records) == "hide"
