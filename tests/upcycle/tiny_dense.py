"""The tests' tiny configuration without experts: what is upcycled."""

import runpy
from pathlib import Path


def get_config():
    c = runpy.run_path(str(Path(__file__).parents[1] / "tiny.py"))["get_config"]()
    c.model.connector.moe.num_experts = 0
    c.model.decoder.moe.num_experts = 0
    c.model.decoder.moe.mlp_dim = 0
    c.train.steps = 20
    c.checkpoint.every = 10
    c.eval.every = 0
    c.train.guard_transfers = False
    return c
