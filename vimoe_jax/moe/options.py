"""What one MoE layer can be told (no JAX here: the configuration imports it)."""

from __future__ import annotations

import dataclasses

from vimoe_jax.schema import at_least, field, more_than, one_of

DISPATCHERS = ("gather", "einsum")


@dataclasses.dataclass(frozen=True)
class MoEOptions:
    """Settings of the MoE layers of one part of the model; `num_experts=0` keeps it dense."""

    num_experts: int = field(0, "E, experts a layer; 0 for a dense model.", at_least(0))
    experts_per_token: int = field(2, "K, experts each token is sent to.", at_least(1))
    mlp_dim: int = field(
        0, "F, hidden width of one expert; 0 takes the dense layer's.", at_least(0)
    )
    placement: str | tuple[int, ...] = field(
        "every_2",
        "Which layers: 'all', 'every_N' (N-1, 2N-1, …), 'last_N' of the odd ones, or a list.",
    )
    capacity_factor: float = field(
        1.25, "Slots an expert has over an even share, in training.", more_than(0)
    )
    group_size: int = field(
        1024, "M, tokens that compete for the same slots; never depends on devices.", at_least(1)
    )
    dispatcher: str = field("gather", "How tokens reach experts.", one_of(*DISPATCHERS))
    batch_priority: bool = field(
        False, "Batch-prioritized routing: overflow drops the lowest gates."
    )
    renormalize: bool = field(True, "Divide the chosen K gates by their sum.")
    noise_std: float = field(1.0, "Router noise in training is N(0, (noise_std/E)^2).", at_least(0))
    importance_weight: float = field(0.005, "Weight of V-MoE's importance loss.", at_least(0))
    load_weight: float = field(0.005, "Weight of V-MoE's load loss.", at_least(0))
    balance_weight: float = field(0.0, "Weight of the Switch balance loss.", at_least(0))
    z_weight: float = field(0.0, "Weight of the router z-loss.", at_least(0))
    eval_experts_per_token: int = field(0, "K at evaluation; 0 keeps training's.", at_least(0))
    eval_capacity_factor: float = field(
        0.0, "Capacity factor at evaluation; 0 gives room to every token.", at_least(0)
    )


def moe_layers(options: MoEOptions, depth: int) -> tuple[bool, ...]:
    """For each of `depth` layers, whether it is an MoE layer.

    Raises:
      ValueError: a placement that is not understood, or names a layer that does not exist.
    """
    if options.num_experts == 0:
        return (False,) * depth
    place = options.placement
    odd = range(1, depth, 2)
    if isinstance(place, tuple):
        chosen = set(place)
    elif place == "all":
        chosen = set(range(depth))
    elif place.startswith("every_") and place[6:].isdigit() and int(place[6:]) > 0:
        n = int(place[6:])
        chosen = set(range(n - 1, depth, n))
    elif place.startswith("last_") and place[5:].isdigit() and int(place[5:]) > 0:
        chosen = set(odd[-int(place[5:]) :])
    else:
        raise ValueError(f"must be 'all', 'every_N', 'last_N' or a list of layers, not {place!r}")
    if not chosen or not chosen <= set(range(depth)):
        raise ValueError(f"must name at least one of the layers 0 to {depth - 1}, not {place!r}")
    return tuple(i in chosen for i in range(depth))
