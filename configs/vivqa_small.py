"""ViVQA's questions and UIT-ViIC's captions from random weights, for one GPU.

A dense model of 25 million parameters. Prepared first, from folders that hold the published
annotations and COCO's pictures of 2014 or 2017:

    python -m vimoe_jax.data.prepare --dataset=vivqa --source=DIR --data_dir=data --drop_leaked
    python -m vimoe_jax.data.prepare --dataset=uit_viic --source=DIR --data_dir=data

--drop_leaked leaves pictures of ViVQA's test split out of its training split. ViVQA has no
validation split: the best checkpoint is the one that UIT-ViIC's validation captions choose.
"""

from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.data.dataset = "vivqa:2,uit_viic"  # two of three pictures are ViVQA's
    c.data.style = "uit_viic=sports"
    c.data.vary_prompts = True
    c.data.test_splits = ("test",)  # of both, each scored by itself
    c.data.vocab_size = 1800  # these texts support about 2,100
    c.data.text_length = 64
    c.data.resize = "pad"
    c.data.workers = 8

    c.model.image_size = 224
    c.model.patch_size = 16
    c.model.vision.width = 384
    c.model.vision.depth = 8
    c.model.vision.num_heads = 6
    c.model.vision.mlp_dim = 1536
    c.model.decoder.width = 384
    c.model.decoder.depth = 6
    c.model.decoder.num_heads = 6
    c.model.decoder.num_kv_heads = 3
    c.model.decoder.head_dim = 64
    c.model.decoder.mlp_dim = 1024

    c.optim.learning_rate = 1e-3
    c.optim.warmup_steps = 500
    c.optim.weight_decay = 0.1
    c.train.steps = 6000  # some 60 visits to each of ViVQA's pictures
    c.train.batch_size = 128
    c.train.log_every = 50
    c.eval.every = 500
    c.eval.batch_size = 256
    c.checkpoint.every = 500
    return c
