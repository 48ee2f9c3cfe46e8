"""A reader run on files that a test gives."""

import json

import pytest

from vimoe_jax.datasets import get
from vimoe_jax.datasets.preparing.files import Files


@pytest.fixture
def read(tmp_path):
    """Reads a dataset from files given by name; keeps the folder as `read.files`."""

    def run(name, variant=None, *, files):
        for path, content in files.items():
            made = tmp_path / path
            made.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, str | bytes):
                content = json.dumps(content, ensure_ascii=False)
            made.write_bytes(content if isinstance(content, bytes) else content.encode())
        dataset = get(name)
        run.files = Files(tmp_path)
        splits = dataset.read(run.files, variant or dataset.variants[0])
        return {split: list(rows) for split, rows in splits.items()}

    return run
