"""The experts: E two-layer MLPs, as products batched over experts or grouped by expert.

The dense MLP, `vimoe_jax.model.layers.MLP`, has the same weights without the leading E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Required, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vimoe_jax.base.schema import FieldError, one_of
from vimoe_jax.moe.products import choice, grouped
from vimoe_jax.moe.products.segments import Backend, Segments
from vimoe_jax.parallel.parameters import fan_in, param
from vimoe_jax.parallel.rules import constrain

# name -> (number of input projections, function of their results)
ACTIVATIONS: dict[str, tuple[int, Callable[..., jax.Array]]] = {
    "swiglu": (2, lambda gate, up: jax.nn.silu(gate) * up),
    "gelu_tanh": (1, lambda x: jax.nn.gelu(x, approximate=True)),
    "gelu": (1, lambda x: jax.nn.gelu(x, approximate=False)),
}


class MLPSettings(TypedDict, total=False):
    """What MLPs, experts and MoE layers share; `out_scale` may be left out."""

    activation: Required[str]
    bias: Required[bool]
    dtype: Required[DTypeLike]
    rngs: Required[nnx.Rngs]
    out_scale: float


def check_mlp(owner: str, activation: str, **dims: object) -> None:
    """Refuses what no MLP can be made of.

    Args:
      owner: whose arguments these are.
      activation: must be one of `ACTIVATIONS`.
      dims: widths by the arguments' names, which must be positive.

    Raises:
      FieldError: a `ValueError` that names the argument.
    """
    if complaint := one_of(*ACTIVATIONS)(activation):
        raise FieldError(owner, f"activation: {complaint}, not {activation!r}")
    for name, value in dims.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise FieldError(owner, f"{name}: must be an int of at least 1, not {value!r}")


class Experts(nnx.Module):
    """E MLPs of the same shape.

    Weights: `w_in` (E, D, I, F) with I = 2 for SwiGLU (gate first, then up) and 1 otherwise,
    `w_out` (E, F, D_out), and with `bias` also `b_in` (E, I, F) and `b_out` (E, D_out).

    Raises:
      FieldError: as `check_mlp`.
    """

    def __init__(
        self,
        num_experts: int,
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
        check_mlp(
            "Experts",
            activation,
            num_experts=num_experts,
            in_dim=in_dim,
            mlp_dim=mlp_dim,
            out_dim=out_dim,
        )
        self.activation = activation
        self.dtype = dtype
        num_in, _ = ACTIVATIONS[activation]
        e, d, f = num_experts, in_dim, mlp_dim
        zeros = nnx.initializers.zeros
        self.w_in = param(
            rngs, fan_in(d), (e, d, num_in, f), ("experts", "embed", None, "mlp"), cast=True
        )
        self.w_out = param(
            rngs, fan_in(f, out_scale), (e, f, out_dim), ("experts", "mlp", "embed"), cast=True
        )
        if bias:
            self.b_in = param(rngs, zeros, (e, num_in, f), ("experts", None, "mlp"))
            self.b_out = param(rngs, zeros, (e, out_dim), ("experts", None))
        else:
            self.b_in = self.b_out = None

    @jax.named_scope("experts")
    def __call__(self, x: Float[Array, "G E C D"]) -> Float[Array, "G E C O"]:
        """Each expert on its own buffer."""
        w_in, w_out = self.w_in[...].astype(self.dtype), self.w_out[...].astype(self.dtype)
        num_in, activation = ACTIVATIONS[self.activation]
        groups, num_experts, capacity, width = x.shape
        # All groups' slots as rows of one product an expert: with the groups as a second batch
        # axis, XLA on CPU leaves its fast products.
        x = x.astype(self.dtype).swapaxes(0, 1).reshape(num_experts, -1, width)
        # A product each: taking one (…, I, F) result apart would cost a pad in the backward pass.
        h = [jnp.einsum("erd,edf->erf", x, w_in[:, :, i]) for i in range(num_in)]
        if self.b_in is not None:
            b_in = self.b_in[...].astype(self.dtype)
            h = [y + b_in[:, None, i] for i, y in enumerate(h)]
        h = activation(*h)
        h = constrain(h, ("experts", "expert_group", "mlp"))
        out = jnp.einsum("erf,efo->ero", h, w_out)
        if self.b_out is not None:
            out += self.b_out[...].astype(self.dtype)[:, None]
        return out.reshape(num_experts, groups, capacity, -1).swapaxes(0, 1)

    def backend(self) -> Backend:
        """What runs `rows` on the default device."""
        _, inner, _, width = self.w_in.shape
        return choice.backend(self.dtype, inner, width, self.w_out.shape[2])

    @jax.named_scope("experts")
    def few_rows(
        self, x: Float[Array, "T D"], weight: Float[Array, "T E"]
    ) -> Float[Array, "T O"] | None:
        """The weighted sum over experts for a few tokens; None where no kernel is made for it."""
        if self.activation != "swiglu" or self.b_in is not None:
            return None
        w_in, w_out = self.w_in[...].astype(self.dtype), self.w_out[...].astype(self.dtype)
        return grouped.few_rows(x.astype(self.dtype), w_in, w_out, weight, self.backend())

    @jax.named_scope("experts")
    def rows(self, x: Float[Array, "R D"], segments: Segments) -> Float[Array, "R O"]:
        """Each row through the expert that owns it; rows that nobody owns give anything."""
        w_in, w_out = self.w_in[...].astype(self.dtype), self.w_out[...].astype(self.dtype)
        num_in, activation = ACTIVATIONS[self.activation]
        x = x.astype(self.dtype)
        if self.activation == "swiglu" and self.b_in is None:
            return grouped.swiglu(x, w_in, w_out, segments, self.backend())
        num_experts, inner, _, width = w_in.shape
        h = grouped.matmul(
            x, w_in.reshape(num_experts, inner, num_in * width), segments, self.backend()
        )
        if self.b_in is not None:
            # Rows that nobody owns may hold anything: they must not reach the biases' gradients.
            owned = segments.owned()[:, None]
            # A product with one-hot rows, whose gradient is a product too: no scatter.
            owner = jnp.repeat(segments.expert, segments.tile, total_repeat_length=x.shape[0])
            owner = jax.nn.one_hot(owner, num_experts, dtype=self.dtype) * owned
            b_in = self.b_in[...].astype(self.dtype).reshape(num_experts, -1)
            h = jnp.where(owned, h + owner @ b_in, 0)
        h = activation(*jnp.split(h, num_in, axis=1))
        out = grouped.matmul(h, w_out, segments, self.backend())
        if self.b_out is None:
            return out
        return jnp.where(owned, out + owner @ self.b_out[...].astype(self.dtype), 0)
