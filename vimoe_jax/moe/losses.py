"""Auxiliary losses that keep experts evenly used; all float32, over valid tokens only.

Each is a mean over the groups that hold a valid token. Where a paper writes std/mean, squared,
these take variance/mean²: the same value, but finite gradients at exact balance (a router of zeros
is exactly balanced, and the derivative of a square root at 0 is infinite).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.moe import routing


def _mask(valid: Bool[Array, "G M"] | None, like: Float[Array, "G M E"]) -> Float[Array, "G M"]:
    shape = like.shape[:2]
    return jnp.ones(shape, jnp.float32) if valid is None else valid.astype(jnp.float32)


def _mean_over_groups(loss: Float[Array, "G"], mask: Float[Array, "G M"]) -> Float[Array, ""]:
    used = (mask.sum(-1) > 0).astype(jnp.float32)
    return jnp.sum(loss * used) / jnp.maximum(used.sum(), 1)


def _squared_variation(per_expert: Float[Array, "G E"]) -> Float[Array, "G"]:
    mean = per_expert.mean(-1)
    # An empty group has mean 0; the bound keeps its (masked) value and gradient finite.
    return per_expert.var(-1) / jnp.maximum(jnp.square(mean), 1e-12)


def importance(
    gates: Float[Array, "G M E"], valid: Bool[Array, "G M"] | None = None
) -> Float[Array, ""]:
    """Squared coefficient of variation over experts of the summed gates (V-MoE, appendix A).

    Args:
      gates: softmax of the *clean* logits.
      valid: False for padding.
    """
    mask = _mask(valid, gates)
    total = jnp.einsum("gme,gm->ge", gates.astype(jnp.float32), mask)
    return _mean_over_groups(_squared_variation(total), mask)


def load(
    logits: Float[Array, "G M E"],
    noisy_logits: Float[Array, "G M E"],
    k: int,
    noise_std: float,
    valid: Bool[Array, "G M"] | None = None,
) -> Float[Array, ""]:
    """Squared coefficient of variation of the smoothed load (V-MoE, appendix A).

    An expert's load is the mean over tokens of the probability that new noise on its clean logit
    lifts it over the token's K-th largest noisy logit (Shazeer et al. 2017).

    Args:
      logits: clean.
      noisy_logits: those that chose the experts.
      k: experts a token.
      noise_std: standard deviation of the noise actually added, positive.
      valid: False for padding.
    """
    mask = _mask(valid, logits)
    noisy = noisy_logits.astype(jnp.float32)
    expert, _ = routing.find_largest(jax.lax.stop_gradient(noisy), k)
    threshold = routing.gates_of(noisy, expert[..., -1:])
    chance = jax.scipy.stats.norm.sf((threshold - logits.astype(jnp.float32)) / noise_std)
    tokens = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    mean = jnp.einsum("gme,gm->ge", chance, mask) / tokens
    return _mean_over_groups(_squared_variation(mean), mask)


def balance(
    gates: Float[Array, "G M E"],
    expert: Int[Array, "G M K"],
    valid: Bool[Array, "G M"] | None = None,
) -> Float[Array, ""]:
    """Switch's E·Σ_e f_e·P_e, scaled so that perfect balance gives 1 for every K.

    f_e is the share of all K choices that went to expert e (so that Σ f = 1), P_e the mean gate.
    Fedus et al. 2021, eq. 4; codebases that let Σ f = K report K times this.
    """
    mask = _mask(valid, gates)
    num_experts, k = gates.shape[-1], expert.shape[-1]
    tokens = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    chosen = jax.nn.one_hot(expert, num_experts, dtype=jnp.float32).sum(2)
    share = jnp.einsum("gme,gm->ge", chosen, mask) / (tokens * k)
    mean_gate = jnp.einsum("gme,gm->ge", gates.astype(jnp.float32), mask) / tokens
    return _mean_over_groups(num_experts * jnp.sum(share * mean_gate, -1), mask)


def z(logits: Float[Array, "G M E"], valid: Bool[Array, "G M"] | None = None) -> Float[Array, ""]:
    """Mean over valid tokens of logsumexp(logits)² (ST-MoE, Zoph et al. 2022, eq. 5)."""
    mask = _mask(valid, logits)
    square = jnp.square(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1))
    return jnp.sum(square * mask) / jnp.maximum(mask.sum(), 1)
