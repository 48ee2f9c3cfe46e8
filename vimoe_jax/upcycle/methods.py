"""Which hidden unit of the dense MLP goes where: what the methods differ in.

An MLP is a sum over its hidden units, y = Σ_j down_j · h_j(x) + b: unit j owns a column of gate and
up (or of the one input matrix, with its bias) and a row of down. Every method says for each unit of
each expert which dense unit it is, whether it is drawn anew, and by how much its row of down is
scaled; the same for the shared experts. Weights and Adam's moments follow from that alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.schema import at_least, between, checked, field, one_of
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.moe.routers import hash as hash_router

METHODS = ("copy", "noise", "drop", "granular", "importance")


@checked
class Upcycling:
    """How to upcycle; each field is an option of the command."""

    method: str = field("copy", "Where experts come from.", one_of(*METHODS))
    router_init: str = field("normal", "Router: N(0, 0.02²) or zeros.", one_of("normal", "zeros"))
    noise: float = field(
        0.1, "noise: standard deviation of what is added, over the matrix's own.", at_least(0)
    )
    drop_fraction: float = field(
        0.5, "drop: share of each expert's hidden units drawn anew.", between(0, 1)
    )
    shared_units: int = field(
        -1, "importance: s, units that all experts of a layer have; -1 chooses.", at_least(-1)
    )
    samples: int = field(
        256, "importance: rows of training data that score the units.", at_least(1)
    )


@dataclasses.dataclass(frozen=True)
class Units:
    """The hidden units of E experts of width W.

    Attributes:
      source: (E, W) int32, the dense unit that each one is.
      scale: (E, W) float32, factor of the unit's row of down.
      fresh: (E, W) bool, drawn anew.
      bias: factor of the output bias.
    """

    source: np.ndarray
    scale: np.ndarray
    fresh: np.ndarray
    bias: float


@dataclasses.dataclass(frozen=True)
class Layout:
    """One upcycled layer.

    Attributes:
      experts: those that are routed to.
      shared: those that take every token, as one expert of their joint width; None without any.
      shards: S; experts i·S to i·S + S - 1 hold the S shards of one dense MLP (a virtual group),
        and share a router column.
    """

    experts: Units
    shared: Units | None
    shards: int


def layout(
    how: Upcycling,
    options: MoEOptions,
    width: int,
    rng: np.random.Generator,
    scores: np.ndarray | None = None,
) -> Layout:
    """The layout of one layer.

    Args:
      how: the method and its numbers.
      options: of the MoE layer.
      width: F of the dense MLP.
      rng: draws the units to drop.
      scores: (F,), importance of each unit; for the method that needs them.

    Raises:
      UserError: as `check`.
    """
    check(how, options, width, "config.model.….moe")
    if how.method == "importance":
        if scores is None:
            raise ValueError("units are ranked by their scores, and none are given")
        return _ranked(how, options, width, np.argsort(-scores, kind="stable"))
    plain = _sharded(options, width)
    if how.method != "drop":
        return plain
    fresh = np.zeros_like(plain.experts.fresh)
    count = round(how.drop_fraction * fresh.shape[1])
    for row in fresh:
        row[rng.choice(row.size, count, replace=False)] = True
    return dataclasses.replace(plain, experts=dataclasses.replace(plain.experts, fresh=fresh))


def check(how: Upcycling, o: MoEOptions, width: int, path: str) -> None:
    """That a method can make such a layer from a dense MLP of hidden width `width`.

    Args:
      how: the method and its numbers.
      o: options of the MoE layer.
      width: F of the dense MLP.
      path: of `o` in the configuration, for complaints.

    Raises:
      UserError: one line that names the field.
    """
    own = o.width(width)
    if how.method == "importance":
        _check_ranked(how, o, width, path)
        return
    if width % own:
        name = "mlp_dim" if o.mlp_dim else "granularity"
        raise UserError(
            f"{path}.{name}: experts of width {own} do not divide the dense MLP's {width} "
            f"into shards, as method {how.method!r} does"
        )
    shards = width // own
    if shards > 1 and how.method == "copy":
        name = "granularity" if o.granularity > 1 else "mlp_dim"
        raise UserError(
            f"{path}.{name}: experts of width {own} are no copies of a dense MLP of width "
            f"{width}; use --method=granular"
        )
    if o.experts % shards:
        raise UserError(
            f"{path}.num_experts: {o.experts} experts do not make whole groups of {shards} "
            f"shards (dense width {width}, expert width {own})"
        )
    if not o.traits.token_choice:
        return
    for train, name in ((True, "experts_per_token"), (False, "eval_experts_per_token")):
        if o.k(train=train) % shards:
            raise UserError(
                f"{path}.{name}: {o.k(train=train)} experts a token do not hit all of the "
                f"{shards} shards that make one dense MLP; a multiple of {shards} does"
            )


def _sharded(o: MoEOptions, width: int) -> Layout:
    """Virtual groups (He et al. 2024, Nemotron); with one shard, plain copies.

    A group's experts have equal gates, so that one token's K choices are whole groups and each
    shard gets 1/S of its group's gate: S on down makes up for that, and only there, since gate and
    up enter a product. A unit that is m times among the shared experts counts 1 + m times, so that
    each time weighs 1/(1 + m).
    """
    experts, own, n = o.experts, o.width(width), o.shared_experts
    shards = width // own
    source = (np.arange(experts) % shards)[:, None] * own + np.arange(own)
    everyone = np.arange(n * own)[None] % width
    once = 1 / (1 + np.bincount(everyone[0], minlength=width))
    routed = _units(source, shards * once[source], 1 / (1 + n))
    shared = _units(everyone, once[everyone], n / (1 + n)) if n else None
    return Layout(routed, shared, shards)


def _ranked(how: Upcycling, o: MoEOptions, width: int, ranking: np.ndarray) -> Layout:
    """MoEBERT (Zuo et al. 2022): the best units are everyone's, the others dealt round-robin.

    In rank order: the shared experts' units, then s that every routed expert has, then one for each
    expert in turn until all are full.
    """
    experts, own, n = o.experts, o.width(width), o.shared_experts
    everyone, rest = ranking[: n * own], ranking[n * own :]
    s = _common(how, o, width)
    dealt = rest[s : s + experts * (own - s)].reshape(own - s, experts).T
    common = np.broadcast_to(rest[:s], (experts, s))
    routed = _units(np.concatenate([common, dealt], 1), 1.0, 1 / (1 + n))
    shared = _units(everyone[None], 1.0, n / (1 + n)) if n else None
    return Layout(routed, shared, 1)


def _common(how: Upcycling, o: MoEOptions, width: int) -> int:
    """s: as given, else two thirds of an expert (MoEBERT's share; none beside shared experts), and
    as many more as it takes for the others to suffice for all experts."""
    own, rest = o.width(width), width - o.shared_experts * o.width(width)
    least = max(0, -(-(o.experts * own - rest) // max(o.experts - 1, 1)))
    if how.shared_units >= 0:
        return how.shared_units
    return min(own, max(least, 0 if o.shared_experts else round(2 * own / 3)))


def _check_ranked(how: Upcycling, o: MoEOptions, width: int, path: str) -> None:
    own, n = o.width(width), o.shared_experts
    rest = width - n * own
    if own > rest:
        name = "shared_experts" if n else "mlp_dim"
        raise UserError(
            f"{path}.{name}: {n} shared experts and one to choose, each of width {own}, need more "
            f"units than the dense MLP's {width}"
        )
    s = _common(how, o, width)
    if s > own:
        raise UserError(f"--shared_units: {s} is more than an expert's width {own}")
    if s + o.experts * (own - s) > rest:
        raise UserError(
            f"--shared_units: {o.experts} experts of width {own} that share {s} units need "
            f"{s + o.experts * (own - s)}, but there are {rest}"
        )


def _units(source: np.ndarray, scale: np.ndarray | float, bias: float) -> Units:
    source = np.ascontiguousarray(source, np.int32)
    scale = np.broadcast_to(np.asarray(scale, np.float32), source.shape)
    return Units(source, scale, np.zeros(source.shape, bool), bias)


def hash_table(o: MoEOptions, num_ids: int, shards: int) -> np.ndarray:
    """The hash router's table, each choice being a whole virtual group: int32 (num_ids, K)."""
    k = max(o.k(train=True), o.k(train=False)) // shards
    groups = hash_router.hash_table(num_ids, o.experts // shards, k)
    members = groups[..., None] * shards + np.arange(shards)
    return members.reshape(num_ids, -1).astype(np.int32)


def preserves(how: Upcycling, o: MoEOptions, width: int, *, train: bool) -> list[str]:
    """Why an upcycled layer does not equal its dense parent; empty if it does.

    Args:
      how: the method and its numbers.
      o: options of the MoE layer.
      width: F of the dense MLP.
      train: with training's capacity and router noise, or with evaluation's routing.
    """
    reasons = []
    moving = {"noise": how.noise, "drop": how.drop_fraction, "importance": o.width(width) != width}
    if moving.get(how.method):
        reasons.append(f"method {how.method}")
    if o.traits.mixes:
        reasons.append(f"the {o.router} router mixes tokens")
    elif o.traits.gated and not o.renormalize:
        reasons.append("renormalize=False scales by the chosen gates' sum")
    if not o.traits.mixes and np.isfinite(o.factor(train=train)):
        name = "capacity_factor" if train or not o.eval_capacity_factor else "eval_capacity_factor"
        reasons.append(f"{name}={o.factor(train=train):g} may drop tokens")
    noisy = train and o.noise_std and o.traits.gated
    if noisy and how.method != "importance" and width // o.width(width) > 1:
        reasons.append("router noise breaks up groups of shards (noise_std=0 does not)")
    return reasons
