"""What the experts of each layer are given."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vimoe_jax.data.batch import Batch
from vimoe_jax.datasets.records import Source
from vimoe_jax.model.blueprint import Params
from vimoe_jax.model.tokens import TokenKind
from vimoe_jax.model.vlm import Reports
from vimoe_jax.moe.report import MoEReport
from vimoe_jax.parallel.mesh import to_mesh
from vimoe_jax.parallel.rules import use_mesh
from vimoe_jax.run.batches import fixed_batches
from vimoe_jax.run.workdir import Run


class ExpertProbe:
    """What a run's experts are given, with evaluation's routing: compiled once, for any source."""

    def __init__(self, run: Run, params: Params):
        self._run, self._params = run, params

        def forward(params: Params, batch: Batch) -> Reports:
            with use_mesh(run.mesh):
                return run.blueprint.model(params)(batch).moe

        self._forward = jax.jit(forward, out_shardings=NamedSharding(run.mesh, PartitionSpec()))

    def report(self, source: Source, batches: int = 4) -> dict[str, Any]:
        """Load, drops and entropy of each MoE layer over a few batches.

        Kinds of token that a layer never sees are left out of what is listed by kind.
        """
        total: Reports = {}
        if any(part.has_experts for part in self._run.blueprint.parts.values()):
            for batch in fixed_batches(self._run, source, batches):
                found = self._forward(self._params, to_mesh(batch, self._run.mesh))
                found = jax.device_get(found)
                total = jax.tree.map(np.add, total, found) if total else found
        named = self._run.blueprint.layers_of(total)
        return {"layers": [_layer(name, report) for name, report in named.items()]}


def _layer(name: str, report: MoEReport) -> dict[str, Any]:
    routed = np.asarray(report.routed)
    by_kind = routed / np.maximum(routed.sum(-1, keepdims=True), 1)
    drops = np.asarray(report.drop_fraction_by_kind())
    return {
        "name": name,
        "load": np.asarray(report.load()).tolist(),
        "max_load": float(report.max_load()),
        "drop_fraction": float(report.drop_fraction()),
        "drop_fraction_by_kind": {
            kind.name.lower(): float(drops[kind]) for kind in TokenKind if report.tokens[kind] > 0
        },
        "unserved_fraction": float(report.unserved_fraction()),
        "entropy": float(report.mean_entropy()),
        "by_kind": {
            kind.name.lower(): by_kind[kind].tolist() for kind in TokenKind if routed[kind].sum()
        },
    }
