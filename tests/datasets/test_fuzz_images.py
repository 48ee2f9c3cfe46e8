"""Two thousand damaged pictures: each gives an array or a `BadRecord` of one line, in time.

A format's pictures are decoded in a process of their own, with a bound on its memory, whose stderr
must stay empty: a crash, a hang or a warning of a C library would show.
"""

import dataclasses
import io
import json
import random
import resource
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from vimoe_jax.datasets.images import MODES, decode
from vimoe_jax.datasets.records import BadRecord

COUNT = 120  # of each kind
SECONDS = 5  # a picture, on a slow core
MEMORY = 3 << 30  # beyond what the process has at its start: MAX_PIXELS in several copies
INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How pictures are written."""

    format: str
    mode: str = "RGB"
    options: dict = dataclasses.field(default_factory=dict)
    frames: int = 1


KINDS = {
    "jpeg": Kind("JPEG"),
    "jpeg_progressive_cmyk": Kind("JPEG", "CMYK", {"progressive": True}),
    "mpo": Kind("MPO", frames=2),
    "png": Kind("PNG", "RGBA"),
    "png_palette": Kind("PNG", "P", {"transparency": b"\0\x80\xff"}),
    "png_deep": Kind("PNG", "I;16"),
    "apng": Kind("PNG", "RGB", frames=3),
    "webp": Kind("WEBP", "RGBA", frames=2),
    "gif": Kind("GIF", "P", frames=3),
    "bmp": Kind("BMP"),
    "tiff": Kind("TIFF", "F"),
    "tiff_lzw": Kind("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "avif": Kind("AVIF"),
    "avif_animated": Kind("AVIF", frames=2),
    "jpeg2000": Kind("JPEG2000"),
    "ppm": Kind("PPM", "L"),
    "ico": Kind("ICO", "RGBA"),
}


def written(kind, rng):
    """A sound file: some frames of noise, an EXIF orientation where the format has room for one."""
    least = 16 if kind.format == "ICO" else 1  # icons are not enlarged
    size = (rng.randint(least, 40), rng.randint(least, 40))
    frames = [frame(kind.mode, size, rng) for _ in range(kind.frames)]
    options = dict(kind.options)
    if kind.frames > 1:
        options |= dict(save_all=True, append_images=frames[1:])
    formats = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF")
    # Pillow's writer of AVIF crashes on an orientation and several frames.
    if kind.format in formats and not (kind.format == "AVIF" and kind.frames > 1):
        exif = Image.Exif()
        exif[0x0112] = rng.randint(1, 8)
        options["exif"] = exif
    if kind.format == "AVIF":
        options["speed"] = 10
    out = io.BytesIO()
    frames[0].save(out, kind.format, **options)
    return out.getvalue()


def frame(mode, size, rng):
    noise = np.frombuffer(rng.randbytes(size[0] * size[1] * 4), np.uint8)
    if mode == "F":
        return Image.fromarray(noise.reshape(size[1], size[0], 4)[..., 0].astype(np.float32))
    if mode == "I;16":
        return Image.fromarray(
            noise.reshape(size[1], size[0], 4)[..., :2].copy().view("<u2")[..., 0]
        )
    if mode == "P":
        return Image.fromarray(noise.reshape(size[1], size[0], 4)[..., :3]).quantize(16)
    return Image.fromarray(noise.reshape(size[1], size[0], 4), "RGBA").convert(mode)


def flip(data, rng):
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data, rng):
    for _ in range(rng.choice((1, 3, 10))):
        data[rng.randrange(len(data))] = rng.choice((*INTERESTING, rng.randrange(256)))


def overwrite_field(data, rng):
    """Two or four bytes of the header, where widths, heights, lengths, offsets and tags stand."""
    width = rng.choice((2, 4))
    at = rng.randrange(max(1, min(len(data), 200) - width))
    value = rng.choice((0, 1, 9, 255, 256, 9000, 65535, 1 << 16, 80_000_000, 2**31 - 1, 2**32 - 1))
    order = rng.choice(("big", "little"))
    data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)


def delete(data, rng):
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 4, 30, 300))]


def insert(data, rng):
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 30, 300)))


def repeat(data, rng):
    at, length = rng.randrange(len(data)), rng.choice((1, 8, 64))
    data[at:at] = data[at : at + length] * rng.choice((1, 2, 100))


def truncate(data, rng):
    del data[rng.randrange(len(data)) :]


def swap(data, rng):
    """Two stretches in each other's place: chunks out of order."""
    a, b = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    length = min(rng.choice((4, 12, 40)), b - a, len(data) - b)
    data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]


def concatenate(data, rng):
    """The beginning of one file and the end, or the whole, of one of another format."""
    other = written(rng.choice(list(KINDS.values())), rng)
    del data[rng.choice((len(data), rng.randrange(len(data) + 1))) :]
    data += other[rng.choice((0, rng.randrange(len(other)))) :]


MUTATIONS = (
    flip, overwrite, overwrite_field, overwrite_field, delete, insert, repeat, truncate, swap,
    concatenate,
)  # fmt: skip


def mutated(kind, rng):
    data = bytearray(written(kind, rng))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if data:
            rng.choice(MUTATIONS)(data, rng)
    return bytes(data)


def fuzz(name, count, seed):
    """Decodes `count` damaged pictures of a kind; returns what the test judges."""
    outcomes = {"good": 0, "bad": 0, "wrong": [], "slowest": 0.0}
    for i in range(count):
        rng = random.Random(f"{name} {seed} {i}")
        data = mutated(KINDS[name], rng)
        start = time.process_time()
        try:
            pixels = decode(data, 16, rng.choice(MODES), name="a.jpg")
        except BadRecord as e:
            outcomes["bad"] += 1
            message = str(e)
            one_line = message.startswith("a.jpg: ") and len(message.splitlines()) == 1
            if not one_line or len(message) > 300:
                outcomes["wrong"].append(f"{i}: {message!r}")
        except BaseException as e:
            outcomes["wrong"].append(f"{i}: {type(e).__name__}: {e}")
        else:
            outcomes["good"] += 1
            if pixels.shape != (16, 16, 3) or pixels.dtype != np.uint8:
                outcomes["wrong"].append(f"{i}: {pixels.shape} {pixels.dtype}")
        outcomes["slowest"] = max(outcomes["slowest"], time.process_time() - start)
    return outcomes


def check(name, count, seed):
    done = subprocess.run(
        [sys.executable, __file__, name, str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=30 + count * 0.5,
    )
    assert done.returncode == 0 and done.stderr == "", (done.returncode, done.stderr[-2000:])
    outcomes = json.loads(done.stdout)
    assert not outcomes["wrong"]
    assert outcomes["slowest"] < SECONDS
    assert outcomes["good"] + outcomes["bad"] == count
    # Damage of both sorts was tried: what does not matter, and what does.
    assert outcomes["bad"] > 0 and outcomes["good"] > 0


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_are_read(name):
    for seed in range(5):
        assert decode(written(KINDS[name], random.Random(seed)), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(name):
    check(name, COUNT, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files(name):
    check(name, 5 * COUNT, seed=1)


def main(name, count, seed):
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    # Making the pictures may warn; reading them must not, whatever filters Python starts with.
    warnings.simplefilter("default")
    warnings.filterwarnings("ignore", module=r"PIL\.")
    print(json.dumps(fuzz(name, int(count), int(seed))))


if __name__ == "__main__":
    main(*sys.argv[1:])
