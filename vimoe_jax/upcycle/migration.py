"""Which layers become experts, and where each parameter of the new model lies in the old one."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from vimoe_jax import config as config_lib
from vimoe_jax.base.errors import UserError
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.model.stack import plan
from vimoe_jax.moe.options import MoEOptions, moe_layers

PARTS = ("vision", "connector", "decoder")


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a parameter of the new model is made of.

    Attributes:
      part: "vision", "connector", "decoder".
      layers: the layers stacked in it, in order; () for what is in no layer.
      leaf: its name within an MoE module ("router", "experts.w_in", …) if these layers become one;
        "" if it is taken as it is.
      sources: (old name, place along its first axis) of each layer's array, or of the MLP if `leaf`
        is given, whose own leaves follow; place None: the array itself.
    """

    part: str
    layers: tuple[int, ...]
    leaf: str
    sources: tuple[tuple[str, int | None], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Migration:
    """From one model to another that differs by MoE layers only."""

    old: Blueprint
    new: Blueprint

    def options(self, part: str) -> MoEOptions:
        """The new model's MoE options of a part."""
        return getattr(self.new.config, part).moe

    def upcycled(self, part: str) -> tuple[int, ...]:
        """The layers of a part that are dense in the old model and MoE in the new one."""
        pairs = zip(kinds(self.old.config, part), kinds(self.new.config, part), strict=True)
        return tuple(i for i, (before, after) in enumerate(pairs) if after and not before)

    def mlp(self, part: str, layer: int) -> tuple[str, int | None]:
        """The dense MLP of a layer in the old model: dotted path, place along the first axis."""
        if part == "connector":
            return part, None
        module, place = _places(self.old.config, part)[layer]
        return f"{module}.mlp", place

    def dense_width(self, part: str) -> int:
        """F of the dense MLPs of a part."""
        c = self.new.config
        return c.decoder.width if part == "connector" else getattr(c, part).mlp_dim

    def origin(self, name: str) -> Origin:
        """Where a parameter of the new model comes from."""
        part, _, rest = name.partition(".")
        if part == "connector" and self.upcycled(part):
            return Origin(part, (0,), rest, (self.mlp(part, 0),))
        if part == "connector" or not rest.startswith("blocks."):
            return Origin(part, (), "", ((name, None),))
        module = ".".join(name.split(".")[:5])  # PART.blocks.segments.I.J
        rest = name[len(module) + 1 :]
        places = _places(self.new.config, part)
        layers = tuple(i for i, (where, _) in enumerate(places) if where == module)
        if rest.startswith("mlp.") and layers[0] in self.upcycled(part):
            sources = tuple(self.mlp(part, i) for i in layers)
            return Origin(part, layers, rest.removeprefix("mlp."), sources)
        before = _places(self.old.config, part)
        sources = tuple((f"{before[i][0]}.{rest}", before[i][1]) for i in layers)
        return Origin(part, layers, "", sources)


def kinds(c: config_lib.Model, part: str) -> tuple[bool, ...]:
    """For each layer of a part, whether it is MoE."""
    if part == "connector":
        return (c.connector.moe.num_experts > 0,)
    return moe_layers(getattr(c, part).moe, getattr(c, part).depth)


@functools.lru_cache(maxsize=64)
def _places(c: config_lib.Model, part: str) -> tuple[tuple[str, int], ...]:
    """(module, place along its arrays' first axis) of each layer, first to last."""
    found = []
    for i, (unit, repeats) in enumerate(plan(kinds(c, part))):
        for repeat in range(repeats):
            found += [(f"{part}.blocks.segments.{i}.{j}", repeat) for j in range(len(unit))]
    return tuple(found)


# What says how a model is computed, not what its parameters are.
_HOW = ("dtype", "attention", "remat", "unroll")


def check(old: config_lib.Model, new: config_lib.Model, source: Any) -> None:
    """That `new` is `old` with some dense layers turned into MoE layers.

    Args:
      old: the source's model.
      new: the configured one.
      source: what complaints call the source.

    Raises:
      UserError: one line that names the field.
    """
    for name, value in _sizes(new).items():
        if value != (before := _sizes(old)[name]):
            raise UserError(f"config.model.{name}: {value!r}, but {source} has {before!r}")
    gained = False
    for part in PARTS:
        before, after = kinds(old, part), kinds(new, part)
        field = f"config.model.{part}.moe"
        lost = [
            i for i, pair in enumerate(zip(before, after, strict=True)) if pair == (True, False)
        ]
        if lost:
            what = "the connector" if part == "connector" else f"layer {lost[0]}"
            where = "num_experts" if not any(after) else "placement"
            raise UserError(
                f"{field}.{where}: {what} is MoE in {source} and dense here; only dense layers "
                "become MoE"
            )
        if any(before):
            _check_kept(getattr(old, part).moe, getattr(new, part).moe, field, source)
        gained |= before != after
    if not gained:
        raise UserError(
            "config.model.decoder.moe.num_experts: no layer is MoE that is dense in "
            f"{source}; nothing to upcycle"
        )


def _check_kept(old: MoEOptions, new: MoEOptions, field: str, source: Any) -> None:
    """Layers that are MoE already stay as they are."""
    shape = ("num_experts", "mlp_dim", "granularity", "shared_experts", "router", "soft_slots")
    for name in (*shape, "experts_per_token", "bias_rate"):
        if getattr(old, name) != getattr(new, name):
            raise UserError(
                f"{field}.{name}: {getattr(new, name)!r}, but {source} is not dense here: its MoE "
                f"layers have {getattr(old, name)!r}"
            )


def _sizes(c: config_lib.Model) -> dict[str, Any]:
    """The fields that decide the dense model's parameters."""
    sizes = {}
    for f in dataclasses.fields(c):
        value = getattr(c, f.name)
        if dataclasses.is_dataclass(value):
            own = dataclasses.fields(value)
            sizes |= {f"{f.name}.{g.name}": getattr(value, g.name) for g in own if g.name != "moe"}
        elif f.name not in _HOW:
            sizes[f.name] = value
    del sizes["decoder.vocab_size"]  # 0 stands for the tokenizer's, which the new run takes over
    return sizes
