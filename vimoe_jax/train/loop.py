"""The training loop: batches in, checkpoints and metrics out; only logs wait for the device."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import jax
import numpy as np

from vimoe_jax.data import pipeline, sources
from vimoe_jax.data.mixture import Mixture
from vimoe_jax.errors import UserError
from vimoe_jax.model.tokens import TokenKind
from vimoe_jax.moe.stats import MoEStats
from vimoe_jax.parallel.mesh import to_mesh
from vimoe_jax.progress import Progress
from vimoe_jax.train import optim
from vimoe_jax.train import state as state_lib
from vimoe_jax.train.checkpoint import Checkpoints
from vimoe_jax.train.guard import Interrupt
from vimoe_jax.train.log import MetricWriter
from vimoe_jax.train.setup import Run
from vimoe_jax.train.state import TrainState
from vimoe_jax.train.step import StepMetrics, make_loss_step, make_train_step

# What of a batch the compiled step reads; the rest is for the host.
STEP_KEYS = ("image", "tokens", "targets", "weights", "segments", "positions")


class Trainer:
    """One run's training: restores, loops, saves."""

    def __init__(self, run: Run, interrupt: Interrupt):
        c = run.config
        self.run, self.config, self.interrupt = run, c, interrupt
        axes = run.blueprint.axes()
        trainable = {n for n in axes if optim.rate(c.optim, n) > 0} - run.blueprint.buffers()
        tx = optim.make(c.optim, c.train.steps, {n: axes[n] for n in sorted(trainable)})
        where = state_lib.shardings(run.blueprint, tx, trainable, run.mesh)
        self.checkpoints = Checkpoints(run.workdir / "checkpoints", c.checkpoint)
        self.state, self.position = self._restore_or_init(tx, trainable, where)
        self._step = jax.jit(
            make_train_step(c, run.blueprint, tx, run.mesh),
            donate_argnums=0,
            out_shardings=(where, None),
        )
        self._val_step = jax.jit(make_loss_step(run.blueprint, run.mesh))
        self._val_batches: list[dict[str, np.ndarray]] | None = None
        self._skipped: dict[int, str] = {}

    def _restore_or_init(self, tx, trainable, where) -> tuple[TrainState, dict[str, Any]]:
        """A checkpoint if there is one, else random parameters."""

        def create(key: jax.Array) -> TrainState:
            return state_lib.create(self.run.blueprint.init(key), tx, trainable)

        key = jax.random.key(self.config.seed)
        shapes = jax.tree.map(
            lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at),
            jax.eval_shape(create, key),
            where,
        )
        restored = self.checkpoints.restore(shapes)
        if restored is not None:
            return restored
        return jax.jit(create, out_shardings=where)(key), {"batches": 0, "seconds": 0.0}

    def train(self) -> bool:
        """Runs to the last step; False if a signal stopped it (the state is saved then)."""
        c, start = self.config, int(self.state.step)
        progress = Progress(c.train.steps, start)
        if start:
            progress.say(f"resuming at step {start} of {c.train.steps}")
        if start >= c.train.steps:
            return True
        writer = MetricWriter(self.run.workdir, start)
        batches = self._open_batches()
        meter = _Meter(self.run.blueprint.config, self.run.train_source, self.position["seconds"])
        try:
            finished = self._loop(start, batches, writer, progress, meter)
        finally:
            batches.close()
            writer.close()
        self.checkpoints.wait()
        return finished

    def _loop(self, start, batches, writer, progress, meter) -> bool:
        c = self.config
        for step in range(start + 1, c.train.steps + 1):
            batch = next(batches)
            self._note_skipped(batch)
            meter.count(batch)
            on_mesh = to_mesh({k: batch[k] for k in STEP_KEYS}, self.run.mesh)
            self.state, metrics = self._step(self.state, on_mesh)
            last, val_loss = step == c.train.steps, None
            if step == start + 1:
                jax.block_until_ready(metrics)
                progress.say(f"first step after {meter.since_process_start():.1f} s")
            if step % c.train.log_every == 0 or last or step == start + 1:
                numbers = _numbers(jax.device_get(metrics)) | meter.rates()
                if step % c.train.log_every == 0 or last:
                    writer.write(step, numbers)
                progress.show(step, _line(numbers))
            if c.eval.every and (step % c.eval.every == 0 or last):
                with meter.paused():
                    val_loss = self._validate()
                if val_loss is not None:
                    writer.write(step, {"val/loss": val_loss})
                    progress.say(f"step {step}: val/loss {val_loss:.4f}")
            stops = self.interrupt.agreed() and not last
            if step % c.checkpoint.every == 0 or last or stops:
                self.position = batches.state() | {"seconds": meter.seconds()}
                self.checkpoints.save(self.state, self.position, val_loss)
            if stops:
                progress.say(f"{self.interrupt}: saving step {step}")
                return False
        return True

    def _open_batches(self):
        c = self.config
        return pipeline.train_batches(
            self.run.train_source,
            self.run.tokenizer,
            **batch_options(self.run),
            seed=c.seed,
            start=self.position["batches"],
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=c.data.workers,
            max_questions=c.data.max_questions,
            vary_prompts=c.data.vary_prompts,
            cache_images=c.data.cache_images,
        )

    def _validate(self) -> float | None:
        """Mean loss over the first batches of the validation split, always the same ones."""
        c = self.config
        if self._val_batches is None:
            if not c.data.val_split:
                return None
            source = sources.open_validation(c.data, quiet=True)
            self._val_batches = fixed_batches(self.run, source, c.eval.val_batches)
        params = self.state.all_params()
        sums = [self._val_step(params, to_mesh(b, self.run.mesh)) for b in self._val_batches]
        sums = jax.device_get(sums)
        return float(sum(s.loss for s in sums) / max(sum(s.weight for s in sums), 1))

    def _note_skipped(self, batch: dict[str, np.ndarray]) -> None:
        """Names bad records as they are met, and gives up beyond the configured number."""
        for index in batch["record"][batch["skipped"]].tolist():
            if index in self._skipped:
                continue
            reason = pipeline.describe(self.run.train_source, index)
            self._skipped[index] = reason
            if len(self._skipped) > self.config.data.max_skipped:
                raise UserError(
                    f"{reason} ({len(self._skipped)} bad records; "
                    f"config.data.max_skipped = {self.config.data.max_skipped})"
                )
            Progress(0, 0).say(f"warning: skipped {reason}", everywhere=True)


