"""What a router is: from tokens to an `Assignment` (or a `Mixing`), gates and losses.

A router is a plain object made of the layer's options. It owns the router's parameters and buffers
in that it makes them and is given their values; the layer keeps them, under their own names, so
that a checkpoint has `mlp.router` and `mlp.bias`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.moe import losses, routing
from vimoe_jax.moe.logits import router_logits
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.moe.routers import ROUTERS
from vimoe_jax.moe.routing import Assignment, Mixing
from vimoe_jax.parallel.parameters import fan_in, param


class Routing(NamedTuple):
    """What a router decides about the tokens of one call.

    Attributes:
      assignment: which token goes where, or the mixtures of the tokens.
      gates: each token's distribution over experts, for the MoE report.
      losses: auxiliary losses by name, unweighted.
    """

    assignment: Assignment | Mixing
    gates: Float[Array, "G M E"]
    losses: dict[str, Float[Array, ""]]


class Router(abc.ABC):
    """Base of all routers."""

    def __init__(self, options: MoEOptions):
        self.options = options

    @abc.abstractmethod
    def variables(self, in_dim: int, *, num_ids: int, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        """Makes the parameters and buffers, by the names that the layer gives them.

        Args:
          in_dim: D.
          num_ids: token ids are in [0, num_ids); 0 if the layer has no ids.
          rngs: draws the initial values.
        """

    @abc.abstractmethod
    def route(
        self,
        values: Mapping[str, jax.Array],
        x: Float[Array, "G M D"],
        valid: Bool[Array, "G M"],
        *,
        ids: Int[Array, "G M"] | None,
        key: jax.Array | None,
    ) -> Routing:
        """Decides where the tokens go.

        Args:
          values: of the `variables`, by name.
          x: tokens in groups; a token competes with those of its group only.
          valid: False for padding, which must get no slot, no weight and count in no loss.
          ids: token ids, if the layer is given any.
          key: given in training only, for the router's noise.
        """

    def group_size(self, row: int) -> int:
        """M, tokens of a group; `row` is the length of the input's last token axis."""
        del row
        return self.options.group_size

    def slots(self, tokens: int, *, train: bool) -> int:
        """C, slots of an expert in a group of that many tokens."""
        o = self.options
        k, factor = o.k(train=train), o.factor(train=train)
        return routing.capacity(tokens, o.experts, k, factor)


class Gated(Router):
    """A router whose gates are a softmax of learned logits; what they choose is the subclass's.

    The logits are float32, without bias; in training they get noise N(0, (noise_std/E)²).
    Parameter: `router` (D, E).
    """

    def variables(self, in_dim: int, *, num_ids: int, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        """The matrix of the logits."""
        del num_ids
        shape = (in_dim, self.options.experts)
        return {"router": param(rngs, fan_in(in_dim), shape, ("embed", None))}

    @abc.abstractmethod
    def assign(
        self,
        values: Mapping[str, jax.Array],
        gates: Float[Array, "G M E"],
        valid: Bool[Array, "G M"],
        k: int,
        capacity: int,
    ) -> Assignment:
        """Gates to an assignment, for K experts per token and C slots per expert and group."""

    def route(
        self,
        values: Mapping[str, jax.Array],
        x: Float[Array, "G M D"],
        valid: Bool[Array, "G M"],
        *,
        ids: Int[Array, "G M"] | None,
        key: jax.Array | None,
    ) -> Routing:
        """Gates, assignment, and the losses that have a weight."""
        del ids
        o, train = self.options, key is not None
        k, capacity = o.k(train=train), self.slots(x.shape[1], train=train)
        gates, found = self._gates(values["router"], x, valid, k, key)
        with jax.named_scope("assign"):
            assignment = self.assign(values, gates, valid, k, capacity)
        if o.balance_weight:
            found["balance"] = losses.balance(gates, assignment.expert, valid)
        return Routing(assignment, gates, found)

    def _gates(
        self,
        matrix: Float[Array, "D E"],
        x: Float[Array, "G M D"],
        valid: Bool[Array, "G M"],
        k: int,
        key: jax.Array | None,
    ) -> tuple[Float[Array, "G M E"], dict[str, Float[Array, ""]]]:
        """Softmax of the (in training, noisy) logits, and the losses that need the logits."""
        o = self.options
        logits = router_logits(x, matrix)
        noisy, std = logits, o.noise_std / o.experts
        if key is not None and std:
            noisy = logits + std * jax.random.normal(key, logits.shape)
        found = {}
        if o.importance_weight:
            found["importance"] = losses.importance(jax.nn.softmax(logits), valid)
        if o.load_weight and std:
            found["load"] = losses.load(logits, noisy, k, std, valid)
        if o.z_weight:
            found["z"] = losses.z(logits, valid)
        return jax.nn.softmax(noisy), found


def make(options: MoEOptions) -> Router:
    """The router that the options name."""
    return ROUTERS[options.router].load()(options)
