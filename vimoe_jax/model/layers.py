"""Norms, attention and MLPs, shared by the tower and the decoder.

Parameters are float32, products run in the module's `dtype`, statistics and softmax in float32.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.base import struct
from vimoe_jax.moe.experts import ACTIVATIONS
from vimoe_jax.parallel.parameters import fan_in, param
from vimoe_jax.parallel.rules import constrain


class RMSNorm(nnx.Module):
    """x / rms(x) · scale, over the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float, *, axis: str | None = None, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = param(rngs, nnx.initializers.ones, (dim,), (axis,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Same dtype out as in."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean)/std · scale + bias, over the last axis."""

    def __init__(self, dim: int, eps: float, *, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = param(rngs, nnx.initializers.ones, (dim,), (None,))
        self.bias = param(rngs, nnx.initializers.zeros, (dim,), (None,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Same dtype out as in."""
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class MLP(nnx.Module):
    """Two projections around an activation; for SwiGLU, `w_in` holds gate and up (D, 2, F)."""

    def __init__(
        self,
        in_dim: int,
        mlp_dim: int,
        out_dim: int,
        *,
        activation: str,
        bias: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        out_scale: float = 1.0,
    ):
        self.activation = activation
        self.dtype = dtype
        num_in, _ = ACTIVATIONS[activation]
        zeros = nnx.initializers.zeros
        self.w_in = param(
            rngs, fan_in(in_dim), (in_dim, num_in, mlp_dim), ("embed", None, "mlp"), cast=True
        )
        self.w_out = param(
            rngs, fan_in(mlp_dim, out_scale), (mlp_dim, out_dim), ("mlp", "embed"), cast=True
        )
        if bias:
            self.b_in = param(rngs, zeros, (num_in, mlp_dim), (None, "mlp"))
            self.b_out = param(rngs, zeros, (out_dim,), (None,))
        else:
            self.b_in = self.b_out = None

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... O"]:
        """Runs the MLP on every token."""
        num_in, activation = ACTIVATIONS[self.activation]
        x, w_in = x.astype(self.dtype), self.w_in[...].astype(self.dtype)
        h = [x @ w_in[:, i] for i in range(num_in)]
        if self.b_in is not None:
            b_in = self.b_in[...].astype(self.dtype)
            h = [y + b_in[i] for i, y in enumerate(h)]
        h = activation(*h)
        out = h @ self.w_out[...].astype(self.dtype)
        return out if self.b_out is None else out + self.b_out[...].astype(self.dtype)


@struct.dataclass
class KVCache:
    """Keys and values of all positions so far, at most `Z`; unused places are zero."""

    k: Float[Array, "*L B Z KV N"]
    v: Float[Array, "*L B Z KV N"]


class Attention(nnx.Module):
    """Multi-head attention, optionally grouped-query, with QK-norm and rotary positions (Qwen3).

    Weights: `q` (D, H, N), `k` and `v` (D, KV, N), `out` (H, N, D), with `bias` each its own.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        bias: bool,
        qk_norm_eps: float | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        out_scale: float = 1.0,
        implementation: str = "auto",
    ):
        self.dtype, self.implementation = dtype, implementation
        h, kv, n = num_heads, num_kv_heads, head_dim
        zeros = nnx.initializers.zeros
        self.q = param(rngs, fan_in(dim), (dim, h, n), ("embed", "heads", None), cast=True)
        self.k = param(rngs, fan_in(dim), (dim, kv, n), ("embed", "kv_heads", None), cast=True)
        self.v = param(rngs, fan_in(dim), (dim, kv, n), ("embed", "kv_heads", None), cast=True)
        self.out = param(
            rngs, fan_in(h * n, out_scale), (h, n, dim), ("heads", None, "embed"), cast=True
        )
        self.bias = bias
        if bias:
            self.q_bias = param(rngs, zeros, (h, n), ("heads", None))
            self.k_bias = param(rngs, zeros, (kv, n), ("kv_heads", None))
            self.v_bias = param(rngs, zeros, (kv, n), ("kv_heads", None))
            self.out_bias = param(rngs, zeros, (dim,), (None,))
        self.qk_norm = qk_norm_eps is not None
        if qk_norm_eps is not None:
            self.q_norm = RMSNorm(n, qk_norm_eps, rngs=rngs)
            self.k_norm = RMSNorm(n, qk_norm_eps, rngs=rngs)

    @jax.named_scope("attention")
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S Z"] | None,
        rotation: tuple[Float[Array, "B S half"], Float[Array, "B S half"]] | None = None,
        cache: KVCache | None = None,
        offset: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B S D"], KVCache | None]:
        """Attends.

        Args:
          x: the S new positions.
          mask: which of the Z keys each query sees; Z = S without a cache. None: all see all.
          rotation: cosine and sine of the rotary angles, from `rotary`.
          cache: keys and values before; the new ones are written at `offset`.
          offset: the same for all rows.

        Returns:
          The output, and the cache with the new positions in it (None if none was given).
        """
        q, k, v = (self._project(x, name) for name in ("q", "k", "v"))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if cache is not None:
            write = jax.lax.dynamic_update_slice_in_dim
            cache = KVCache(write(cache.k, k, offset, 1), write(cache.v, v, offset, 1))
            k, v = cache.k, cache.v
        q = constrain(q, ("batch", None, "heads", None))
        mask = None if mask is None else mask[:, None]
        how: Literal["xla", "cudnn"] = "xla"
        if self.implementation == "cudnn" or (
            self.implementation == "auto" and cache is None and _cudnn_takes(q)
        ):
            how = "cudnn"
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=how)
        out = jnp.einsum("bshn,hnd->bsd", y, self.out[...].astype(self.dtype))
        if self.bias:
            out += self.out_bias[...].astype(self.dtype)
        return out, cache

    def _project(self, x: Float[Array, "B S D"], name: str) -> Float[Array, "B S H N"]:
        weight = getattr(self, name)[...].astype(self.dtype)
        y = jnp.einsum("bsd,dhn->bshn", x.astype(self.dtype), weight)
        return y + getattr(self, f"{name}_bias")[...].astype(self.dtype) if self.bias else y


def _cudnn_takes(q: Float[Array, "B S H N"]) -> bool:
    """Whether cuDNN's fused attention is there for such queries: 16 bits, heads of at most 128."""
    device = jax.devices()[0]
    return (
        device.platform == "gpu"
        and float(getattr(device, "compute_capability", None) or 0) >= 8
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 128
    )


def rotary(
    positions: Int[Array, "B S"], head_dim: int, theta: float
) -> tuple[Float[Array, "B S half"], Float[Array, "B S half"]]:
    """Cosine and sine of position · theta^(-2i/N), i < N/2, in float32 (Su et al. 2021)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "B S H N"], cos: Float[Array, "B S half"], sin: Float[Array, "B S half"]
) -> Float[Array, "B S H N"]:
    """Turns pairs (x_i, x_{i+N/2}): the half-split layout of Llama's and Qwen's checkpoints."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
