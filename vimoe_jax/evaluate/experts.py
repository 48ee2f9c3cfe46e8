"""What the experts of each layer are given."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vimoe_jax.model.blueprint import Params
from vimoe_jax.model.tokens import TokenKind
from vimoe_jax.parallel.mesh import to_mesh
from vimoe_jax.parallel.rules import use_mesh
from vimoe_jax.run.batches import fixed_batches
from vimoe_jax.run.workdir import Run


def expert_report(run: Run, params: Params, source: Any, batches: int = 4) -> dict[str, Any]:
    """Load, drops and entropy of each MoE layer over a few batches, with evaluation's routing.

    Kinds of token that a layer never sees are left out of what is listed by kind.
    """

    def forward(params: Params, batch: dict[str, jax.Array]) -> Any:
        with use_mesh(run.mesh):
            return run.blueprint.build(run.blueprint.cast(params))(batch).moe

    total = None
    parts = (getattr(run.blueprint.config, part) for part in ("vision", "connector", "decoder"))
    if any(part.moe.num_experts for part in parts):
        step = jax.jit(forward, out_shardings=NamedSharding(run.mesh, PartitionSpec()))
        for batch in fixed_batches(run, source, batches):
            report = jax.device_get(step(params, to_mesh(batch, run.mesh)))
            total = report if total is None else jax.tree.map(np.add, total, report)
    layers = []
    for name, report in run.blueprint.layers_of(total or {}).items():
        routed = np.asarray(report.routed)
        by_kind = routed / np.maximum(routed.sum(-1, keepdims=True), 1)
        drops = np.asarray(report.drop_fraction_by_kind())
        layers.append(
            {
                "name": name,
                "load": np.asarray(report.load()).tolist(),
                "max_load": float(report.max_load()),
                "drop_fraction": float(report.drop_fraction()),
                "drop_fraction_by_kind": {
                    kind.name.lower(): float(drops[kind])
                    for kind in TokenKind
                    if report.tokens[kind] > 0
                },
                "unserved_fraction": float(report.unserved_fraction()),
                "entropy": float(report.mean_entropy()),
                "by_kind": {
                    kind.name.lower(): by_kind[kind].tolist()
                    for kind in TokenKind
                    if routed[kind].sum()
                },
            }
        )
    return {"layers": layers}
