"""One MoE layer: router, dispatch, experts, combine (V-MoE, Riquelme et al. 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.moe import dispatch, losses, routing, stats
from vimoe_jax.moe.experts import Experts
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.parallel.parameters import fan_in, param
from vimoe_jax.parallel.rules import constrain


class MoE(nnx.Module):
    """Sends each token to K of E experts and sums their outputs by the router's gates.

    Tokens are flattened and cut into groups of `group_size`, within which they compete for slots;
    the last group is padded. The router works in float32 whatever `dtype` is.
    """

    def __init__(
        self,
        options: MoEOptions,
        in_dim: int,
        mlp_dim: int,
        out_dim: int,
        *,
        activation: str,
        bias: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        out_scale: float = 1.0,
    ):
        self.options = options
        e = options.num_experts
        self.router = param(rngs, fan_in(in_dim), (in_dim, e), ("embed", None))
        self.experts = Experts(
            e,
            in_dim,
            options.mlp_dim or mlp_dim,
            out_dim,
            activation=activation,
            bias=bias,
            dtype=dtype,
            rngs=rngs,
            out_scale=out_scale,
        )

    @jax.named_scope("moe")
    def __call__(
        self,
        x: Float[Array, "*B D"],
        valid: Bool[Array, "*B"],
        kind: Int[Array, "*B"],
        *,
        num_kinds: int,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "*B O"], stats.MoEStats]:
        """Runs the layer.

        Args:
          x: tokens, any leading axes.
          valid: False for padding, which takes no slot, gives 0 and counts in nothing.
          kind: a small integer per token by which the statistics are split.
          num_kinds: kinds are in [0, num_kinds).
          key: given in training only: draws the router noise, selects training's K and capacity.
        """
        o, train = self.options, key is not None
        k = (not train and o.eval_experts_per_token) or o.experts_per_token
        groups, valid_g, kind_g = (_group(a, o.group_size, x.shape[:-1]) for a in (x, valid, kind))
        groups = constrain(groups, ("group", None, None))
        factor = o.capacity_factor if train else o.eval_capacity_factor or float("inf")
        capacity = routing.capacity(groups.shape[1], o.num_experts, k, factor)

        logits = jnp.einsum(
            "gmd,de->gme", groups.astype(jnp.float32), self.router[...], precision="highest"
        )
        gates, aux = self._gates(logits, valid_g, k, key)
        with jax.named_scope("assign"):
            assignment = routing.top_k(
                gates, k, capacity, batch_priority=o.batch_priority, valid=valid_g
            )
        if o.renormalize:
            total = assignment.weight.sum(-1, keepdims=True)
            assignment = assignment.replace(weight=assignment.weight / jnp.maximum(total, 1e-9))
        if o.balance_weight:
            aux["balance"] = losses.balance(gates, assignment.expert, valid_g)

        tokens = dispatch.create(o.dispatcher, assignment, o.num_experts, capacity)
        # The pair of constraints around the experts is the all-to-all of expert parallelism.
        buffers = constrain(tokens.to_experts(groups), ("group", None, None, None))
        buffers = constrain(buffers, ("expert_group", "experts", None, None))
        out = constrain(self.experts(buffers), ("expert_group", "experts", None, None))
        out = constrain(out, ("group", None, None, None))
        y = constrain(tokens.from_experts(out), ("group", None, None))
        report = stats.collect(aux, gates, assignment, capacity, valid_g, kind_g, num_kinds)
        y = y.reshape(-1, y.shape[-1])[: valid.size].reshape(*x.shape[:-1], -1)
        return y.astype(x.dtype), report

    def _gates(
        self,
        logits: Float[Array, "G M E"],
        valid: Bool[Array, "G M"],
        k: int,
        key: jax.Array | None,
    ) -> tuple[Float[Array, "G M E"], dict[str, jax.Array]]:
        """Softmax of the (in training, noisy) logits, and the losses that need the logits."""
        o = self.options
        noisy, std = logits, o.noise_std / o.num_experts
        if key is not None and std:
            noisy = logits + std * jax.random.normal(key, logits.shape)
        aux = {}
        if o.importance_weight:
            aux["importance"] = losses.importance(jax.nn.softmax(logits), valid)
        if o.load_weight and std:
            aux["load"] = losses.load(logits, noisy, k, std, valid)
        if o.z_weight:
            aux["z"] = losses.z(logits, valid)
        return jax.nn.softmax(noisy), aux


def weighted_losses(options: MoEOptions, report: stats.MoEStats) -> Float[Array, "*L"]:
    """The weighted sum of a report's losses, by the options' `<name>_weight`."""
    return sum(
        getattr(options, f"{name}_weight") * loss for name, loss in report.losses.items()
    ) + jnp.zeros(())


def _group(x: jax.Array, group_size: int, batch_shape: tuple[int, ...]) -> jax.Array:
    """(*B, …) -> (G, M, …), the last group padded with zeros (False, for a mask)."""
    flat = x.reshape(-1, *x.shape[len(batch_shape) :])
    size = min(group_size, flat.shape[0])
    padding = -flat.shape[0] % size
    flat = jnp.pad(flat, [(0, padding)] + [(0, 0)] * (flat.ndim - 1))
    return flat.reshape(-1, size, *flat.shape[1:])
