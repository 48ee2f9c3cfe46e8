"""Which layers become experts, and where each parameter of the new model lies in the old one."""

from __future__ import annotations

import dataclasses
from typing import Any

from vimoe_jax import config as config_lib
from vimoe_jax.base.errors import UserError
from vimoe_jax.config.parts import PartName, part_name, parts_of
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.model.stack import layer_places
from vimoe_jax.moe.options import MoEOptions


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

    part: PartName
    layers: tuple[int, ...]
    leaf: str
    sources: tuple[tuple[str, int | None], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Migration:
    """From one model to another that differs by MoE layers only."""

    old: Blueprint
    new: Blueprint

    def options(self, part: PartName) -> MoEOptions:
        """The new model's MoE options of a part."""
        return self.new.parts[part].moe

    def upcycled(self, part: PartName) -> tuple[int, ...]:
        """The layers of a part that are dense in the old model and MoE in the new one."""
        old, new = self.old.parts[part].moe_layers(), self.new.parts[part].moe_layers()
        pairs = zip(old, new, strict=True)
        return tuple(i for i, (before, after) in enumerate(pairs) if after and not before)

    def mlp(self, part: PartName, layer: int) -> tuple[str, int | None]:
        """The dense MLP of a layer in the old model: dotted path, place along the first axis."""
        module, place = layer_places(self.old.parts[part])[layer]
        return (module if part == "connector" else f"{module}.mlp"), place

    def dense_width(self, part: PartName) -> int:
        """F of the dense MLPs of a part."""
        return self.new.parts[part].mlp_dim

    def origin(self, name: str) -> Origin:
        """Where a parameter of the new model comes from."""
        part, rest = part_name(name), name.partition(".")[2]
        if part == "connector" and self.upcycled(part):
            return Origin(part, (0,), rest, (self.mlp(part, 0),))
        if part == "connector" or not rest.startswith("blocks."):
            return Origin(part, (), "", ((name, None),))
        module = ".".join(name.split(".")[:5])  # PART.blocks.segments.I.J
        rest = name[len(module) + 1 :]
        places = layer_places(self.new.parts[part])
        layers = tuple(i for i, (where, _) in enumerate(places) if where == module)
        if rest.startswith("mlp.") and layers[0] in self.upcycled(part):
            sources = tuple(self.mlp(part, i) for i in layers)
            return Origin(part, layers, rest.removeprefix("mlp."), sources)
        before = layer_places(self.old.parts[part])
        sources = tuple((f"{before[i][0]}.{rest}", before[i][1]) for i in layers)
        return Origin(part, layers, "", sources)


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
    for part, mine in parts_of(new).items():
        before, after = parts_of(old)[part].moe_layers(), mine.moe_layers()
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
