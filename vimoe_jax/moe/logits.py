"""The router's product: float32 results at the speed of 16-bit products.

A bfloat16 activation times a float32 weight is a float32 product only if the weight keeps its 24
bits. Split into three bfloat16 parts (8 bits each, the sum exact), it can be multiplied on matrix
units: products of bfloat16 numbers are exact in float32, and sums are taken in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def router_logits(x: Float[Array, "*B D"], w: Float[Array, "D E"]) -> Float[Array, "*B E"]:
    """`x @ w` in float32, whatever `x`'s dtype."""
    if x.dtype != jnp.bfloat16 or x.size <= 1 << 17:  # for a few tokens, one product is less work
        return jnp.einsum("...d,de->...e", x.astype(jnp.float32), w, precision="highest")
    return _split_logits(x, w)


@jax.custom_vjp
def _split_logits(x: Float[Array, "*B D"], w: Float[Array, "D E"]) -> Float[Array, "*B E"]:
    num = w.shape[1]
    y = jnp.einsum("...d,dp->...p", x, _split(w), preferred_element_type=jnp.float32)
    # Smallest parts first: their sum is rounded once.
    return y[..., 2 * num :] + y[..., num : 2 * num] + y[..., :num]


def _forward(x, w):
    return _split_logits(x, w), (x, w)


def _backward(saved, d_y: Float[Array, "*B E"]):
    x, w = saved
    parts = _split(d_y)
    # x's gradient is rounded to 16 bits anyway, like that of any product in 16 bits.
    num = w.shape[1]
    w16 = w.astype(jnp.bfloat16)
    d_x = jnp.einsum("...e,de->...d", parts[..., :num], w16, preferred_element_type=jnp.float32)
    d_w = jnp.einsum("...d,...p->dp", x, parts, preferred_element_type=jnp.float32)
    d_w = d_w[:, 2 * num :] + d_w[:, num : 2 * num] + d_w[:, :num]
    return d_x.astype(x.dtype), d_w


_split_logits.defvjp(_forward, _backward)


def _split(a: Float[Array, "*B E"]) -> Float[Array, "*B EEE"]:
    """Three bfloat16 parts, largest first, side by side along the last axis."""
    parts, rest = [], a
    for _ in range(3):
        # Not `astype`: compilers may drop a rounding that is undone at once.
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    return jnp.concatenate(parts, -1)
