"""One MoE layer: router, dispatch, experts, combine (V-MoE, Riquelme et al. 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.moe import dispatch, losses, routing, stats
from vimoe_jax.moe.experts import Experts, MLPSettings
from vimoe_jax.moe.logits import router_logits
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.parallel.parameters import Buffer, fan_in, param
from vimoe_jax.parallel.rules import constrain


class MoE(nnx.Module):
    """Sends each token to K of E experts and sums their outputs by the router's gates.

    Tokens are flattened and cut into groups of `group_size`, within which they compete for slots;
    the last group is padded. (The soft router mixes tokens, so that its groups are the rows: nobody
    meets another row's tokens.) The router works in float32 whatever `dtype` is.

    Parameters: `router` (D, E), for the soft router `slots` (D, E, C) and `slot_scale` instead, for
    hash none; `experts`; `shared` with shared experts. Buffers: `bias` (E,) with a `bias_rate`,
    `table` (ids, K) of the hash router.
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
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        out_scale: float = 1.0,
        num_ids: int = 0,
    ):
        self.options = o = options
        e = self.num_experts = o.experts
        mlp = MLPSettings(
            activation=activation, bias=bias, dtype=dtype, rngs=rngs, out_scale=out_scale
        )
        if o.router == "soft":
            shape = (in_dim, e, o.soft_slots)
            self.slots = param(rngs, fan_in(in_dim), shape, ("embed", "experts", None))
            self.slot_scale = param(rngs, nnx.initializers.ones, (), ())
        elif o.router == "hash":
            if num_ids < 1:
                raise ValueError("the hash router needs the number of token ids")
            table = routing.hash_table(num_ids, e, max(o.k(train=True), o.k(train=False)))
            self.table = Buffer(jnp.asarray(table), axes=(None, None))
        else:
            self.router = param(rngs, fan_in(in_dim), (in_dim, e), ("embed", None))
        self.experts = Experts(e, in_dim, o.width(mlp_dim), out_dim, **mlp)
        if o.shared_experts:
            self.shared = Experts(1, in_dim, o.shared_experts * o.width(mlp_dim), out_dim, **mlp)
        if o.bias_rate:
            self.bias = Buffer(jnp.zeros((e,), jnp.float32), axes=(None,))

    @jax.named_scope("moe")
    def __call__(
        self,
        x: Float[Array, "*B D"],
        valid: Bool[Array, "*B"],
        kind: Int[Array, "*B"],
        *,
        num_kinds: int,
        key: jax.Array | None = None,
        ids: Int[Array, "*B"] | None = None,
    ) -> tuple[Float[Array, "*B O"], stats.MoEStats]:
        """Runs the layer.

        Args:
          x: tokens, any leading axes.
          valid: False for padding, which takes no slot, gives 0 and counts in nothing.
          kind: a small integer per token by which the statistics are split.
          num_kinds: kinds are in [0, num_kinds).
          key: given in training only: draws the router noise, selects training's K, capacity and
            dispatcher.
          ids: what the hash router looks up; other routers do not need it.

        Returns:
          The layer's output in x's dtype, and its statistics.
        """
        soft = self.options.router == "soft"
        size = x.shape[-2] if soft else self.options.group_size
        ids = jnp.zeros(valid.shape, jnp.int32) if ids is None else ids
        args = (_group(a, size, x.shape[:-1]) for a in (x, valid, kind, ids))
        groups, valid_g, kind_g, ids_g = args
        groups = constrain(groups, ("group", None, None))
        if soft:
            y, gates, routed, kept, aux = self._soft(groups, valid_g)
        else:
            y, gates, routed, kept, aux = self._sparse(groups, valid_g, ids_g, key)
        report = stats.collect(aux, gates, routed, kept, valid_g, kind_g, num_kinds)
        if self.options.shared_experts:
            everyone = self.shared(groups[:, None])[:, 0]
            y = y + everyone * valid_g[..., None].astype(everyone.dtype)
        y = y.reshape(-1, y.shape[-1])[: valid.size].reshape(*x.shape[:-1], -1)
        return y.astype(x.dtype), report

    def _sparse(self, x, valid, ids, key):
        """Routing with assignments: top-k, expert choice, hash."""
        o, e, train = self.options, self.num_experts, key is not None
        k, factor = o.k(train=train), o.factor(train=train)
        capacity = routing.capacity(x.shape[1], e, k, factor)
        if o.router == "hash":
            gates, assignment, aux = self._hashed(ids, valid, k, capacity)
        else:
            gates, aux = self._gates(x, valid, k, key)
            with jax.named_scope("assign"):
                if o.router == "expert_choice":
                    assignment = routing.expert_choice(gates, capacity, valid=valid)
                else:
                    assignment = routing.top_k(
                        gates,
                        k,
                        capacity,
                        batch_priority=o.batch_priority,
                        valid=valid,
                        bias=self.bias[...] if o.bias_rate else None,
                    )
            if o.balance_weight:
                aux["balance"] = losses.balance(gates, assignment.expert, valid)
        if o.renormalize:
            assignment = assignment.renormalized()
        name = o.dispatcher if train else o.eval_dispatcher
        y = dispatch.through_experts(
            name, assignment, self.experts, x, e, capacity, o.exchange_factor
        )
        return y, gates, *assignment.counts(e, capacity, valid), aux

    def _gates(
        self,
        x: Float[Array, "G M D"],
        valid: Bool[Array, "G M"],
        k: int,
        key: jax.Array | None,
    ) -> tuple[Float[Array, "G M E"], dict[str, jax.Array]]:
        """Softmax of the (in training, noisy) logits, and the losses that need the logits."""
        o = self.options
        logits = router_logits(x, self.router[...])
        noisy, std = logits, o.noise_std / self.num_experts
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

    def _hashed(self, ids, valid, k: int, capacity: int):
        """The table's experts, each with the weight 1/K."""
        expert = self.table[...][ids][..., :k]
        gates = jax.nn.one_hot(expert, self.num_experts, dtype=jnp.float32).sum(2) / k
        weight = jnp.full(expert.shape, 1 / k, jnp.float32)
        assignment = routing.assign(expert, weight, self.num_experts, capacity, valid=valid)
        return gates, assignment, {}

    def _soft(self, x: Float[Array, "G M D"], valid: Bool[Array, "G M"]):
        """Soft MoE: slots are mixtures of a row's tokens (Puigcerver et al. 2023, alg. 1 and 2)."""

        def unit(a: jax.Array, axis: int) -> jax.Array:
            a = a.astype(jnp.float32)
            return a * jax.lax.rsqrt(jnp.sum(jnp.square(a), axis, keepdims=True) + 1e-6)

        slots = self.slot_scale[...] * unit(self.slots[...], 0)
        logits = jnp.einsum("gmd,dec->gmec", unit(x, -1), slots, precision="highest")
        mix, back = routing.soft(logits, valid)
        buffers = jnp.einsum("gmec,gmd->gecd", mix.astype(x.dtype), x)
        buffers = constrain(buffers, ("expert_group", "experts", None, None))
        out = constrain(self.experts(buffers), ("group", None, None, None))
        y = jnp.einsum("gmec,gecd->gmd", back, out, preferred_element_type=jnp.float32)
        gates = back.sum(-1)
        return y.astype(out.dtype), gates, gates, gates, {}


