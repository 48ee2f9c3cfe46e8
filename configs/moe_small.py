"""A mixture of experts on ViScenes: 8 experts, 2 a token, in the second of two decoder layers.

About four minutes of training on two CPU cores; `make run` runs it.
"""

from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.data.vocab_size = 600
    c.data.text_length = 112
    c.data.cache_images = True

    c.model.unroll = 3
    c.model.vision.depth = 3
    c.model.vision.mlp_dim = 384
    c.model.decoder.depth = 2
    c.model.decoder.moe.num_experts = 8
    c.model.decoder.moe.experts_per_token = 2
    c.model.decoder.moe.mlp_dim = 192
    c.model.decoder.moe.group_size = 704  # four rows: no group is padded
    c.model.decoder.moe.capacity_factor = 1.0

    c.optim.learning_rate = 2e-3
    c.train.steps = 1500
    c.train.batch_size = 16
    c.train.log_every = 25
    c.eval.every = 500
    c.checkpoint.every = 500
    return c
