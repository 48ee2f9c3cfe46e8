"""One MoE layer: router, dispatch, experts, combine (V-MoE, Riquelme et al. 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.base.schema import FieldError
from vimoe_jax.moe import dispatch
from vimoe_jax.moe.experts import Experts, MLPSettings, check_mlp
from vimoe_jax.moe.options import MoEOptions, layer_complaints
from vimoe_jax.moe.report import MoEReport, collect
from vimoe_jax.moe.routers import base as routers
from vimoe_jax.parallel.rules import constrain


class MoE(nnx.Module):
    """Sends each token to K of E experts and sums their outputs by the router's gates.

    Tokens are flattened and cut into groups of `group_size`, within which they compete for slots;
    the last group is padded. (The soft router mixes tokens, so that its groups are the rows.) The
    router works in float32 whatever `dtype` is.

    Parameters: those of the router (`vimoe_jax.moe.routers`), under their own names: `router`
    (D, E) of most; `experts`; `shared` with shared experts. Buffers: the router's, like `bias` (E,)
    with a `bias_rate`.

    Raises:
      FieldError: a `ValueError` of one line that names the argument.
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
        check_mlp("MoE", activation, in_dim=in_dim, mlp_dim=mlp_dim, out_dim=out_dim)
        if options.num_experts == 0:
            raise FieldError("MoE", "options.num_experts: 0 means a dense layer, which is no MoE")
        for complaint in layer_complaints(options, mlp_dim):
            raise FieldError("MoE", f"options.{complaint}")
        self.options = o = options
        e = self.num_experts = o.experts
        mlp = MLPSettings(
            activation=activation, bias=bias, dtype=dtype, rngs=rngs, out_scale=out_scale
        )
        made = routers.make(o).variables(in_dim, num_ids=num_ids, rngs=rngs)
        self.router_variables = tuple(made)
        for name, variable in made.items():
            setattr(self, name, variable)
        self.experts = Experts(e, in_dim, o.width(mlp_dim), out_dim, **mlp)
        if o.shared_experts:
            self.shared = Experts(1, in_dim, o.shared_experts * o.width(mlp_dim), out_dim, **mlp)

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
    ) -> tuple[Float[Array, "*B O"], MoEReport]:
        """Runs the layer.

        Args:
          x: tokens, any leading axes.
          valid: False for padding, which takes no slot, gives 0 and counts in nothing.
          kind: a small integer per token by which the report is split.
          num_kinds: kinds are in [0, num_kinds).
          key: given in training only: draws the router noise, selects training's K, capacity and
            dispatcher.
          ids: what the hash router looks up; other routers do not need it.

        Returns:
          The layer's output in x's dtype, and its MoE report.
        """
        o, router = self.options, routers.make(self.options)
        size = router.group_size(x.shape[-2])
        args = (x, valid, kind) if ids is None else (x, valid, kind, ids)
        groups, valid_g, kind_g, *ids_g = (_group(a, size, x.shape[:-1]) for a in args)
        groups = constrain(groups, ("group", None, None))
        values = {name: getattr(self, name)[...] for name in self.router_variables}
        routing = router.route(values, groups, valid_g, ids=ids_g[0] if ids_g else None, key=key)
        assignment = routing.assignment
        if o.renormalize:
            assignment = assignment.renormalize()
        dispatcher = dispatch.make(
            o.eval_dispatcher if key is None else o.dispatcher,
            assignment,
            backend=self.experts.backend(),
            exchange_factor=o.exchange_factor,
        )
        y = dispatcher.run(self.experts, groups)
        counts = assignment.counts(valid_g)
        report = collect(routing.losses, routing.gates, *counts, valid_g, kind_g, num_kinds)
        if o.shared_experts:
            everyone = self.shared(groups[:, None])[:, 0]
            y = y + everyone * valid_g[..., None].astype(everyone.dtype)
        y = y.reshape(-1, y.shape[-1])[: valid.size].reshape(*x.shape[:-1], -1)
        return y.astype(x.dtype), report


def weighted_losses(options: MoEOptions, report: MoEReport) -> Float[Array, "*L"]:
    """The weighted sum of a report's losses, by the options' `<name>_weight`."""
    return sum(
        getattr(options, f"{name}_weight") * loss for name, loss in report.losses.items()
    ) + jnp.zeros(())


def rebalance_bias(
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
