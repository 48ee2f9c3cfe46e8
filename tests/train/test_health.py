"""Bad steps: skipped on the device, counted, remembered over a resumption, given up on."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.model.test_vlm import rows
from vimoe_jax.config.train import Optim, Train
from vimoe_jax.data.batch import Batch
from vimoe_jax.run.state import WINDOW, Health
from vimoe_jax.train import health, optim

STRICT = Train(max_bad_steps=3)
SPIKES = Train(max_bad_steps=3, skip_spikes=6.0)


def judge(losses, c, norms=None, state=None):
    """Which of the steps were skipped, and the health after them."""
    state, skipped = state or Health.create(), []
    examine = jax.jit(lambda h, a, b: health.examine(h, a, b, c))
    for i, loss in enumerate(losses):
        bad, state = examine(
            state, jnp.float32(loss), jnp.float32(1 if norms is None else norms[i])
        )
        skipped.append(bool(bad))
    return skipped, jax.device_get(state)


def calm(count, seed=0):
    return (2 + 0.1 * np.random.default_rng(seed).normal(size=count)).tolist()


def test_what_is_not_finite_is_skipped_and_counted():
    losses = [1.0, math.nan, 1.0, math.inf, 1.0, 1.0]
    norms = [1.0, 1.0, 1.0, 1.0, math.nan, 1.0]
    skipped, state = judge(losses, STRICT, norms)
    assert skipped == [False, True, False, True, True, False]
    assert (state.skipped, state.streak, state.seen) == (3, 0, 3)


def test_after_too_many_in_a_row_nothing_is_updated_any_more():
    skipped, state = judge([1.0, *[math.nan] * 3, 1.0, 1.0], STRICT)
    assert skipped == [False] + [True] * 5
    assert state.streak == 5
    assert health.first_bad(state, 6) == 2


def test_spikes_are_skipped_only_if_asked_for():
    losses = [*calm(100), 4.0, *calm(3, 1)]
    assert judge(losses, STRICT)[0] == [False] * 104
    assert judge(losses, SPIKES)[0] == [False] * 100 + [True] + [False] * 3
    assert not any(judge([*calm(100), 0.0], SPIKES)[0]), "a fall is no spike"


def test_few_losses_judge_nothing():
    assert not any(judge([*calm(WINDOW // 2 - 1), 100.0], SPIKES)[0])


def test_a_loss_that_stays_high_becomes_the_usual_one():
    many = dataclasses.replace(SPIKES, max_bad_steps=100)
    skipped, _ = judge([*calm(128), *[4.0] * 20], many)
    assert skipped[128] and not any(skipped[140:])


def test_the_window_is_the_last_losses():
    """Old ones fall out: after 128 calm losses, the wild ones before do not count."""
    wild = (2 + 3 * np.random.default_rng(1).normal(size=200)).tolist()
    assert not judge([*wild, *calm(100), 4.0], SPIKES)[0][-1]
    assert judge([*wild, *calm(128), 4.0], SPIKES)[0][-1]


def test_stopped_and_continued_judges_the_same():
    losses = [*calm(90), 4.0, math.nan, *calm(60, 1), 4.0]
    whole, end = judge(losses, SPIKES)
    first, middle = judge(losses[:91], SPIKES)
    second, end_again = judge(losses[91:], SPIKES, state=middle)
    assert whole == first + second
    jax.tree.map(np.testing.assert_array_equal, end, end_again)


def test_a_skipped_update_leaves_all_but_the_schedule():
    c = Optim(learning_rate=1.0, warmup_steps=4)
    params = {"decoder.w": jnp.ones((2, 2))}
    tx = optim.make(c, 10, {"decoder.w": ("embed", "mlp")})
    state = tx.init(params)

    @jax.jit
    def step(params, state, grads):
        bad = ~jnp.isfinite(optax.global_norm(grads))
        updates, new = tx.update(grads, state, params)
        new = optax.apply_updates(params, updates), new
        return health.keep_if(bad, (params, state), new)

    _, once = step(params, state, {"decoder.w": jnp.ones((2, 2))})
    kept, after = step(params, once, {"decoder.w": jnp.full((2, 2), jnp.nan)})
    np.testing.assert_array_equal(kept["decoder.w"], params["decoder.w"])

    def of(kind, tree):
        leaves = jax.tree.leaves(tree, is_leaf=lambda s: isinstance(s, kind))
        return next(s for s in leaves if isinstance(s, kind))

    jax.tree.map(
        np.testing.assert_array_equal,
        of(optax.ScaleByAdamState, after),
        of(optax.ScaleByAdamState, once),
    )
    assert int(of(optax.ScaleByScheduleState, after).count) == 2


def test_a_dump_needs_no_pickle(tmp_path):
    batch = rows([[3], [2, 2]])
    batch = batch._replace(weights=np.full_like(batch.weights, np.nan))
    batch = batch._replace(record=np.arange(2), skipped=np.zeros(2, bool), truncated=np.arange(2))
    health.dump(tmp_path / "b.npz", batch, ["một.png", "hai.png"], 7, 3)
    with np.load(tmp_path / "b.npz", allow_pickle=False) as found:
        assert set(found) == {*Batch._fields, "record_id", "step", "seed"}
        assert found["record_id"].tolist() == ["một.png", "hai.png"]
        assert (found["step"], found["seed"]) == (7, 3)
        np.testing.assert_array_equal(found["weights"], batch.weights)


def test_the_complaint_names_step_field_and_file(tmp_path):
    _, state = judge([1.0, *[math.nan] * 4], STRICT)
    message = str(health.complain(state, 5, tmp_path / "b.npz", STRICT))
    assert "from step 2" in message and "config.train.max_bad_steps" in message
    assert str(tmp_path / "b.npz") in message and "\n" not in message


# --- in the loop --------------------------------------------------------------------------------


@pytest.fixture
def start(viscenes_dir, monkeypatch):
    """Opens runs of a dense tests/tiny.py in this process, on one device."""
    from tests import tiny
    from vimoe_jax import config as config_lib
    from vimoe_jax.parallel.mesh import make_mesh
    from vimoe_jax.run import workdir as workdir_lib
    from vimoe_jax.train.guard import Interrupt
    from vimoe_jax.train.loop import Trainer

    one = make_mesh({}, jax.devices()[:1])
    monkeypatch.setattr(workdir_lib, "for_run", lambda *_: one)

    def trainer(workdir, **train):
        c = tiny.get_config()
        c.eval.every, c.model.decoder.depth = 0, 1
        c.model.decoder.moe.num_experts = c.model.connector.moe.num_experts = 0
        for name, value in train.items():
            setattr(c.train, name, value)
        run = workdir_lib.start_run(config_lib.resolve(c.to_dict()), workdir)
        return Trainer(run, Interrupt())

    return trainer


def poison(monkeypatch, bad):
    """Batches of these numbers, from 1 on, have a weight that is no number."""
    from vimoe_jax.data.pipeline import TrainBatches

    plain = TrainBatches.__next__

    def poisoned(self):
        batch = plain(self)
        nan = np.full_like(batch.weights, np.nan)
        return batch._replace(weights=nan) if self.state()["batches"] in bad else batch

    monkeypatch.setattr(TrainBatches, "__next__", poisoned)


def test_a_bad_batch_is_skipped_and_too_many_end_the_run(start, monkeypatch, tmp_path):
    import json

    from vimoe_jax.base.errors import UserError

    poison(monkeypatch, {3, 6, 7, 8, 9})
    trainer = start(tmp_path, steps=10, log_every=2, max_bad_steps=3)
    before = jax.device_get(trainer.state.params)
    with pytest.raises(UserError, match=r"in 3 steps in a row, from step 6 .*bad_batch_6\.npz"):
        trainer.train()
    trainer.checkpoints.close()
    after = jax.device_get(trainer.state.params)
    assert all(np.isfinite(p).all() for p in after.values())
    assert any((after[n] != before[n]).any() for n in before)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = {r["step"]: r["train/skipped_steps"] for r in rows if "train/skipped_steps" in r}
    assert skipped[2] == 0 and skipped[4] == 1 and skipped[6] == 2
    with np.load(tmp_path / "bad_batch_6.npz", allow_pickle=False) as found:
        assert np.isnan(found["weights"]).all() and found["step"] == 6
        ids = [trainer.run.train_source[i].id for i in found["record"].tolist()]
        assert found["record_id"].tolist() == ids
    assert 9 not in trainer.checkpoints.steps(), "a state that was given up on was saved"
