"""A fixed table says which experts a token id goes to (Hash layers, Roller et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.base.schema import FieldError
from vimoe_jax.moe.routers.base import Router, Routing
from vimoe_jax.moe.routing import assign
from vimoe_jax.parallel.parameters import Buffer


class Hash(Router):
    """The table's experts, each with the weight 1/K; nothing is learned.

    Buffer: `table` (ids, K), int32, for the larger K of training and evaluation.
    """

    def variables(self, in_dim: int, *, num_ids: int, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        """The table.

        Raises:
          FieldError: there are no ids.
        """
        del in_dim, rngs
        if num_ids < 1:
            needed = "the hash router needs the number of token ids"
            raise FieldError("MoE", f"num_ids: {needed}, not {num_ids}")
        o = self.options
        table = hash_table(num_ids, o.experts, max(o.k(train=True), o.k(train=False)))
        return {"table": Buffer(jnp.asarray(table), axes=(None, None))}

    def route(
        self,
        values: Mapping[str, jax.Array],
        x: Float[Array, "G M D"],
        valid: Bool[Array, "G M"],
        *,
        ids: Int[Array, "G M"] | None,
        key: jax.Array | None,
    ) -> Routing:
        """Looks the ids up.

        Raises:
          FieldError: no ids are given.
        """
        if ids is None:
            raise FieldError("MoE", "ids: the hash router needs those of the tokens")
        o, train = self.options, key is not None
        k, capacity = o.k(train=train), self.slots(x.shape[1], train=train)
        expert = values["table"][ids][..., :k]
        gates = jax.nn.one_hot(expert, o.experts, dtype=jnp.float32).sum(2) / k
        weight = jnp.full(expert.shape, 1 / k, jnp.float32)
        return Routing(assign(expert, weight, o.experts, capacity, valid=valid), gates, {})


def hash_table(num_ids: int, num_experts: int, k: int, seed: int = 0) -> np.ndarray:
    """A fixed random choice of K different experts for each token id (Hash layers, Roller 2021).

    Ids are dealt out evenly: each expert is the first choice of as many ids as any other, give or
    take one.

    Returns:
      int32 (num_ids, K).

    Raises:
      ValueError: `k` is not in [1, E].
    """
    if not 1 <= k <= num_experts:
        raise ValueError(f"k must be between 1 and E = {num_experts}, not {k}")
    rng = np.random.default_rng(seed)
    first = rng.permutation(np.arange(num_ids) % num_experts)
    # The other choices lie at different distances round the ring of experts: never the same twice.
    steps = np.argsort(rng.random((num_ids, num_experts - 1)), axis=1)[:, : k - 1] + 1
    return ((first[:, None] + np.pad(steps, ((0, 0), (1, 0)))) % num_experts).astype(np.int32)
