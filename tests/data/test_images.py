import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vimoe_jax.data import images
from vimoe_jax.data.images import decode
from vimoe_jax.data.records import BadRecord

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def quarters(width=16, height=16, mode="RGB"):
    """Red, green over blue, white."""
    image = Image.new("RGB", (width, height))
    boxes = [(0, 0), (width // 2, 0), (0, height // 2), (width // 2, height // 2)]
    for corner, color in zip(boxes, (RED, GREEN, BLUE, WHITE), strict=True):
        image.paste(color, (*corner, corner[0] + width // 2, corner[1] + height // 2))
    return image.convert(mode)


def corners(pixels):
    n = len(pixels) - 1
    return [tuple(pixels[y, x].tolist()) for y, x in ((0, 0), (0, n), (n, 0), (n, n))]


def noise(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_squash_is_siglips_resize():
    image = noise(37, 23)
    pixels = decode(encoded(image), 16)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    # SiglipImageProcessor: PIL.Image.resize, bicubic, aspect ratio ignored.
    np.testing.assert_array_equal(pixels, image.resize((16, 16), Image.Resampling.BICUBIC))


def test_downsizing_averages():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    pixels = decode(encoded(Image.fromarray(checks.astype(np.uint8))), 8)
    assert 120 < pixels.min() and pixels.max() < 135


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(format):
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    pixels = decode(encoded(quarters(), format, **options), 16)
    np.testing.assert_allclose(corners(pixels), (RED, GREEN, BLUE, WHITE), atol=8)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "YCbCr"])
def test_colour_modes(mode):
    format = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    pixels = decode(encoded(quarters(mode=mode), format), 16)
    np.testing.assert_allclose(corners(pixels), (RED, GREEN, BLUE, WHITE), atol=8)


def test_cmyk_jpeg():
    pixels = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100), 8)
    np.testing.assert_allclose(pixels[4, 4], (0, 255, 255), atol=3)


def test_grey_modes():
    ramp = np.linspace(0, 1, 16)[None].repeat(16, 0)
    eight = decode(encoded(Image.fromarray((ramp * 255).astype(np.uint8))), 16)
    sixteen = decode(encoded(Image.fromarray((ramp * 65535).astype(np.uint16))), 16)
    assert eight[0, 0, 0] == 0 and eight[0, 15, 0] == 255
    np.testing.assert_allclose(sixteen.astype(int), eight, atol=1)
    dark = decode(encoded(Image.fromarray(np.full((8, 8), 512, np.uint16))), 8)
    assert (dark == 2).all()  # scaled by 16 bits, not by the picture's own range
    one_bit = decode(encoded(Image.new("1", (8, 8), 1)), 8)
    assert (one_bit == 255).all()


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    np.testing.assert_allclose(decode(encoded(half), 8)[4, 4], (255, 127, 127), atol=1)
    assert (decode(encoded(Image.new("LA", (8, 8), (0, 0))), 8) == 255).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert (decode(encoded(palette, transparency=1), 8) == 255).all()
    grey = Image.new("L", (8, 8), 7)
    assert (decode(encoded(grey, transparency=7), 8) == 255).all()
    assert (decode(encoded(grey, transparency=8), 8) == 7).all()


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    np.testing.assert_allclose(decode(data, 8)[4, 4], RED, atol=8)


def test_exif_orientation():
    upright = quarters(32, 16)
    reverse = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    for orientation, turn in reverse.items():
        stored = upright if turn is None else upright.transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = decode(encoded(stored, exif=exif), 16)
        np.testing.assert_array_equal(pixels, decode(encoded(upright), 16), str(orientation))


@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_costs_nothing(exif):
    assert corners(decode(encoded(quarters(), exif=exif), 16))[0] == RED


def test_crop_keeps_the_middle():
    image = Image.new("RGB", (48, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    assert (decode(encoded(image), 16, "crop") == BLUE).all()
    assert tuple(decode(encoded(image), 16)[8, 1]) == RED


@pytest.mark.parametrize("size, inside", [((40, 20), np.s_[4:12, :]), ((20, 40), np.s_[:, 4:12])])
def test_pad_keeps_the_aspect(size, inside):
    pixels = decode(encoded(Image.new("RGB", size, RED)), 16, "pad")
    is_red = (pixels == RED).all(-1)
    assert is_red[inside].all() and is_red.sum() == 8 * 16
    assert abs(int(pixels[~is_red].mean()) - 127) <= 1


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes(mode, size):
    assert decode(encoded(Image.new("RGB", size, BLUE)), 16, mode).shape == (16, 16, 3)


def test_unknown_mode():
    with pytest.raises(ValueError, match="squeeze"):
        decode(encoded(quarters()), 8, "squeeze")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("part", [0.1, 0.6])
def test_truncated(format, part):
    data = encoded(noise(64, 64), format)
    with pytest.raises(BadRecord, match=r"^ảnh/a\.jpg: unreadable picture"):
        decode(data[: int(len(data) * part)], 16, name="ảnh/a.jpg")


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"<html>404</html>", "con mèo".encode()])
def test_no_picture_at_all(data):
    with pytest.raises(BadRecord) as e:
        decode(data, 8, name="x.png")
    assert str(e.value) == "x.png: unreadable picture: not a picture"


def test_too_many_pixels(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 200)
    with pytest.raises(BadRecord, match=r"a: 16×16 pixels is too large"):
        decode(encoded(quarters()), 8, name="a")


def test_decompression_bomb():
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    with pytest.raises(BadRecord, match="x: "):
        decode(bomb, 8, name="x")


def test_real_photographs(real_data):
    paths = sorted((real_data / "images" / "coco").glob("*.jpg"))
    assert len(paths) > 50
    for path in paths[:12]:
        pixels = decode(path.read_bytes(), 64, name=path.name)
        assert pixels.std() > 10
        with Image.open(path) as image:
            plain = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pixels, plain)
