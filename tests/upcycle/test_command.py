"""The command: a dense run becomes an MoE run that the main job continues."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from vimoe_jax.base.errors import UserError
from vimoe_jax.upcycle import __main__ as command

DENSE = Path(__file__).parent / "tiny_dense.py"
EXPERTS = ("--config.model.decoder.moe.num_experts=4", "--config.mesh.data=1")
STEPS = "--config.train.steps=24"


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """A mesh of one of the eight simulated devices, as the commands would find on a laptop."""
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: first)
        yield


@pytest.fixture(scope="module")
def dense(viscenes_dir, tmp_path_factory):
    os.environ["VIMOE_TEST_DATA"] = str(viscenes_dir)
    workdir = tmp_path_factory.mktemp("dense") / "run"
    train(workdir)
    return workdir


def train(workdir, *more):
    """The main job in a process of its own, on one device."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    job = [sys.executable, "-m", "vimoe_jax.main", f"--config={DENSE}", f"--workdir={workdir}"]
    done = subprocess.run([*job, *more], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def upcycle(source, workdir, *more):
    return command.main(
        [f"--source={source}", f"--config={DENSE}", f"--workdir={workdir}", *EXPERTS, *more]
    )


def state(workdir, step):
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore((workdir / "checkpoints" / str(step) / "state").absolute())


def moments(tree):
    """mu and nu, wherever the optimizer's chain has them."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, dict) and "mu" in x)
    return next(x for x in leaves if isinstance(x, dict) and "mu" in x)


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


def test_main_continues_without_a_jump(dense, tmp_path, capsys):
    workdir = tmp_path / "moe"
    assert upcycle(dense, workdir, STEPS) == 0
    printed = capsys.readouterr().out
    moved = float(re.search(r"moved by (\S+) of their norm in evaluation", printed)[1])
    assert moved <= 1e-5
    assert "capacity_factor=1.25 may drop tokens" in printed
    report = json.loads((workdir / "upcycle.json").read_text())
    assert (report["method"], report["step"], report["batches"]) == ("copy", 20, 20)

    train(workdir, *EXPERTS, STEPS, "--config.model.decoder.moe.dispatcher=dropless")
    ours, theirs = losses(workdir), losses(dense)
    assert sorted(ours) == [21, 22, 23, 24]
    assert abs(ours[21] - theirs[20]) < 0.5  # batches differ; untrained it is 6.1, as is theirs[1]
    assert ours[24] < theirs[1]
    assert list((tmp_path / "moe").glob("tokenizer*"))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_main_learns_from_the_parent(dense, tmp_path):
    workdir, fields = tmp_path / "moe", (*EXPERTS, STEPS)
    upcycle(dense, workdir, STEPS)
    parent = (f"--config.train.distill.parent={dense}", "--config.train.distill.weight=1.0")
    train(workdir, *fields, "--config.model.decoder.moe.dispatcher=dropless", *parent)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    apart = [r["train/aux_loss"] for r in rows if "train/aux_loss" in r]
    assert len(apart) == 4 and apart[0] < apart[-1]  # equal at first; then the experts go their way


def test_moments_follow_their_units(dense, tmp_path):
    workdir = tmp_path / "moe"
    upcycle(dense, workdir, STEPS, "--method=drop", "--drop_fraction=0.5")
    old, new = state(dense, 20), state(workdir, 20)
    before, after = moments(old["opt_state"]), moments(new["opt_state"])
    assert after["count"] == before["count"] == 20
    dense_mlp, moe = (f"decoder.blocks.segments.0.{j}.mlp" for j in (0, 1))
    for kind in ("mu", "nu"):
        assert not after[kind][f"{moe}.router"].any()
        ours = after[kind][f"{moe}.experts.w_out"][0]  # (E, F, D)
        theirs = before[kind][f"{dense_mlp}.w_out"][1]
        fresh = new["params"][f"{moe}.experts.w_out"][0] != old["params"][f"{dense_mlp}.w_out"][1]
        fresh = fresh.all(-1)
        assert fresh.sum() == 4 * 16
        np.testing.assert_array_equal(ours, np.where(fresh[..., None], 0, theirs))
        ours = after[kind][f"{moe}.experts.w_in"][0]  # (E, D, 2, F)
        theirs = before[kind][f"{dense_mlp}.w_in"][1]
        np.testing.assert_array_equal(ours, np.where(fresh[:, None, None], 0, theirs))
        np.testing.assert_array_equal(
            after[kind][f"{dense_mlp}.w_in"][0], before[kind][f"{dense_mlp}.w_in"][0]
        )
        np.testing.assert_array_equal(
            after[kind]["decoder.embedding"], before[kind]["decoder.embedding"]
        )


def test_fresh_and_earlier_checkpoint(dense, tmp_path):
    workdir = tmp_path / "moe"
    upcycle(dense, workdir, "--step=10", "--fresh_optimizer", "--config.optim.clip_norm=0")
    new = state(workdir, 0)
    assert int(new["step"]) == 0
    assert not any(np.any(m) for m in jax.tree.leaves(new["opt_state"]))
    np.testing.assert_array_equal(
        new["params"]["decoder.embedding"], state(dense, 10)["params"]["decoder.embedding"]
    )
    assert json.loads((workdir / "upcycle.json").read_text())["batches"] == 10


def test_importance_reads_real_batches(dense, tmp_path, capsys):
    workdir = tmp_path / "moe"
    options = (
        "--config.model.decoder.moe.mlp_dim=20",
        "--config.model.decoder.moe.router=hash",
        "--config.model.decoder.moe.bias_rate=0",
    )
    assert upcycle(dense, workdir, STEPS, "--method=importance", "--samples=6", *options) == 0
    assert "decoder: method importance" in capsys.readouterr().out
    assert state(workdir, 20)["params"]["decoder.blocks.segments.0.1.mlp.experts.w_in"].shape == (
        1,
        4,
        16,
        2,
        20,
    )


BAD = {
    "unknown method": (("--method=coppy",), "--method: must be one of"),
    "a number": (("--noise=much",), "--noise: must be a number"),
    "no such checkpoint": ((STEPS, "--step=7"), "--step: "),
    "another width": ((STEPS, "--config.model.decoder.width=32"), "config.model.decoder.width: 32"),
    "narrow copies": (
        (STEPS, "--config.model.decoder.moe.mlp_dim=16"), "config.model.decoder.moe.mlp_dim: ",
    ),
    "no divisor": (
        (STEPS, "--method=granular", "--config.model.decoder.moe.mlp_dim=12"),
        "config.model.decoder.moe.mlp_dim: ",
    ),
    "K misses shards": (
        (STEPS, "--method=granular", "--config.model.decoder.moe.mlp_dim=8"),
        "config.model.decoder.moe.experts_per_token: 2 experts",
    ),
    "too many units": (
        (STEPS, "--method=importance", "--shared_units=0",
         "--config.model.decoder.moe.mlp_dim=16"), "--shared_units: ",
    ),
    "nothing to do": ((STEPS, "--config.model.decoder.moe.num_experts=0"), "nothing to upcycle"),
    "no steps left": ((), "config.train.steps: 20"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line_and_leave_nothing(dense, tmp_path, name):
    options, message = BAD[name]
    with pytest.raises(UserError, match=re.escape(message)) as e:
        upcycle(dense, tmp_path / "moe", *options)
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_an_moe_source_is_refused(dense, tmp_path):
    upcycle(dense, tmp_path / "moe", STEPS)
    with pytest.raises(UserError, match=r"num_experts: 8, but .* is not dense here"):
        upcycle(
            tmp_path / "moe", tmp_path / "again", STEPS, "--config.model.decoder.moe.num_experts=8"
        )
    with pytest.raises(UserError, match=r"--workdir: .* not empty"):
        upcycle(dense, tmp_path / "moe", STEPS)
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        upcycle(tmp_path / "nothing", tmp_path / "again", STEPS)


def test_an_optimizer_without_adam_is_named():
    from vimoe_jax.upcycle import moments as moments_lib

    params = {"a": np.zeros((3, 4), np.float32)}
    moments_lib.check(optax.adamw(1e-3).init(params), "config.optim")
    for tx in (optax.sgd(0.1, momentum=0.9), optax.adafactor(1e-3)):
        with pytest.raises(UserError, match=r"--fresh_optimizer: needed here: config\.optim"):
            moments_lib.check(tx.init(params), "config.optim")
