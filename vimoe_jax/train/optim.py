"""AdamW with warm-up and cosine decay, a rate per part of the model, and frozen parts."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from vimoe_jax.config import Optim
from vimoe_jax.parallel.rules import Axes

# Axes that count copies of a parameter, not its own dimensions.
_COPIES = ("layers", "experts")


def rate(c: Optim, name: str) -> float:
    """The learning rate of a parameter over the peak, by the part it belongs to; 0 is frozen."""
    return {"vision": c.vision_rate, "connector": c.connector_rate, "decoder": c.decoder_rate}[
        name.split(".")[0]
    ]


def decays(axes: Axes) -> bool:
    """Whether weight decay applies: to matrices, not to norms and biases."""
    return sum(axis not in _COPIES for axis in axes) >= 2


def is_bias(name: str) -> bool:
    """Biases of several heads have two axes, and still are biases."""
    return name.rsplit(".", 1)[-1].startswith("b_") or name.endswith("bias")


def schedule(c: Optim, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine to `final_fraction` of it at the last step."""
    warmup = min(c.warmup_steps, steps - 1)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else c.learning_rate,
        c.learning_rate,
        warmup,
        steps,
        c.learning_rate * c.final_fraction,
    )


def make(c: Optim, steps: int, axes: dict[str, Axes]) -> optax.GradientTransformation:
    """The optimizer for a flat dict of trainable parameters with these logical axes.

    Clipping comes first and sees all trainable parameters together. Moments are float32.
    """
    rates = {name: rate(c, name) for name in axes}
    mask = {name: decays(a) and not is_bias(name) for name, a in axes.items()}
    chain = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
    chain += [
        optax.scale_by_adam(c.b1, c.b2, c.eps, mu_dtype=jnp.float32),
        optax.add_decayed_weights(c.weight_decay, mask=mask),
        _scale_each(rates),
        optax.scale_by_learning_rate(schedule(c, steps)),
    ]
    return optax.chain(*chain)


def _scale_each(rates: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies each parameter's update by its own constant."""
    return optax.stateless(lambda updates, _: {n: u * rates[n] for n, u in updates.items()})
