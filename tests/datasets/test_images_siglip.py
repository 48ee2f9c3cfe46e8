"""Pixels against SigLIP's processor: Pillow's bicubic written out, and transformers itself."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from vimoe_jax.datasets.images import decode

SIZES = (64, 224, 256, 384)
LEVEL = 2 / 255  # one step of eight bits, after normalisation


def cubic(x, a=-0.5):
    """Keys' kernel."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resize_matrix(size, out):
    """(out, size): weights of an antialiased resize; the kernel widens as the picture shrinks."""
    scale = size / out
    stretch = max(scale, 1.0)
    centre = (np.arange(out)[:, None] + 0.5) * scale
    weights = cubic((np.arange(size)[None] + 0.5 - centre) / stretch)
    # Whole pixels only, by Pillow's rounding of the kernel's ends.
    first = np.maximum(np.floor(centre - 2 * stretch + 0.5), 0)
    last = np.minimum(np.floor(centre + 2 * stretch + 0.5), size)
    inside = (np.arange(size)[None] >= first) & (np.arange(size)[None] < last)
    weights = np.where(inside, weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def eight_bits(x):
    return np.floor(np.clip(x, 0, 255) + 0.5)


def levels_off(got, pixels):
    """The largest difference to the definition, in steps of eight bits.

    Rows first, then columns, eight bits between the two.
    """
    height, width, _ = pixels.shape
    narrow, flat = resize_matrix(width, len(got)), resize_matrix(height, len(got))
    between = eight_bits(np.einsum("ow,hwc->hoc", narrow, pixels.astype(np.float64)))
    return np.abs(got - eight_bits(np.einsum("oh,hwc->owc", flat, between))).max()


def as_png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=0)
    return out.getvalue()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(91, 160), (480, 640), (640, 427), (7, 900), (1, 1)])
def test_bicubic_by_its_definition(shape, size):
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.linspace(0, 90, shape[0]), np.linspace(0, 90, shape[1]))
    noisy = smooth[..., None] + rng.integers(0, 75, (*shape, 3))
    edges = rng.integers(0, 2, (*shape, 3)) * 255  # overshoots on both sides
    for pixels in (noisy.astype(np.uint8), edges.astype(np.uint8)):
        assert levels_off(decode(as_png(pixels), size), pixels) <= 1


@pytest.mark.real_data
def test_photographs_by_definition(real_data):
    paths = sorted((real_data / "images" / "coco").glob("*.jpg"))
    assert len(paths) > 50
    for path, size in zip(paths[::7], SIZES * 4, strict=False):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert levels_off(decode(path.read_bytes(), size), pixels) <= 1, path


def processor(name, size):
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, name)(size={"height": size, "width": size})


def normalised(path, size):
    return decode(path.read_bytes(), size, name=path.name).astype(np.float64) / 127.5 - 1


def processed(process, path):
    with Image.open(path) as image:
        return np.asarray(process(image, return_tensors="np")["pixel_values"][0], np.float64)


@pytest.mark.peer
@pytest.mark.real_data
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_pillow_processor(real_data, size):
    process = processor("SiglipImageProcessorPil", size)
    for path in sorted((real_data / "images" / "coco").glob("*.jpg")):
        wanted = processed(process, path).transpose(1, 2, 0)
        np.testing.assert_allclose(normalised(path, size), wanted, atol=1e-6, err_msg=path.name)


@pytest.mark.peer
@pytest.mark.real_data
@pytest.mark.parametrize("size", SIZES)
def test_is_close_to_the_torchvision_processor(real_data, size):
    pytest.importorskip("torchvision")
    process = processor("SiglipImageProcessor", size)
    for path in sorted((real_data / "images" / "coco").glob("*.jpg"))[::5]:
        off = np.abs(normalised(path, size) - processed(process, path).transpose(1, 2, 0))
        # Its weights have fewer bits than Pillow's.
        assert off.max() <= 2 * LEVEL * 1.01 and (off > LEVEL * 1.01).mean() < 1e-3, path
