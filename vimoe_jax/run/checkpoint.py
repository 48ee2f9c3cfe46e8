"""Checkpoints: asynchronous, newest and best kept, the position in the data inside.

`DIR/checkpoints/STEP/` holds `state` (all arrays of the `TrainState`), `data` (JSON: how many
batches were consumed, the validation loss if there is one) and `manifest.json` (sizes and checksums
of all files). A save is atomic: a step directory either is whole or does not exist.
docs/checkpoints.md has the guarantees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from vimoe_jax.base.errors import UserError
from vimoe_jax.config.train import Checkpoint
from vimoe_jax.run import manifest
from vimoe_jax.run.state import Health, TrainState
from vimoe_jax.run.workdir import Run

_METRIC = "val/loss"
# Where checkpoints go that are not kept: one that is half deleted must not look like one.
_REMOVED = "removed"
_UNFINISHED = ocp.path.atomicity.TMP_DIR_SUFFIX


class Checkpoints:
    """The checkpoints of one workdir.

    On several hosts every method is called by all of them, and all see one file system.

    Args:
      directory: made if it does not exist.
      c: which ones are kept.
      read_only: writes and removes nothing, also while a run is saving here.
    """

    def __init__(self, directory: Path, c: Checkpoint, *, read_only: bool = False):
        self.directory = directory.absolute()
        self._read_only = read_only
        self._saving = 0
        self._losses: dict[int, float | None] = {}  # validation losses by step
        # Failures of the background thread come back from `wait` and the next `save`; Orbax also
        # logs them, with a traceback.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        keep = [policies.LatestN(c.keep_last), _Best(c.keep_best, self._val_loss)]
        self._sweep()
        self._sweep(f"*{_UNFINISHED}*")  # what killed runs left half-written
        with _clear_errors(self.directory):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(keep),
                    enable_async_checkpointing=True,
                    # Called in the background, by the first host, before the directory gets its
                    # name: the manifest and the checkpoint come into being together.
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=self._seal,
                        # Else a disk without room for a directory is noticed minutes later.
                        create_directories_asynchronously=False,
                    ),
                    todelete_subdir=_REMOVED,
                    read_only=read_only,
                ),
            )

    def _seal(self) -> None:
        """Adds the manifest to the directory that is being written."""
        self._sweep()
        manifest.write(self.directory / f"{self._saving}{_UNFINISHED}")

    def _sweep(self, pattern: str = _REMOVED) -> None:
        """Deletes what is no longer kept, or what matches another pattern."""
        if jax.process_index() == 0 and not self._read_only:
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def save(
        self, state: TrainState, data: Mapping[str, float], val_loss: float | None = None
    ) -> None:
        """Starts writing; returns once the arrays are copied off the device.

        Args:
          state: what to save, at its own step.
          data: position in the data.
          val_loss: if it was taken at this very step, the checkpoint takes part in "best".

        Raises:
          UserError: this or an earlier save failed (disk full, no permission).
        """
        step = int(jax.device_get(state.step))
        if step in self._manager.all_steps():
            return
        with _clear_errors(self.directory):
            self._manager.wait_until_finished()  # `save` would; `_saving` is still the earlier one
            self._saving = step
            self._losses[step] = val_loss
            if val_loss is not None:
                data = {**data, _METRIC: val_loss}
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
                ),
            )

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: a save failed.
        """
        with _clear_errors(self.directory):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._sweep()

    def close(self) -> None:
        """Waits, and ends the manager's threads."""
        with _clear_errors(self.directory):
            self._manager.close()
            self._sweep()

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of lowest validation loss, or the newest if none was measured."""
        steps = self.steps()
        scored = [(loss, s) for s in steps if (loss := self._val_loss(s)) is not None]
        return min(scored)[1] if scored else (steps[-1] if steps else None)

    def _val_loss(self, step: int) -> float | None:
        """What was measured at a checkpoint; None if nothing was, or if it is damaged."""
        # Orbax would keep it too, but one damaged file of its would make all unreadable.
        if step not in self._losses:
            try:
                data = json.loads((self.directory / str(step) / "data/metadata").read_bytes())
                self._losses[step] = float(data[_METRIC])
            except (OSError, ValueError, KeyError, TypeError):
                self._losses[step] = None
        return self._losses[step]

    def restore(
        self, shapes: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, int]] | None:
        """Reads a checkpoint onto the devices that `shapes` names.

        Args:
          shapes: `jax.ShapeDtypeStruct`s with shardings.
          step: which one; if not given, the newest that can be read. Newer ones that cannot are
            moved to `checkpoints.unreadable/`, with a warning.

        Returns:
          The state and the position in the data, or None if there is no checkpoint.

        Raises:
          UserError: the named checkpoint, or every checkpoint, is unreadable.
        """
        steps = [step] if step is not None else self.steps()[::-1]
        broken = []
        for s in steps:
            restored, fault = self._read(s, shapes)
            if fault:
                broken.append(f"{self.directory / str(s)}: {fault}")
                continue
            if jax.process_index() == 0:
                for message in broken:
                    print(
                        f"warning: unreadable checkpoint {message}; using step {s}", file=sys.stderr
                    )
            self._set_aside([n for n in steps if n > s])
            return restored
        if broken:
            raise UserError(f"no readable checkpoint: {broken[0]}")
        return None

    def _read(self, step: int, shapes: TrainState) -> tuple[Any, str | None]:
        """A checkpoint's state and data, or why it cannot be read, the same on all hosts."""
        if fault := self._fault(step):
            return None, fault
        try:
            items, found = shapes.__dict__, _tree(self.directory / str(step) / "state")
            if "opt_state" not in found:
                return self._begun(step, shapes), _agree(None)
            if "health" not in found:  # earlier versions
                items = {n: item for n, item in items.items() if n != "health"}
            args = ocp.args.Composite(
                state=ocp.args.StandardRestore(items), data=ocp.args.JsonRestore()
            )
            restored = self._manager.restore(step, args=args)
            healthy = jax.tree.map(
                lambda x, s: jax.device_put(x, s.sharding), Health.create(), shapes.health
            )
            state = TrainState(**{"health": healthy, **restored["state"]})
            data = {n: v for n, v in restored["data"].items() if n != _METRIC}
            return (state, data), _agree(None)
        except Exception as e:  # Orbax and TensorStore raise many kinds, some bare
            return None, _agree(_short(e))

    def _begun(self, step: int, shapes: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state that loaded parameters (`hf.load`) start: all statistics and moments are 0."""
        params = self.read_params(shapes.all_params(), step)
        put = functools.partial(jax.tree.map, lambda x, s: jax.device_put(x, s.sharding))
        state = TrainState(
            step=put(jnp.zeros((), jnp.int32), shapes.step),
            params={n: params[n] for n in shapes.params},
            frozen={n: params[n] for n in shapes.frozen},
            opt_state=jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes.opt_state
            ),
            health=put(Health.create(), shapes.health),
        )
        return state, {"batches": 0, "seconds": 0.0}

    def _fault(self, step: int) -> str | None:
        """What its manifest says against a checkpoint; each host looks at its share of files."""
        try:
            manifest.check(self.directory / str(step), jax.process_index(), jax.process_count())
        except manifest.Damaged as e:
            return _agree(str(e))
        return _agree(None)

    def _set_aside(self, steps: list[int]) -> None:
        """Renames unreadable checkpoints, so that the run can write these steps again."""
        for step in steps if jax.process_index() == 0 else ():
            target = self.directory.parent / f"{self.directory.name}.unreadable" / str(step)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            shutil.move(self.directory / str(step), target)
            self._losses.pop(step, None)
        if steps:
            _agree(None)  # nobody looks before all are moved
            self._manager.reload()

    def read_params(self, shapes: dict[str, Any], step: int | None = None) -> dict[str, jax.Array]:
        """Only the parameters of a checkpoint, trainable and frozen together (for evaluation).

        Raises:
          UserError: there is no checkpoint, or it cannot be read or is another model's.
        """
        step = step if step is not None else self.best_step()
        if step is None:
            raise UserError(f"{self.directory}: no checkpoint here")
        path = self.directory / str(step) / "state"
        if fault := self._fault(step):
            raise UserError(f"{self.directory / str(step)}: {fault}")
        try:
            found = _tree(path)
            with ocp.PyTreeCheckpointer() as reader:
                groups = {
                    g: {n: shapes[n] for n in found.get(g) or {}} for g in ("params", "frozen")
                }
                restored = reader.restore(
                    path,
                    ocp.args.PyTreeRestore(
                        item=groups,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(groups),
                        partial_restore=True,
                    ),
                )
        except KeyError as e:
            raise UserError(f"{path}: parameter {e} is not one of this configuration") from None
        except Exception as e:
            raise UserError(f"{self.directory / str(step)}: {_short(e)}") from None
        params = {**restored["params"], **restored["frozen"]}
        if missing := sorted(set(shapes) - set(params)):
            raise UserError(f"{path}: has no parameter {missing[0]!r} ({len(missing)} missing)")
        return params


@dataclasses.dataclass
class _Best(policies.PreservationPolicy):
    """Keeps the checkpoints of lowest loss; `loss_of` knows it by step."""

    count: int
    loss_of: Callable[[int], float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint, whether it is kept."""
        scored = [(loss, c.step) for c in checkpoints if (loss := self.loss_of(c.step)) is not None]
        best = {step for _, step in sorted(scored)[: self.count]}
        return [c.step in best for c in checkpoints]


def load_params(
    run: Run, step: int | None = None, dtype: jax.typing.DTypeLike | None = None
) -> dict[str, jax.Array]:
    """The parameters of a `setup.Run`'s checkpoint, on its mesh.

    Args:
      run: on whatever mesh and number of hosts.
      step: the best one if not given.
      dtype: of the floating-point parameters, whatever the checkpoint holds them in; float32 if
        not given.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    directory = run.workdir / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; was this run trained?")
    shapes = run.blueprint.abstract(run.mesh)
    if dtype is not None:
        shapes = {
            n: s.update(dtype=dtype) if jnp.issubdtype(s.dtype, jnp.floating) else s
            for n, s in shapes.items()
        }
    checkpoints = Checkpoints(directory, run.config.checkpoint, read_only=True)
    if step is not None and step not in checkpoints.steps():
        have = ", ".join(map(str, checkpoints.steps())) or "none"
        raise UserError(f"--step: {directory} has no checkpoint {step}; it has {have}")
    try:
        return checkpoints.read_params(shapes, step)
    finally:
        checkpoints.close()


def best_step(run: Run) -> int:
    """The step of a run's checkpoint with the lowest validation loss, or its newest.

    Raises:
      UserError: there is none.
    """
    directory = run.workdir / "checkpoints"
    checkpoints = Checkpoints(directory, run.config.checkpoint, read_only=True)
    try:
        step = checkpoints.best_step()
    finally:
        checkpoints.close()
    if step is None:
        raise UserError(f"{directory}: no checkpoint here")
    return step


def _tree(path: Path) -> dict[str, Any]:
    """What a checkpoint's item holds, without its arrays."""
    with ocp.PyTreeCheckpointer() as reader:
        return reader.metadata(path).item_metadata.tree


def _agree(fault: str | None) -> str | None:
    """The fault, if any host has one; hosts that have none learn that another has."""
    if jax.process_count() == 1:
        return fault
    faulty = np.flatnonzero(multihost_utils.process_allgather(np.array(fault is not None)))
    if not faulty.size:
        return None
    return fault or f"cannot be read by process {faulty[0]}"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "…"


@contextlib.contextmanager
def _clear_errors(directory: Path) -> Iterator[None]:
    """Turns what the file system refuses into one line."""
    try:
        yield
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"{e.filename or directory}: {e.strerror or e}") from None
    except Exception as e:
        # TensorStore reports the file system's errors as text inside ValueErrors.
        free = shutil.disk_usage(directory).free if directory.exists() else 0
        text = str(e)
        if "No space left" in text or "ENOSPC" in text or free < 1 << 20:
            raise UserError(
                f"{directory}: disk full ({errno.errorcode[errno.ENOSPC]}); "
                "earlier checkpoints are whole; free some space and run the same command again"
            ) from None
        raise UserError(f"{directory}: checkpoint not written: {_short(e)}") from None
