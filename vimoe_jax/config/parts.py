"""The three parts of a model, and what is the same question about each of them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vimoe_jax.config.model import Model
from vimoe_jax.moe.options import MoEOptions, moe_layers

PartName = Literal["vision", "connector", "decoder"]

# In the order that a picture takes through them.
PARTS: tuple[PartName, ...] = ("vision", "connector", "decoder")


@dataclasses.dataclass(frozen=True)
class Part:
    """Tower, connector or decoder.

    Attributes:
      name: of its configuration, its parameters and its metrics.
      moe: its experts' settings.
      depth: its layers; the connector is one.
      mlp_dim: F of its dense MLPs.
      causal: whether a token may only depend on earlier ones.
    """

    name: PartName
    moe: MoEOptions
    depth: int
    mlp_dim: int
    causal: bool

    @property
    def has_experts(self) -> bool:
        """Whether any of its layers is a mixture of experts."""
        return self.moe.num_experts > 0

    def moe_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it is a mixture of experts.

        Raises:
          ValueError: a placement that is not understood, or names a layer that does not exist.
        """
        if self.name == "connector":  # one layer, whatever the placement says
            return (self.has_experts,)
        return moe_layers(self.moe, self.depth)

    def moe_names(self) -> tuple[str, ...]:
        """The names of its MoE layers, first to last: `decoder.1`, …, or `connector`."""
        if self.name == "connector":
            return ("connector",) if self.has_experts else ()
        return tuple(f"{self.name}.{i}" for i, is_moe in enumerate(self.moe_layers()) if is_moe)


def parts_of(c: Model) -> dict[PartName, Part]:
    """The parts of a model by name."""
    v, d = c.vision, c.decoder
    # The connector's hidden layer is as wide as the decoder.
    every = (
        Part("vision", v.moe, v.depth, v.mlp_dim, causal=False),
        Part("connector", c.connector.moe, 1, d.width, causal=False),
        Part("decoder", d.moe, d.depth, d.mlp_dim, causal=True),
    )
    return {part.name: part for part in every}


def part_name(parameter: str) -> PartName:
    """The part that a parameter belongs to, by its dotted path.

    Raises:
      ValueError: it belongs to none.
    """
    first = parameter.split(".")[0]
    for name in PARTS:
        if first == name:
            return name
    raise ValueError(f"{parameter!r} belongs to none of {', '.join(PARTS)}")
