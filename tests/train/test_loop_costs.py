"""The benchmark of the loop's costs counts what it says; times are told by kind."""

import json
import time

import numpy as np
import pytest

from vimoe_jax.train.meter import KINDS, Clock


def test_time_is_the_steps_unless_claimed():
    clock = Clock({"steps": 5.0, "save": 1.0})
    time.sleep(0.05)
    with clock.spending("eval"):
        time.sleep(0.1)
        with clock.spending("data"):
            time.sleep(0.15)
        time.sleep(0.05)
    clock.add("redone", 3.0)
    clock.add("redone", -8.0)  # clocks that disagree take nothing back
    spent = clock.seconds()
    assert list(spent) == list(KINDS)
    assert 5.05 <= spent["steps"] < 5.2
    assert 0.15 <= spent["eval"] < 0.3
    assert 0.15 <= spent["data"] < 0.3
    assert (spent["save"], spent["redone"]) == (1.0, 3.0)
    assert clock.training() == pytest.approx(sum(spent.values()) - 3.0, abs=0.1)


def test_an_error_ends_what_was_claimed():
    clock = Clock({})
    with pytest.raises(RuntimeError), clock.spending("save"):
        raise RuntimeError
    before = clock.seconds()["save"]
    time.sleep(0.05)
    assert clock.seconds()["save"] == before


def test_dropped_lines_tell_the_time_that_is_done_again(tmp_path):
    from vimoe_jax.run.log import MetricWriter

    rows = [
        {"step": 2, "time/steps": 2.0, "time/start": 1.0},
        {"step": 4, "time/steps": 4.0, "time/start": 1.0},
        {"step": 6, "time/steps": 6.0, "time/start": 1.0},
        {"step": 6, "val/loss": 1.0},
    ]
    text = "".join(json.dumps(r) + "\n" for r in rows) + '{"step": 7, "time/st'
    (tmp_path / "metrics.jsonl").write_text(text)
    writer = MetricWriter(tmp_path, 4)
    writer.close()
    assert writer.dropped_seconds == 7.0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    again = MetricWriter(tmp_path, 4)
    again.close()
    assert again.dropped_seconds == 0


def test_the_benchmark_measures_all_three(monkeypatch, capsys):
    from benchmarks import loop_costs

    class Trainer:
        """Steps that sleep; a line or a save takes longer."""

        def __init__(self, config):
            self.config, self.state = config, self
            self.step, self.saves, self.lines = 0, [], []
            self.checkpoints = self
            self._step = lambda: None

        def _open_batches(self, *_):
            return loop_costs.Constant({"image": np.zeros(1)})

        def close(self):
            pass

        def train(self):
            while self.step < self.config.train.steps:
                self._step()
                self.step += 1
                time.sleep(0.002)
                if self.step % self.config.train.log_every == 0:
                    time.sleep(0.01)
                    self.lines.append(self.step)
                if self.step % self.config.checkpoint.every == 0:
                    time.sleep(0.1)
                    self.saves.append(self.step)

    made = []
    monkeypatch.setattr(
        loop_costs, "runner", lambda c, workdir: made.append(Trainer(c)) or made[-1]
    )
    loop_costs.main(["--rounds=2", "--steps=40", "--tiny"])
    record = json.loads(capsys.readouterr().out)
    assert record["logged"] > 0.03 and record["saved"] > 0.3
    assert len(made[0].saves) >= 2 and made[0].lines
    rounds = [s // 42 for s in made[0].saves if s > 126]
    assert rounds == [5, 8], "each saved round saves once, after the warm-up"
