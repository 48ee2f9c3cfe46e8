"""The layout that grouped products share: rows sorted by expert, in whole tiles."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vimoe_jax.base import struct


@struct.dataclass
class Segments:
    """Which rows belong to which expert.

    Expert e owns `sizes[e]` consecutive rows, after those of the experts before it. Rows behind the
    last expert's belong to nobody. What is computed for them is unspecified (kernels skip them and
    leave memory unwritten). What is fed in for them must be finite, and zero in the rows or in the
    gradients; then nothing else depends on it. `owned` masks them where they would go elsewhere.

    Attributes:
      starts: first row of each expert.
      sizes: rows of each expert, padding included: multiples of `tile`.
      expert: owner of each row tile; 0 for tiles behind the last.
      used: number of row tiles that have an owner.
      tile: rows of a tile.
    """

    starts: Int[Array, "E"]
    sizes: Int[Array, "E"]
    expert: Int[Array, "tiles"]
    used: Int[Array, "1"]
    tile: int = struct.field(pytree_node=False)

    @classmethod
    def create(cls, counts: Int[Array, "E"], num_rows: int, tile: int) -> Segments:
        """Rounds counts up to whole tiles; `num_rows` is static and must have room for all."""
        sizes = -(-counts // tile) * tile
        ends = jnp.cumsum(sizes)
        place = jnp.arange(num_rows // tile, dtype=jnp.int32) * tile
        expert = jnp.sum(place[:, None] >= ends, -1, dtype=jnp.int32)
        expert = jnp.where(expert < counts.shape[0], expert, 0)
        return cls(ends - sizes, sizes, expert, ends[-1:] // tile, tile)

    def owned(self) -> Bool[Array, "R"]:
        """Which rows belong to an expert (its padding included)."""
        return jnp.arange(self.expert.shape[0] * self.tile) < self.used[0] * self.tile


def num_rows(choices: int, num_experts: int, tile: int) -> int:
    """Rows that always suffice: an expert wastes less than a tile, one without rows nothing.

    Args:
      choices: T·K, rows before padding.
      num_experts: E.
      tile: rows of a tile.
    """
    return (choices // tile + min(num_experts, choices)) * tile


Backend = Literal["hopper", "megablox", "portable"]
