import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from vimoe_jax.datasets import images
from vimoe_jax.datasets.images import decode
from vimoe_jax.datasets.records import BadRecord

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


@pytest.mark.parametrize(
    "format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"]
)
def test_formats(format):
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    options |= {"quality": 95} if format == "AVIF" else {}
    pixels = decode(encoded(quarters(), format, **options), 16)
    np.testing.assert_allclose(corners(pixels), (RED, GREEN, BLUE, WHITE), atol=8)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "YCbCr"])
def test_colour_modes(mode):
    format = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {}  # Pillow 12 reads no raw ones
    pixels = decode(encoded(quarters(mode=mode), format, **options), 16)
    np.testing.assert_allclose(corners(pixels), (RED, GREEN, BLUE, WHITE), atol=8)


def test_cmyk_jpeg():
    pixels = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100), 8)
    np.testing.assert_allclose(pixels[4, 4], (0, 255, 255), atol=3)


def test_ycck_jpeg():
    # Adobe's: inverted, and its C, M, Y as Y, Cb, Cr. Cyan is (255, 0, 0): (76, 85, 255).
    stored = Image.merge("CMYK", [Image.new("L", (8, 8), 255 - v) for v in (76, 85, 255, 255)])
    data = encoded(stored, "JPEG", quality=100)
    marker = data.index(b"Adobe") + 11
    assert data[marker] == 0
    pixels = decode(data[:marker] + b"\2" + data[marker + 1 :], 8)
    np.testing.assert_allclose(pixels[4, 4], (0, 255, 255), atol=4)


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


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_floats(top):
    ramp = (np.linspace(0, top, 16, dtype=np.float32))[None].repeat(16, 0)
    ramp[3, 3] = np.nan
    pixels = decode(encoded(Image.fromarray(ramp), "TIFF"), 16).astype(int)
    np.testing.assert_allclose(pixels[8, :, 0], np.linspace(0, 255, 16), atol=1)
    assert (pixels[3, 3] == 0).all()


def png(depth, kind, row, extra=b"", width=8, height=8):
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * min(height, 8))
    return PNG + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PNG = b"\x89PNG\r\n\x1a\n"


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    "depth, kind, pixel, wanted",
    [
        (16, 0, (0x8000,), (128, 128, 128)),
        (16, 2, (0xFFFF, 0x8000, 0x0100), (255, 128, 1)),
        (16, 4, (0x8000, 0xFFFF), (128, 128, 128)),
        (16, 4, (0x8000, 0), (255, 255, 255)),
        (16, 6, (0xFFFF, 0, 0, 0x8000), (255, 127, 127)),
    ],
)
def test_sixteen_bit_png(depth, kind, pixel, wanted):
    row = struct.pack(f">{len(pixel)}H", *pixel) * 8
    np.testing.assert_allclose(decode(png(depth, kind, row), 8)[4, 4], wanted, atol=1)


@pytest.mark.parametrize(
    "depth, kind, pixel, clear",
    [
        (16, 0, struct.pack(">H", 0x8000), struct.pack(">H", 0x8000)),
        (16, 2, struct.pack(">HHH", 65535, 9, 0), struct.pack(">HHH", 65535, 9, 0)),
        (8, 2, bytes((1, 2, 3)), struct.pack(">HHH", 1, 2, 3)),
        (8, 0, b"\7", struct.pack(">H", 7)),
    ],
)
def test_one_transparent_colour(depth, kind, pixel, clear):
    row = pixel * 4 + bytes(len(pixel)) * 4
    pixels = decode(png(depth, kind, row, chunk(b"tRNS", clear)), 8)
    assert (pixels[:, :3] == 255).all() and (pixels[:, 5:] == 0).all()


