"""AdamW or Adafactor: warm-up and cosine decay, a rate per part of the model, frozen parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float

from vimoe_jax.config.parts import part_name
from vimoe_jax.config.train import Optim
from vimoe_jax.parallel.parameters import _COPIES, decays, is_bias
from vimoe_jax.parallel.rules import Axes

Tensors = dict[str, jax.Array]


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

    Clipping comes first and sees all trainable parameters together.
    """
    rates = {name: c.rate(part_name(name)) for name in axes}
    mask = {name: decays(a) and not is_bias(name) for name, a in axes.items()}
    chain = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
    chain += [
        *(_adam(c) if c.name == "adamw" else _adafactor(c, axes)),
        optax.add_decayed_weights(c.weight_decay, mask=mask),
        _scale_each(rates),
        optax.scale_by_learning_rate(schedule(c, steps)),
    ]
    return optax.chain(*chain)


def _adam(c: Optim) -> list[optax.GradientTransformation]:
    return [_stored(c.moments_dtype, optax.scale_by_adam(c.b1, c.b2, c.eps, mu_dtype=jnp.float32))]


def _adafactor(c: Optim, axes: dict[str, Axes]) -> list[optax.GradientTransformation]:
    """Adafactor (Shazeer & Stern 2018) as vision transformers use it (Zhai et al. 2021, app. B).

    Learning rates are absolute, as AdamW's are: updates are not scaled by their parameter. The
    decay of the second moments, 1 - t^-0.8, stops at `b2`. `b1` = 0 keeps no first moments.
    """

    def decay(step: Any, exponent: Any) -> jax.Array:
        t = jnp.asarray(step + 1, jnp.float32)
        return jnp.minimum(1 - t**-exponent, c.b2)

    rms = optax.chain(
        optax.scale_by_factored_rms(decay_rate_fn=decay), optax.clip_by_block_rms(1.0)
    )
    momentum = _stored(c.moments_dtype, optax.ema(c.b1, accumulator_dtype=jnp.float32))
    return [_each_copy(rms, axes)] + ([momentum] if c.b1 else [])


def _each_copy(
    inner: optax.GradientTransformation, axes: dict[str, Axes]
) -> optax.GradientTransformation:
    """`inner` for every layer's and every expert's parameter by itself.

    Optax factors over the two longest axes, which may be those that count layers or experts.
    """

    def each(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
        for _ in range(sum(axis in _COPIES for axis in axes[name])):
            f = jax.vmap(f)
        return f

    def init(params: Any) -> dict[str, Any]:
        return {n: each(n, inner.init)(p) for n, p in params.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Tensors, Any]:
        new = {n: each(n, inner.update)(u, state[n], params[n]) for n, u in updates.items()}
        return {n: u for n, (u, _) in new.items()}, {n: s for n, (_, s) in new.items()}

    return optax.GradientTransformation(init, update)


def _stored(dtype: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with its moments kept in a dtype; they are computed with in float32.

    To bfloat16 they are rounded up or down at random, in proportion to how near either is: a
    moment moves by (1 - b2) of a difference, often less than half of bfloat16's 0.4% steps, and
    rounding to the nearest would leave it where it is for ever.
    """
    if dtype == "float32":
        return inner

    def init(params: Any) -> Any:
        return _map_moments(lambda m, _: m.astype(dtype), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = _map_moments(lambda m, _: m.astype(jnp.float32), state)
        new: Any
        updates, new = inner.update(updates, wide, params)
        key = jax.random.key(new.count)
        return updates, _map_moments(
            lambda m, i: round_at_random(m, jax.random.fold_in(key, i)), new
        )

    return optax.GradientTransformation(init, update)


def _map_moments(f: Callable[[jax.Array, int], jax.Array], state: Any) -> Any:
    """Applies `f` to the state's floating arrays and their numbers, not to its counters."""
    leaves, tree = jax.tree.flatten(state)
    return tree.unflatten(
        f(m, i) if jnp.issubdtype(m.dtype, jnp.floating) else m for i, m in enumerate(leaves)
    )


def round_at_random(x: Float[Array, "*S"], key: jax.Array) -> BFloat16[Array, "*S"]:
    """float32 to one of the two nearest bfloat16, of which it is the mean.

    What is not finite stays what it is.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is float32's upper half: carries out of the lower half round up.
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = jnp.where(jnp.isfinite(x), bits + noise, bits) >> 16
    rounded = jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isnan(x), jnp.bfloat16(jnp.nan), rounded)


def _scale_each(rates: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies each parameter's update by its own constant."""

    def scale(updates: Any, _: Any) -> Tensors:
        return {n: u * rates[n] for n, u in updates.items()}

    return optax.stateless(scale)