def weighted_losses(options: MoEOptions, report: stats.MoEStats) -> Float[Array, "*L"]:
    """The weighted sum of a report's losses, by the options' `<name>_weight`."""
    return sum(
        getattr(options, f"{name}_weight") * loss for name, loss in report.losses.items()
    ) + jnp.zeros(())


def rebalanced(
    bias: Float[Array, "*L E"], routed: Float[Array, "*L kinds E"], rate: float
) -> Float[Array, "*L E"]:
    """Router biases after a step: up by `rate` where an expert had less than an even share of the
    choices, down where it had more (DeepSeek-V3, Wang et al. 2024, alg. 1).

    Args:
      bias: before the step.
      routed: the step's choices by token kind, before capacity.
      rate: how far a bias moves.
    """
    load = routed.sum(-2)
    return bias + rate * jnp.sign(load.mean(-1, keepdims=True) - load)


def _group(x: jax.Array, group_size: int, batch_shape: tuple[int, ...]) -> jax.Array:
    """(*B, …) -> (G, M, …), the last group padded with zeros (False, for a mask)."""
    flat = x.reshape(-1, *x.shape[len(batch_shape) :])
    size = min(group_size, flat.shape[0])
    padding = -flat.shape[0] % size
    flat = jnp.pad(flat, [(0, padding)] + [(0, 0)] * (flat.ndim - 1))
    return flat.reshape(-1, size, *flat.shape[1:])
