"""The input pipeline over many records: resuming far in takes no time, memory stays flat."""

import dataclasses
import io
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from vimoe_jax.data.pipeline import train_batches
from vimoe_jax.datasets.records import QA, Record

MILLION = 1_000_000
BATCH = 8


class Letters:
    """A tokenizer of a token a letter; picklable."""

    vocab_size, pad_id, bos_id, eos_id, image_id = 0x110000, 0, 1, 2, 3
    unk_id, byte_ids = None, frozenset()

    def encode(self, text):
        return [ord(letter) for letter in text]

    encode_raw = encode

    def save(self, path):
        raise NotImplementedError

    def decode(self, ids):
        return "".join(map(chr, ids))


@dataclasses.dataclass(frozen=True)
class ManyRecords:
    """Claims millions of records over a few pictures."""

    pictures: tuple[bytes, ...]
    length: int = 4 * MILLION

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        qa = QA(f"q{index}", "vqa", "con mèo màu gì", ("đen",))
        return Record(f"{index}.jpg", (self.pictures[index % len(self.pictures)],), (qa,))


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    pictures = []
    for height in (120, 160, 200):
        out = io.BytesIO()
        noise = rng.integers(0, 256, (height // 8, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((160, height)).save(out, "JPEG")
        pictures.append(out.getvalue())
    return ManyRecords(tuple(pictures))


def batches(source, **options):
    settings = dict(image_size=64, patches=16, text_length=64, batch_size=BATCH, seed=0)
    return train_batches(source, Letters(), **(settings | options))


def seconds_to_first(source, start):
    before = time.monotonic()
    opened = batches(source, start=start)
    try:
        first = next(opened)
    finally:
        opened.close()
    return time.monotonic() - before, first


def test_resuming_at_a_million_records_takes_no_time(source):
    seconds_to_first(source, 0)  # imports
    fastest = min(seconds_to_first(source, MILLION // BATCH)[0] for _ in range(3))
    assert fastest <= 2


def test_a_resumed_pipeline_is_where_it_would_be_beyond_an_epoch(source):
    short = dataclasses.replace(source, length=100)
    start = MILLION // BATCH
    _, first = seconds_to_first(short, start)
    opened = batches(short, start=start - 1)
    try:
        next(opened)
        second = next(opened)
        assert opened.state() == {"batches": start + 1}
    finally:
        opened.close()
    for mine, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_every_record_comes_once_in_an_epoch(source):
    short = dataclasses.replace(source, length=30 * BATCH)
    opened = batches(short, start=30 * (MILLION // (30 * BATCH)))
    try:
        met = np.concatenate([next(opened).record for _ in range(30)])
    finally:
        opened.close()
    assert sorted(met.tolist()) == list(range(30 * BATCH))


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_stays_flat_over_an_epoch(source, workers):
    """A batch has 100 kB: a leak of one in ten would show."""
    steps = 300
    epoch = dataclasses.replace(source, length=steps * BATCH)
    me = psutil.Process()
    opened = batches(epoch, workers=workers)
    used = []
    try:
        for _ in range(60):  # buffers fill, allocators settle
            next(opened)
        for _ in range(steps):
            next(opened)
            processes = (me, *me.children(recursive=True))
            used.append(sum(p.memory_info().rss for p in processes))
    finally:
        opened.close()
    ends = np.median(used[:30]), np.median(used[-30:])
    assert ends[1] - ends[0] < steps / 10 * 100_000, [u >> 20 for u in used[::30]]
