"""Real photographs and Vietnamese texts until the model knows them by heart, from random weights.

A check that the whole path learns from real data: it reproduces its training answers. The folder
named by VIMOE_REAL_DATA holds `images/pairs.jsonl` (docs/data.md has the schema).
"""

import os

from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.data.dataset = "jsonl"
    c.data.source = os.path.join(
        os.environ.get("VIMOE_REAL_DATA", "../shared/data"), "images/pairs.jsonl"
    )
    c.data.train_split = ""  # all of it: this is about fitting, not about generalising
    c.data.val_split = ""
    c.data.test_splits = ("",)
    c.data.vocab_size = 500
    c.data.text_length = 128
    c.data.cache_images = True

    c.model.unroll = 3
    c.model.vision.depth = 3
    c.model.vision.mlp_dim = 384
    c.model.decoder.depth = 2
    c.model.decoder.moe.num_experts = 8
    c.model.decoder.moe.mlp_dim = 192

    c.optim.learning_rate = 2e-3
    c.optim.weight_decay = 0.0
    c.train.steps = 600
    c.train.batch_size = 16
    c.checkpoint.every = 300
    c.eval.every = 0
    c.eval.max_new_tokens = 48
    c.eval.thumbnails = 48
    return c
