"""Devices."""

from __future__ import annotations

from vimoe_jax.base.schema import at_least, checked, field, one_of


@checked
class Mesh:
    """Devices along each axis; at most one -1 takes all that are left."""

    rule: str = field(
        "sizes",
        "Who says the sizes: the four fields below, or a rule by devices, model and batch "
        "(docs/parallelism.md), which does not look at them.",
        one_of("sizes", "auto"),
    )
    data: int = field(-1, "Ways that rows are split; weights gathered once a step.", at_least(-1))
    fsdp: int = field(1, "Ways that weights are split, gathered layer by layer.", at_least(-1))
    expert: int = field(1, "Ways that experts are split; tokens travel.", at_least(-1))
    tensor: int = field(1, "Ways that heads, MLPs and vocabulary are split.", at_least(-1))
