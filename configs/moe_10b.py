"""Ten billion parameters, two billion active, for 256 chips of TPU v5p (8x8x4).

A tower of SigLIP-SO400M's shape, a decoder of Qwen3-1.7B's in which every second layer has 16
experts, 2 a token. Parameters are split 32 ways by `fsdp`, experts 8 ways by `expert`; a step is a
million places. What it needs, without a TPU (docs/scaling.md):

    python -m vimoe_jax.main --config=configs/moe_10b.py --plan --topology=v5p:8x8x4

Data: prepare what `data.dataset` names first (docs/datasets.md); the tokenizer is Qwen3's.
"""

from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.data.dataset = "openvivqa"
    c.data.test_splits = ("test",)
    c.data.text_length = 256
    c.data.tokenizer = "tokenizer.json"
    c.data.workers = 8

    c.model.image_size = 224
    c.model.patch_size = 14  # 256 patches: rows of 512 places
    c.model.remat = "full"
    c.model.vision.width = 1152
    c.model.vision.depth = 27
    c.model.vision.num_heads = 16
    c.model.vision.mlp_dim = 4304
    c.model.decoder.width = 2048
    c.model.decoder.depth = 28
    c.model.decoder.num_heads = 16
    c.model.decoder.num_kv_heads = 8
    c.model.decoder.head_dim = 128
    c.model.decoder.mlp_dim = 6144
    c.model.decoder.vocab_size = 151936
    c.model.decoder.rope_theta = 1e6
    c.model.decoder.moe.num_experts = 16
    c.model.decoder.moe.experts_per_token = 2
    c.model.decoder.moe.placement = "every_2"
    c.model.decoder.moe.group_size = 1024  # two rows
    c.model.decoder.moe.capacity_factor = 1.0

    c.mesh.data = 1
    c.mesh.fsdp = 32  # two axes of the torus
    c.mesh.expert = 8  # the third

    c.optim.learning_rate = 3e-4
    c.optim.warmup_steps = 2000
    c.optim.weight_decay = 0.1
    c.train.steps = 100_000
    c.train.batch_size = 2048
    c.train.log_every = 50
    c.eval.every = 1000
    c.eval.batch_size = 2048
    c.checkpoint.every = 1000
    return c
