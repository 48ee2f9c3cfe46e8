"""A dataset from outside the package: a class with `SPLITS`, `len` and `[i]`, named in a config.

    python examples/my_dataset.py

trains a tiny model on it for a few steps; from the command line the same is

    PYTHONPATH=examples python -m vimoe_jax.main --config=configs/moe_small.py \
        --config.data.dataset=my_dataset:Squares --config.data.test_splits="('test',)"

The records here are drawn; yours would come from a database, an archive or an API. One record in
three has no picture, one in three has two.
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from vimoe_jax.datasets.records import QA, Record

COLOURS = {"đỏ": (220, 40, 40), "xanh lá": (40, 160, 60), "vàng": (240, 210, 40)}
NAMES = list(COLOURS)


class Squares:
    """Coloured squares: which colour, how many, and a question about no picture at all."""

    SPLITS = ("train", "validation", "test")

    def __init__(self, split: str, data_dir: str):
        # `data_dir` is config.data.dir: where a dataset with files would find them.
        self.start = 1000 * self.SPLITS.index(split)
        self.length = 64 if split == "train" else 16

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        """A pure function of the index: Grain's workers call it in any order."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng(self.start + index)
        colours = [NAMES[i] for i in rng.integers(len(NAMES), size=index % 3)]
        if not colours:
            qa = QA("0", "vqa", "màu của lá cây là gì", ("xanh lá",), type="text")
        elif len(colours) == 1:
            qa = QA("0", "vqa", "hình vuông màu gì", (colours[0],), type="colour")
        else:
            same = "có" if colours[0] == colours[1] else "không"
            qa = QA("0", "vqa", "hai hình có cùng màu không", (same,), type="compare")
        return Record(f"squares-{index}", tuple(map(_png, colours)), (qa,))


def _png(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), COLOURS[colour]).save(out, "PNG")
    return out.getvalue()


def get_config():
    """A model that trains in seconds; two pictures a row, or fewer."""
    from vimoe_jax.config import defaults

    c = defaults()
    c.data.dataset = "my_dataset:Squares"
    c.data.max_pictures = 2
    c.data.vocab_size = 300
    c.data.text_length = 48
    c.data.test_splits = ("test",)
    c.model.image_size = 16
    c.model.vision.width = c.model.decoder.width = 32
    c.model.vision.depth, c.model.decoder.depth = 1, 2
    c.model.vision.mlp_dim = c.model.decoder.mlp_dim = 64
    c.model.decoder.moe.num_experts = 4
    c.model.decoder.moe.group_size = 64
    c.train.steps = 20
    c.train.batch_size = 8
    c.eval.batch_size = 8
    c.eval.every = c.checkpoint.every = 20
    return c


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from vimoe_jax.base.errors import exit_on_user_error
    from vimoe_jax.main import main

    with tempfile.TemporaryDirectory() as workdir, exit_on_user_error():
        main([f"--config={__file__}", f"--workdir={workdir}/run"])
