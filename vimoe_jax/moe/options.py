"""Settings of an MoE layer (no JAX here: the configuration imports it)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vimoe_jax.base.schema import at_least, checked, field, more_than, nearest, one_of
from vimoe_jax.moe import routers

DISPATCHERS = ("gather", "einsum", "dropless")


def _router(name: str) -> str | None:
    return one_of(*routers.ROUTERS)(name)  # those that are registered by then


def _placement(place: str | tuple[int, ...]) -> str | None:
    if isinstance(place, tuple) or _PLACEMENT.fullmatch(place):
        return None
    number = re.search("[1-9][0-9]*$", place)
    n = number[0] if number else "2"
    near = nearest(place, ("all", f"every_{n}", f"last_{n}"))
    return f"must be 'all', 'every_N', 'last_N' or a list of layers{near}"


_PLACEMENT = re.compile("all|(every|last)_0*[1-9][0-9]*")


@checked
class MoEOptions:
    """Settings of the MoE layers of one part of the model; `num_experts=0` keeps it dense.

    Raises:
      FieldError: a `ValueError` of one line that names the field.
    """

    num_experts: int = field(0, "E, experts a layer; 0 for a dense model.", at_least(0))
    experts_per_token: int = field(2, "K, experts each token is sent to.", at_least(1))
    mlp_dim: int = field(
        0, "F, hidden width of one expert; 0 takes the dense layer's.", at_least(0)
    )
    granularity: int = field(
        1, "g cuts every expert into g of width F/g, of which K·g are chosen.", at_least(1)
    )
    shared_experts: int = field(
        0, "Experts (of one expert's width) that every token meets.", at_least(0)
    )
    placement: str | tuple[int, ...] = field(
        "every_2",
        "Which layers: 'all', 'every_N' (N-1, 2N-1, …), 'last_N' of the odd ones, or a list.",
        _placement,
    )
    router: str = field(
        "top_k",
        "Who chooses: tokens (top_k), experts (expert_choice), a table of token ids (hash), or "
        "nobody, all being mixed (soft).",
        _router,
    )
    capacity_factor: float = field(
        1.25, "Slots an expert has over an even share, in training.", more_than(0)
    )
    group_size: int = field(
        1024, "M, tokens that compete for the same slots; never depends on devices.", at_least(1)
    )
    soft_slots: int = field(
        0, "C of the soft router, slots an expert and row; must be given there.", at_least(0)
    )
    dispatcher: str = field(
        "gather",
        "How tokens reach experts in training; 'dropless' needs no capacity.",
        one_of(*DISPATCHERS),
    )
    exchange_factor: float = field(
        2.0,
        "Rows that 'dropless' sends to each device of the mesh axis `expert` at once, over an "
        "even share; more of them take further rounds, none is lost. 0: always all at once.",
        at_least(0),
    )
    batch_priority: bool = field(
        False, "Batch-prioritized routing: overflow drops the lowest gates."
    )
    renormalize: bool = field(True, "Divide the chosen K gates by their sum.")
    noise_std: float = field(1.0, "Router noise in training is N(0, (noise_std/E)^2).", at_least(0))
    bias_rate: float = field(
        0.0,
        "Balance without a loss: a bias an expert for choosing moves this far a step (DeepSeek-V3 "
        "takes 0.001); 0 for none.",
        at_least(0),
    )
    importance_weight: float = field(0.005, "Weight of V-MoE's importance loss.", at_least(0))
    load_weight: float = field(0.005, "Weight of V-MoE's load loss.", at_least(0))
    balance_weight: float = field(0.0, "Weight of the Switch balance loss.", at_least(0))
    z_weight: float = field(0.0, "Weight of the router z-loss.", at_least(0))
    eval_experts_per_token: int = field(0, "K at evaluation; 0 keeps training's.", at_least(0))
    eval_capacity_factor: float = field(
        0.0, "Capacity factor at evaluation; 0 gives room to every token.", at_least(0)
    )
    eval_dispatcher: str = field(
        "dropless", "How tokens reach experts at evaluation.", one_of(*DISPATCHERS)
    )

    @property
    def traits(self) -> routers.Traits:
        """What is known of the router."""
        return routers.ROUTERS[self.router]

    @property
    def experts(self) -> int:
        """E after `granularity`."""
        return self.num_experts * self.granularity

    def width(self, dense: int) -> int:
        """F of one expert after `granularity`, in a layer whose dense MLP has width `dense`."""
        return (self.mlp_dim or dense) // self.granularity

    def k(self, *, train: bool) -> int:
        """K after `granularity`."""
        k = self.experts_per_token if train else self.eval_experts_per_token
        return (k or self.experts_per_token) * self.granularity

    def factor(self, *, train: bool) -> float:
        """The capacity factor; infinite where nothing may be dropped."""
        if train:
            return float("inf") if self.dispatcher == "dropless" else self.capacity_factor
        if self.traits.expert_choice:  # room for all would mean all tokens for each expert
            return self.eval_capacity_factor or self.capacity_factor
        return self.eval_capacity_factor or float("inf")

    def conflicts(self) -> Iterator[str]:
        """What is wrong with fields together, wherever the layer stands."""
        if self.num_experts == 0:
            return
        for name in ("experts_per_token", "eval_experts_per_token"):
            if getattr(self, name) > self.num_experts:
                yield f"{name}: {getattr(self, name)} is more than num_experts = {self.num_experts}"
        for name in routers.reserved():
            if getattr(self, name) and name not in self.traits.accepts:
                fitting = ", ".join(map(repr, routers.accepting(name)))
                yield f"{name}: only the router {fitting} has it, not {self.router!r}"
        if self.traits.expert_choice and self.dispatcher == "dropless":
            yield f"dispatcher: 'dropless' has no capacity, which the router {self.router!r} needs"


def complaints(options: MoEOptions, depth: int, mlp_dim: int, *, causal: bool) -> Iterator[str]:
    """What is wrong with options in their place, each complaint beginning with the field's name.

    Args:
      options: of one part of the model.
      depth: its layers.
      mlp_dim: hidden width of its dense MLP.
      causal: whether a token may only depend on earlier ones.
    """
    o = options
    if o.num_experts == 0:
        return
    if causal and not o.traits.causal:
        yield (
            f"router: {o.router!r} decides about a token by the tokens after it, which the causal "
            "decoder may not see; use it in the tower or the connector"
        )
    yield from layer_complaints(o, mlp_dim)
    try:
        moe_layers(o, depth)
    except ValueError as e:
        yield f"placement: {e}"


def layer_complaints(options: MoEOptions, mlp_dim: int) -> Iterator[str]:
    """What is wrong with options for one layer, wherever it stands.

    Args:
      options: of the layer, with experts.
      mlp_dim: hidden width of the dense MLP in its place.
    """
    o, hidden = options, options.mlp_dim or mlp_dim
    if hidden % o.granularity:
        yield f"granularity: {o.granularity} does not divide the hidden width {hidden}"
    for name, meaning in o.traits.needs.items():
        if not getattr(o, name):
            yield f"{name}: the {o.router} router needs {meaning}"


def moe_layers(options: MoEOptions, depth: int) -> tuple[bool, ...]:
    """For each of `depth` layers, whether it is an MoE layer.

    Raises:
      ValueError: the placement names no layer, or one that does not exist.
    """
    if options.num_experts == 0:
        return (False,) * depth
    place, odd = options.placement, range(1, depth, 2)
    if isinstance(place, tuple):
        chosen = set(place)
    elif place == "all":
        chosen = set(range(depth))
    else:
        word, n = place.split("_")
        chosen = set(range(int(n) - 1, depth, int(n)) if word == "every" else odd[-int(n) :])
    if not chosen or not chosen <= set(range(depth)):
        raise ValueError(f"must name at least one of the layers 0 to {depth - 1}, not {place!r}")
    return tuple(i in chosen for i in range(depth))
