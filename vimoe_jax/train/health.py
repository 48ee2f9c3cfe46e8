"""Bad updates: found and skipped on the device, counted, and given up on after too many in a row.

A step is bad if its loss or the norm of its gradients is not finite, or, with `train.skip_spikes`,
if its loss is far above those before it. Parameters, router biases and the optimizer's state then
stay as they were. `TrainState.step` goes on, and with it data, random keys and the learning rate's
schedule: a run of N steps meets N batches whatever was skipped.

All of it is part of the compiled step and of the checkpoint, so that a resumed run skips the same
steps. The host learns of it when it reads a step's numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import replacing
from vimoe_jax.config.train import Train
from vimoe_jax.data.batch import Batch
from vimoe_jax.run.state import WINDOW, Health


def examine(
    health: Health, loss: Float[Array, ""], grad_norm: Float[Array, ""], c: Train
) -> tuple[Bool[Array, ""], Health]:
    """Judges a step.

    A spike does enter the window: a loss that stays high is soon the usual one. After
    `max_bad_steps` bad steps in a row every further one counts as bad, so that nothing changes
    until the host hears of it.

    Args:
      health: before this step.
      loss: what was differentiated.
      grad_norm: of all gradients together, before clipping.
      c: the limits.

    Returns:
      Whether the update must be skipped, and the health after this step.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    bad = ~finite | (health.streak >= c.max_bad_steps)
    if c.skip_spikes:
        bad |= _spike(health, loss, c.skip_spikes)
    place = health.seen % WINDOW
    losses = health.losses.at[place].set(jnp.where(finite, loss, health.losses[place]))
    return bad, Health(
        losses=losses,
        seen=health.seen + finite,
        skipped=health.skipped + bad,
        streak=jnp.where(bad, health.streak + 1, 0),
    )


def _spike(health: Health, loss: jax.Array, sigmas: float) -> Bool[Array, ""]:
    known = (jnp.arange(WINDOW) < health.seen).astype(jnp.float32)
    count = jnp.maximum(known.sum(), 1)
    mean = (health.losses * known).sum() / count
    deviation = jnp.sqrt((jnp.square(health.losses - mean) * known).sum() / count)
    return (health.seen >= WINDOW // 2) & (loss > mean + sigmas * deviation)


def keep_if(bad: Bool[Array, ""], old: Any, new: Any) -> Any:
    """`old` where the step was bad, else `new`; counters of learning rate schedules go on."""

    def choose(old: Any, new: Any) -> Any:
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jax.tree.map(lambda a, b: jnp.where(bad, a, b), old, new)

    return jax.tree.map(
        choose, old, new, is_leaf=lambda s: isinstance(s, optax.ScaleByScheduleState)
    )


def dump(path: Path, batch: Batch, ids: list[str], step: int, seed: int) -> None:
    """Writes this process's rows of a batch for `numpy.load`: arrays only, nothing pickled.

    Args:
      path: ends in `.npz`.
      batch: as the pipeline gave it.
      ids: of the records, a row each.
      step: that met the batch.
      seed: of the run; batches and, with the step, random keys follow from it.
    """
    facts = {"step": np.int64(step), "seed": np.int64(seed), "record_id": np.array(ids, np.str_)}
    with replacing(path, "wb") as f:
        np.savez(f, allow_pickle=False, **batch._asdict(), **facts)


def complain(health: Health, step: int, path: Path, c: Train) -> UserError:
    """What ends a run whose updates were skipped too often in a row.

    Args:
      health: as read after `step`.
      step: the last one done.
      path: where the first of the bad batches was written.
      c: the limits.
    """
    what = "was not finite or a spike" if c.skip_spikes else "was not finite"
    return UserError(
        f"loss or gradient {what} in {c.max_bad_steps} steps in a row, from step "
        f"{first_bad(health, step)} (config.train.max_bad_steps); its batch is in {path}"
    )


def first_bad(health: Health, step: int) -> int:
    """The step at which the streak that ended with `step` began."""
    return step - int(health.streak) + 1
