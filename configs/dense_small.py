"""The dense twin of moe_small: one MLP where that has 8 experts, of the width of its K = 2."""

import runpy
from pathlib import Path


def get_config():
    moe_small = Path(__file__).with_name("moe_small.py")
    c = runpy.run_path(str(moe_small))["get_config"]()
    c.model.decoder.moe.num_experts = 0
    c.model.decoder.moe.mlp_dim = 0
    return c
