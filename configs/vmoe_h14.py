"""V-MoE-H/14 (Riquelme et al. 2021, every second layer, 7.2 billion parameters) as the tower.

Its 16 MoE layers have 32 experts, 2 a token, with batch-prioritized routing in groups of 8
pictures; a dense decoder of Qwen3-0.6B's shape reads it. For 128 chips of TPU v5p (4x4x8):

    python -m vimoe_jax.main --config=configs/vmoe_h14.py --plan --topology=v5p:4x4x8

Data: prepare what `data.dataset` names first (docs/datasets.md); the tokenizer is Qwen3's.
"""

from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.data.dataset = "openvivqa"
    c.data.test_splits = ("test",)
    c.data.text_length = 128
    c.data.tokenizer = "tokenizer.json"
    c.data.workers = 8

    c.model.image_size = 224
    c.model.patch_size = 14  # 256 patches
    c.model.remat = "full"
    c.model.vision.width = 1280
    c.model.vision.depth = 32
    c.model.vision.num_heads = 16
    c.model.vision.mlp_dim = 5120
    c.model.vision.moe.num_experts = 32
    c.model.vision.moe.experts_per_token = 2
    c.model.vision.moe.placement = "every_2"
    c.model.vision.moe.group_size = 2048  # eight pictures
    c.model.vision.moe.capacity_factor = 1.0625  # 136 slots; the paper's 1.05 would give 135
    c.model.vision.moe.batch_priority = True
    c.model.vision.moe.renormalize = False
    c.model.decoder.width = 1024
    c.model.decoder.depth = 28
    c.model.decoder.num_heads = 16
    c.model.decoder.num_kv_heads = 8
    c.model.decoder.head_dim = 128
    c.model.decoder.mlp_dim = 3072
    c.model.decoder.vocab_size = 151936
    c.model.decoder.rope_theta = 1e6

    c.mesh.data = 1
    c.mesh.fsdp = 16  # two axes of the torus
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
