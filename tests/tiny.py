"""A configuration that trains in seconds, on the tiny variant of ViScenes."""

import os

from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.data.variant = "tiny"
    c.data.dir = os.environ["VIMOE_TEST_DATA"]
    c.data.vocab_size = 420
    c.data.text_length = 48
    c.data.test_splits = ("test",)

    c.model.image_size = 32
    c.model.vision.width = 16
    c.model.vision.depth = 1
    c.model.vision.num_heads = 2
    c.model.vision.mlp_dim = 32
    c.model.decoder.width = 16
    c.model.decoder.depth = 2
    c.model.decoder.num_heads = 2
    c.model.decoder.num_kv_heads = 1
    c.model.decoder.head_dim = 8
    c.model.decoder.mlp_dim = 32
    c.model.decoder.moe.num_experts = 4
    c.model.decoder.moe.mlp_dim = 16
    c.model.decoder.moe.group_size = 128
    # State that no optimizer holds: it must survive kills and restores like everything else.
    c.model.decoder.moe.bias_rate = 0.01
    c.model.connector.moe.num_experts = 2
    c.model.connector.moe.experts_per_token = 1
    c.model.connector.moe.router = "hash"

    c.train.steps = 12
    c.train.batch_size = 4
    c.train.log_every = 1
    c.train.guard_transfers = True
    c.checkpoint.every = 3
    c.eval.every = 6
    c.eval.val_batches = 2
    c.eval.batch_size = 8
    c.eval.max_new_tokens = 4
    c.eval.at_end = False
    return c
