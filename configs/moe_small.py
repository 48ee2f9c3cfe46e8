"""A mixture of experts on ViScenes: 8 experts, 2 a token, in every second decoder layer.

Two CPU cores, a few minutes.
"""

from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.model.decoder.moe.num_experts = 8
    return c