def test_palette_with_several_alphas():
    palette = chunk(b"PLTE", bytes((255, 0, 0, 0, 0, 255))) + chunk(b"tRNS", bytes((0, 128)))
    pixels = decode(png(8, 3, b"\0" * 4 + b"\1" * 4, palette), 8)
    assert (pixels[:, :3] == 255).all()
    np.testing.assert_allclose(pixels[4, 6], (127, 127, 255), atol=1)


@pytest.mark.parametrize("depth, row, wanted", [(1, b"\xf0", 255), (2, b"\xaa\xaa", 170)])
def test_few_bits(depth, row, wanted):
    assert (decode(png(depth, 0, row), 8)[4, 0] == wanted).all()


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


def test_a_colour_profile_is_ignored():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    data = encoded(quarters(), icc_profile=profile)
    np.testing.assert_array_equal(decode(data, 16), decode(encoded(quarters()), 16))


def test_the_first_picture_of_a_multi_picture_jpeg():
    data = encoded(quarters(), "MPO", save_all=True, append_images=[quarters().rotate(180)])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_allclose(corners(decode(data, 16))[0], RED, atol=20)


def test_a_frame_smaller_than_its_animation():
    small = Image.new("P", (4, 4), 1)
    small.putpalette([*BLUE, *RED])
    data = bytearray(encoded(small, "GIF"))
    data[6:10] = struct.pack("<HH", 8, 8)  # the canvas
    at = data.index(b",\0\0\0\0")
    data[at + 1 : at + 5] = struct.pack("<HH", 4, 4)  # the frame's corner
    assert tuple(decode(bytes(data), 8)[7, 7]) == RED


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    np.testing.assert_allclose(decode(data, 8)[4, 4], RED, atol=8)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation(format):
    upright = quarters(64, 32)
    reverse = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    for orientation, turn in reverse.items():
        stored = upright if turn is None else upright.transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = decode(encoded(stored, format, exif=exif), 16)
        wanted = corners(decode(encoded(upright), 16))
        np.testing.assert_allclose(corners(pixels), wanted, atol=25, err_msg=str(orientation))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert corners(decode(encoded(quarters(), exif=exif), 16))[0] == RED


def test_a_turned_picture_keeps_its_transparency():
    grey = Image.new("L", (8, 8), 7)
    grey.paste(8, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = decode(encoded(grey, transparency=8, exif=exif), 8)
    assert (pixels[0] == 7).all() and (pixels[7] == 255).all()


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


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "the file is empty"),
        (b"\0" * 100, "not a picture"),
        ("con mèo".encode(), "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"<html>404</html>", "a web page"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><p>", "a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "SVG is not supported"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 50, "HEIC is not supported"),
    ],
)  # fmt: skip
def test_no_picture_at_all(data, reason):
    with pytest.raises(BadRecord) as e:
        decode(data, 8, name="x.jpg")
    assert str(e.value) == f"x.jpg: unreadable picture: {reason}"


def test_too_many_pixels(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 200)
    with pytest.raises(BadRecord, match=r"a: 16×16 pixels is too large"):
        decode(encoded(quarters()), 8, name="a")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "width, height",
    [(60_000, 60_000), (10_000, 10_000), (1, 80_000_000), (80_000_000, 1), (65_536, 1),
     (2**31 - 1, 2**31 - 1)],
)  # fmt: skip
def test_decompression_bomb(width, height):
    bomb = png(8, 2, b"\0" * 99, width=width, height=height)
    before = time.monotonic()
    with pytest.raises(BadRecord, match=r"^x: .* pixels is too large$"):
        decode(bomb, 8, name="x")
    assert time.monotonic() - before < 1


def test_a_tall_picture_within_the_limits_is_resized():
    data = encoded(Image.new("1", (1, images.MAX_SIDE), 1))
    for mode in images.MODES:
        assert decode(data, 16, mode).max() == 255


def test_a_complaint_is_one_line(monkeypatch):
    def load(self):
        raise OSError("first\nsecond")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(BadRecord, match=r"^x: unreadable picture: first second$"):
        decode(encoded(quarters()), 8, name="x")
