"""What parameters a run has, by name, shape and size: printed at its start and kept beside it."""

from __future__ import annotations

import numpy as np

from vimoe_jax.model.blueprint import Blueprint

FILE = "parameters.txt"


def parameter_table(blueprint: Blueprint) -> str | None:
    """`clu.parameter_overview` of a model, without making an array; None where clu is missing."""
    try:
        from clu import parameter_overview
    except ImportError:
        return None
    shapes = blueprint.shapes()
    buffers = blueprint.buffers()
    tables = {name for name in buffers if name.endswith(".table")}
    # No memory behind them: one number each, as large as it has to seem.
    params = {
        name: np.broadcast_to(np.zeros((), np.int32 if name in tables else np.float32), shape)
        for name, shape in shapes.items()
    }
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    saved = [f"saved, not trained: {name}" for name in sorted(buffers)]
    return "\n".join([table, *saved])
