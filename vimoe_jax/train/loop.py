"""The training loop: batches in, checkpoints and metrics out; only logs wait for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.progress import Progress
from vimoe_jax.data import pipeline, sources
from vimoe_jax.data.batch import Batch
from vimoe_jax.datasets.records import BadRecord
from vimoe_jax.model.stack import HOST_MEMORY
from vimoe_jax.parallel import distributed
from vimoe_jax.parallel.mesh import to_mesh
from vimoe_jax.run.batches import batch_options, fixed_batches
from vimoe_jax.run.checkpoint import Checkpoints
from vimoe_jax.run.log import MetricWriter
from vimoe_jax.run.state import Health, TrainState
from vimoe_jax.run.workdir import Run
from vimoe_jax.train import distill, numbers
from vimoe_jax.train import health as health_lib
from vimoe_jax.train.guard import Interrupt
from vimoe_jax.train.meter import Meter, since_process_start
from vimoe_jax.train.program import Program
from vimoe_jax.train.step import StepMetrics, make_loss_step
from vimoe_jax.train.watchdog import Watchdog


class Trainer:
    """One run's training: restores, loops, saves."""

    def __init__(self, run: Run, interrupt: Interrupt):
        c = run.config
        self.run, self.config, self.interrupt = run, c, interrupt
        if c.model.remat == "offload":
            _check_host_memory()
        program = Program.create(c, run.blueprint, run.mesh)
        self.checkpoints = Checkpoints(run.workdir / "checkpoints", c.checkpoint)
        restored = self.checkpoints.restore(program.abstract())
        if restored is None:
            restored = program.init(jax.random.key(c.seed)), {"batches": 0, "seconds": 0.0}
        self.state: TrainState = restored[0]
        self.position: dict[str, Any] = restored[1]
        self._begin: dict[str, Any] = pipeline.continued(self.position, c.train.batch_size)
        parent, self._teacher = distill.load_parent(run) or (None, None)
        self._step = program.step(parent)
        self._val_step = jax.jit(make_loss_step(run.blueprint, run.mesh))
        self._val_batches: list[Batch] | None = None
        self._skipped: dict[int, str] = {}

    def train(self) -> bool:
        """Runs to the last step; False if a signal stopped it (the state is saved then).

        Raises:
          UserError: too many bad steps in a row, or too many bad records.
        """
        c, start = self.config, int(jax.device_get(self.state.step))
        progress = Progress(c.train.steps, start)
        if start:
            progress.say(f"resuming at step {start} of {c.train.steps}")
            before = self.position.get("batch_size", c.train.batch_size)
            if before != c.train.batch_size:
                progress.say(
                    f"batches of {c.train.batch_size} rows from here on, of {before} until now: "
                    f"the data go on at row {self._begin['offset']}"
                )
        if start >= c.train.steps:
            return True
        before = self.position.get("time", {})
        self._ahead = self._begin["start"] - start
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(contextlib.closing(MetricWriter(self.run.workdir, start)))
            batches = stack.enter_context(contextlib.closing(self._open_batches()))
            meter = Meter(self.run.train_source, before)
            meter.clock.add("start", since_process_start())
            meter.clock.add("redone", writer.dropped_seconds - sum(before.values()))
            hang = self.run.workdir / f"hang{_process()}.txt"
            watchdog = stack.enter_context(Watchdog(c.train.hang_seconds, hang))
            if c.train.guard_transfers:
                stack.enter_context(jax.transfer_guard("disallow"))
            log = _Log(writer, progress, meter, self._check)
            finished = self._loop(start, batches, log, meter, watchdog)
        self.checkpoints.wait()
        return finished

    def _loop(self, start, batches, log, meter, watchdog) -> bool:
        c, running = self.config, None
        for step in range(start + 1, c.train.steps + 1):
            first, last = step == start + 1, step == c.train.steps
            with meter.clock.spending("data"):
                batch = next(batches)
            self._note_skipped(batch)
            with meter.clock.spending("compile" if first else "steps"):
                on_mesh = to_mesh(batch.for_step(), self.run.mesh)
                self.state, metrics = self._step(self.state, on_mesh, self._teacher)
                # One step is queued behind the one that runs, and no more: the host may be late by
                # a step's time, and its batches do not pile up on the device.
                jax.block_until_ready(metrics if first else running)
            running = metrics
            watchdog.beat()
            if first:
                log.progress.say(f"first step after {since_process_start():.1f} s")
            log.flush()
            meter.count(batch)
            if step % c.train.log_every == 0 or last or first:
                log.add(step, metrics, write=step % c.train.log_every == 0 or last)
            stops = self.interrupt.agreed() and not last
            evaluates = c.eval.every and (step % c.eval.every == 0 or last)
            saves = step % c.checkpoint.every == 0 or last or stops
            if evaluates or saves:
                log.flush()
                self._check(step, metrics.health)
                with watchdog.paused():
                    val_loss = self._evaluate(step, log, meter) if evaluates else None
                    if saves:
                        self._save(batches, meter, val_loss)
            if stops:
                log.progress.say(f"{self.interrupt}: saving step {step}")
                return False
        return True

    def _evaluate(self, step: int, log: _Log, meter: Meter) -> float | None:
        with meter.clock.spending("eval"):
            val_loss = self._validate()
        if val_loss is not None:
            log.writer.write(step, {"val/loss": val_loss})
            log.progress.say(f"step {step}: val/loss {val_loss:.4f}")
        return val_loss

    def _save(self, batches, meter: Meter, val_loss: float | None) -> None:
        with meter.clock.spending("save"), jax.transfer_guard("allow"):
            times = {"seconds": meter.clock.training(), "time": meter.clock.seconds()}
            size = {"batch_size": self.config.train.batch_size}
            self.position = batches.state() | size | times
            self.checkpoints.save(self.state, self.position, val_loss)

    def _check(self, step: int, health: Health) -> None:
        """Gives up after too many bad steps in a row; leaves the first one's batch behind."""
        limits, health = self.config.train, jax.device_get(health)
        if health.streak < limits.max_bad_steps:
            return
        first = health_lib.first_bad(health, step)
        # Batches follow from their number: none needs to be kept for this.
        batches = self._open_batches(first - 1 + self._ahead)
        try:
            batch = next(batches)
        finally:
            batches.close()
        path = self.run.workdir / f"bad_batch_{first}{_process()}.npz"
        ids = [self._record_id(index) for index in batch.record.tolist()]
        health_lib.dump(path, batch, ids, first, self.config.seed)
        raise health_lib.complain(health, step, path, limits)

    def _record_id(self, index: int) -> str:
        try:
            return self.run.train_source[index].id
        except BadRecord:
            return f"bad record {index}"

    def _open_batches(self, start: int | None = None):
        """From this batch on; if not given, from where the checkpoint left off."""
        c = self.config
        begin: dict[str, Any] = self._begin | ({} if start is None else {"start": start})
        return pipeline.train_batches(
            self.run.train_source,
            self.run.tokenizer,
            **batch_options(self.config),
            seed=c.seed,
            **begin,
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

    def _note_skipped(self, batch: Batch) -> None:
        """Names bad records as they are met, and gives up beyond the configured number."""
        for index in batch.record[batch.skipped].tolist():
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


class _Log:
    """Numbers of steps, asked for at once and read a step later: the device does not wait.

    Args:
      check: told each logged step's health.
    """

    def __init__(
        self,
        writer: MetricWriter,
        progress: Progress,
        meter: Meter,
        check: Callable[[int, Health], None],
    ):
        self.writer, self.progress = writer, progress
        self._meter, self._check = meter, check
        self._pending: tuple[int, StepMetrics, bool] | None = None

    def add(self, step: int, metrics: StepMetrics, *, write: bool) -> None:
        """Begins to fetch a step's metrics; `write` or only show them."""
        for array in jax.tree.leaves(metrics):
            array.copy_to_host_async()
        self._pending = step, metrics, write

    def flush(self) -> None:
        """Writes and shows what was added last, if that was not done yet."""
        if self._pending is None:
            return
        (step, metrics, write), self._pending = self._pending, None
        metrics = jax.device_get(metrics)
        logged = numbers.of_step(metrics) | self._meter.rates()
        if write:
            self.writer.write(step, logged)
        self.progress.show(step, numbers.line(logged))
        self._check(step, metrics.health)


def _check_host_memory() -> None:
    kinds = {m.kind for m in jax.local_devices()[0].addressable_memories()}
    if HOST_MEMORY not in kinds:
        raise UserError(
            f"config.model.remat: 'offload' needs memory of kind {HOST_MEMORY}; this device has "
            f"{', '.join(sorted(kinds))}"
        )


def _process() -> str:
    """Part of a file name, where several processes write into one workdir."""
    return f".{jax.process_index()}" if distributed.several() else ""
