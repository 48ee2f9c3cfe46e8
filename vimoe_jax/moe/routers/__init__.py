"""The routers by name, and what is known about each without running it (no JAX here).

`top_k`, `expert_choice`, `hash` and `soft` have a file each, with a class (`base.Router`) and the
mathematics; this table gives their names to the options, the configuration and everything that
asks what a router is like. A router of your own needs one file and `register`:

  @register("mine", causal=False)
  class Mine(Gated):
      ...

A command knows a router only if a row of the table below names it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T", bound=type)  # of a `routers.base.Router`, which this module may not import


@dataclasses.dataclass(frozen=True)
class Traits:
    """What others must know about a router.

    Attributes:
      where: the class, or "module:Class", which is imported when a layer needs it.
      causal: a token's choices depend on no later token (with a capacity, whether they find room
        may). Others are refused in a causal decoder.
      gated: weights are a softmax of learned logits, to which training adds noise.
      expert_choice: experts choose tokens, as many as they have slots for.
      mixes: no one chooses: slots hold mixtures of tokens, without capacity and drops.
      accepts: options that are refused with routers that do not list them.
      needs: options that must be set, and what each of them is.
    """

    where: type | str
    causal: bool = True
    gated: bool = True
    expert_choice: bool = False
    mixes: bool = False
    accepts: tuple[str, ...] = ()
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def token_choice(self) -> bool:
        """Each token goes to exactly K experts, as far as they have room."""
        return not self.expert_choice and not self.mixes

    def load(self) -> type:
        """The class; imports JAX."""
        if not isinstance(self.where, str):
            return self.where
        module, name = self.where.split(":")
        return getattr(importlib.import_module(module), name)


ROUTERS: dict[str, Traits] = {
    "top_k": Traits(
        "vimoe_jax.moe.routers.top_k:TopK",
        accepts=("bias_rate", "batch_priority"),
    ),
    "expert_choice": Traits(
        "vimoe_jax.moe.routers.expert_choice:ExpertChoice",
        causal=False,
        expert_choice=True,
    ),
    "soft": Traits(
        "vimoe_jax.moe.routers.soft:Soft",
        causal=False,
        gated=False,
        mixes=True,
        needs={"soft_slots": "a number of slots per expert and row"},
    ),
    "hash": Traits("vimoe_jax.moe.routers.hash:Hash", gated=False),
}


def register(
    name: str,
    *,
    causal: bool,
    gated: bool = True,
    expert_choice: bool = False,
    mixes: bool = False,
    accepts: tuple[str, ...] = (),
    needs: Mapping[str, str] | None = None,
) -> Callable[[T], T]:
    """Class decorator: `MoEOptions(router=name)` then means this router. Arguments as `Traits`.

    Raises:
      ValueError: another class has the name.
    """

    def add(cls: T) -> T:
        old = ROUTERS.get(name)
        # A notebook may run the same definition twice.
        if old is not None and _full_name(old.where) != _full_name(cls):
            raise ValueError(f"router {name!r}: {_full_name(old.where)} has this name")
        ROUTERS[name] = Traits(cls, causal, gated, expert_choice, mixes, accepts, needs or {})
        return cls

    return add


def accepting(option: str) -> tuple[str, ...]:
    """Names of the routers that list an option among what only they accept."""
    return tuple(name for name, traits in ROUTERS.items() if option in traits.accepts)


def reserved() -> tuple[str, ...]:
    """Options that not every router accepts, in the order of the table."""
    return tuple(dict.fromkeys(o for traits in ROUTERS.values() for o in traits.accepts))


def _full_name(where: type | str) -> str:
    return where if isinstance(where, str) else f"{where.__module__}:{where.__qualname__}"