def batch_options(run: Run) -> dict[str, Any]:
    """How rows are cut, for training and for validation alike."""
    c = run.config
    return dict(
        image_size=c.model.image_size,
        text_length=c.data.text_length,
        batch_size=c.train.batch_size,
        resize=c.data.resize,
    )


def fixed_batches(run: Run, source: Any, count: int) -> list[dict[str, np.ndarray]]:
    """The first batches of a source in a fixed order, at most one pass."""
    options = batch_options(run)
    count = min(count, -(-len(source) // options["batch_size"]))
    batches = pipeline.train_batches(
        source,
        run.tokenizer,
        **options,
        seed=0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    try:
        return [{k: b[k] for k in STEP_KEYS} for _, b in zip(range(count), batches, strict=False)]
    finally:
        batches.close()


class _Meter:
    """Wall time, pictures and tokens since the last look, and a mixture's parts' shares."""

    def __init__(self, model: Any, source: Mixture, seconds: float):
        self._source, self._drawn = source, Counter()
        self._patches = (model.image_size // model.patch_size) ** 2
        self._before, self._start = seconds, time.monotonic()
        self._looked, self._pictures, self._tokens = self._start, 0, 0
        self._pause = 0.0

    def count(self, batch: dict[str, np.ndarray]) -> None:
        pictures = int((~batch["skipped"]).sum()) * jax.process_count()
        text = int((batch["segments"] > 0).sum()) * jax.process_count()
        if len(self._source.parts) > 1:
            self._drawn.update(self._source.shares(batch["record"].tolist()))
        self._pictures += pictures
        self._tokens += text + pictures * self._patches

    def rates(self) -> dict[str, float]:
        now = time.monotonic()
        seconds = max(now - self._looked - self._pause, 1e-9)
        rates = {
            "train/examples_per_second": self._pictures / seconds,
            "train/tokens_per_second": self._tokens / seconds,
        }
        total = max(self._drawn.total(), 1)
        rates |= {f"train/share/{label}": n / total for label, n in self._drawn.items()}
        self._looked, self._pictures, self._tokens, self._pause = now, 0, 0, 0.0
        self._drawn.clear()
        return rates

    def paused(self) -> _Pause:
        """A context whose time does not count in the rates."""
        return _Pause(self)

    def seconds(self) -> float:
        """Of training, over all resumptions."""
        return self._before + time.monotonic() - self._start

    def since_process_start(self) -> float:
        import psutil

        return time.time() - psutil.Process().create_time()


class _Pause:
    def __init__(self, meter: _Meter):
        self._meter = meter

    def __enter__(self):
        self._start = time.monotonic()

    def __exit__(self, *_):
        self._meter._pause += time.monotonic() - self._start


def _numbers(m: StepMetrics) -> dict[str, float | list[float]]:
    """What is logged of a step."""
    weight = max(float(m.tokens.weight), 1.0)
    numbers: dict[str, float | list[float]] = {
        "train/loss": float(m.tokens.loss) / weight,
        "train/accuracy": float(m.tokens.correct) / weight,
        "train/aux_loss": float(m.aux_loss),
        "train/grad_norm": float(m.grad_norm),
        "train/learning_rate": float(m.learning_rate),
    }
    for part, segments in m.moe.items():
        numbers |= {f"train/moe/{part}/{n}": v for n, v in _moe_numbers(segments).items()}
    return numbers


def _moe_numbers(segments: list[list[MoEStats | None]]) -> dict[str, float | list[float]]:
    """What a part's MoE layers report.

    Fractions and entropy are over the choices (or tokens) of all its layers together; the maximal
    load and the losses are means over layers. `…_by_layer` lists one value a layer, first to last.
    """
    layers = _in_order(segments)
    total = jax.tree.map(lambda a: a.sum(0), layers)
    drops, loads = total.drop_fraction_by_kind(), layers.max_load()
    numbers: dict[str, float | list[float]] = {"drop_fraction": float(total.drop_fraction())}
    for kind in TokenKind:
        if total.tokens[kind] > 0:
            numbers[f"drop_fraction_{kind.name.lower()}"] = float(drops[kind])
    numbers |= {
        "unserved_fraction": float(total.unserved_fraction()),
        "load_max_over_mean": float(np.mean(loads)),
        "router_entropy": float(total.mean_entropy()),
    }
    numbers |= {f"{name}_loss": float(np.mean(loss)) for name, loss in layers.losses.items()}
    if len(loads) > 1:
        by_layer = {"drop_fraction": layers.drop_fraction(), "load_max_over_mean": loads}
        for name, values in by_layer.items():
            numbers[f"{name}_by_layer"] = [round(v, 4) for v in np.asarray(values).tolist()]
    return numbers


def _in_order(segments: list[list[MoEStats | None]]) -> MoEStats:
    """Reports nested as a `Stack` nests them, as one with a leading axis over all its layers."""
    units = [[r for r in segment if r is not None] for segment in segments]

    def merge(*unit: np.ndarray) -> np.ndarray:
        return np.stack(unit, 1).reshape(-1, *unit[0].shape[1:])

    merged = [jax.tree.map(merge, *unit) for unit in units if unit]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *merged)


def _line(numbers: dict[str, Any]) -> str:
    text = (
        f"loss {numbers['train/loss']:.4f} · {numbers['train/examples_per_second']:.1f} examples/s"
        f" · {numbers['train/tokens_per_second']:.0f} tokens/s"
    )
    drops = [v for n, v in numbers.items() if n.endswith("/drop_fraction")]
    loads = [v for n, v in numbers.items() if n.endswith("/load_max_over_mean")]
    return text + (f" · {max(drops):.1%} dropped, load {max(loads):.2f}× mean" if drops else "")
