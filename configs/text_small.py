"""Text alone: a small decoder with 8 experts, 2 a token, on questions of a JSONL file.

Lines of the file have `"images": []` (docs/data.md). No tower runs: rows are text only, and what
is trained is the decoder. A few minutes on two CPU cores for some thousand questions:

    python -m vimoe_jax.main --config=configs/text_small.py --config.data.source=mine.jsonl
"""

from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.data.dataset = "jsonl"
    c.data.source = "questions.jsonl"
    c.data.train_split, c.data.val_split = "train", "validation"
    c.data.test_splits = ("test",)
    c.data.max_pictures = 0
    c.data.vocab_size = 600
    c.data.text_length = 96

    c.model.vision.depth = 1  # not run
    c.model.decoder.depth = 4
    c.model.decoder.moe.num_experts = 8
    c.model.decoder.moe.experts_per_token = 2
    c.model.decoder.moe.mlp_dim = 192

    c.optim.vision_rate = c.optim.connector_rate = 0.0
    c.optim.learning_rate = 2e-3
    c.train.steps = 1000
    c.train.batch_size = 16
    c.eval.every = c.checkpoint.every = 250
    return c
