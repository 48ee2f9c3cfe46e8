"""Tokens to their experts and back: `x (G,M,D) -> experts -> y (G,M,O)`.

Three dispatchers with one answer:

* `einsum` multiplies by one-hot tensors: the readable reference, its cost grows with M·E·C.
* `gather` moves rows by index into buffers of C slots per expert and group.
* `dropless` moves rows by index into one long buffer, sorted by expert, with no slot that nobody
  has; the experts run as grouped products (`vimoe_jax.moe.products.grouped`).

Mixtures (soft MoE) have a fourth one, which no name selects.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float

from vimoe_jax.moe.dispatch.dropless import DroplessDispatcher
from vimoe_jax.moe.dispatch.einsum import EinsumDispatcher
from vimoe_jax.moe.dispatch.gather import GatherDispatcher
from vimoe_jax.moe.dispatch.mixing import MixingDispatcher
from vimoe_jax.moe.dispatch.moves import MOVED
from vimoe_jax.moe.experts import Experts
from vimoe_jax.moe.products.segments import Backend
from vimoe_jax.moe.routing import Assignment, Mixing

__all__ = ["MOVED", "Dispatcher", "make"]


@runtime_checkable
class Dispatcher(Protocol):
    """What knows where tokens go, and takes them there and back."""

    def run(self, experts: Experts, x: Float[Array, "G M D"]) -> Float[Array, "G M O"]:
        """Tokens through their experts: the sum of the results by weight, in the experts' dtype."""
        ...


def make(
    name: str,
    assignment: Assignment | Mixing,
    *,
    backend: Backend,
    exchange_factor: float = 2.0,
) -> Dispatcher:
    """The dispatcher that runs an assignment.

    On Hopper GPUs "gather" runs as "dropless" does: the same choices are dropped, but slots that
    stayed empty are not multiplied.

    Args:
      name: "einsum", "gather" or "dropless". Mixtures have a dispatcher of their own.
      assignment: what a router decided.
      backend: what runs grouped products here, as `Experts.backend` says.
      exchange_factor: rows that "dropless" exchanges per round of a mesh, over an even share.

    Raises:
      ValueError: a name that no dispatcher has.
    """
    if isinstance(assignment, Mixing):
        return MixingDispatcher(assignment)
    if name == "gather" and backend == "hopper":
        # One round of exchange: capacity bounds what is sent.
        return DroplessDispatcher(assignment, exchange_factor=0.0)
    if name == "dropless":
        return DroplessDispatcher(assignment, exchange_factor)
    if name == "gather":
        return GatherDispatcher.create(assignment)
    if name == "einsum":
        return EinsumDispatcher.create(assignment)
    raise ValueError(f"dispatcher: must be 'gather', 'einsum' or 'dropless', not {name!r}")
