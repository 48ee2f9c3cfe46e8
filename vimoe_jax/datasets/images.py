"""Encoded pictures to square uint8 arrays, as SigLIP's processor makes them.

Normalisation to [-1, 1] happens on the device: uint8 is a quarter of the bytes to move. Colour
profiles are not applied, as that processor does not either.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vimoe_jax.datasets.records import BadRecord

# Others that Pillow knows start programs (EPS), or take any bytes for a picture (TGA, SPIDER).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
# Against decompression bombs: 256 MiB as RGB. Where Pillow would begin to warn.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3
# JPEG's own limit. The weights of a resize take gigabytes for one column of 80 million pixels.
MAX_SIDE = 65_535
MODES = ("squash", "crop", "pad")
_GREY = (127, 127, 127)  # 0 after normalisation

# A warning of Pillow is either an error here or does not touch the pixels. Not around
# each call: `catch_warnings` changes the filters of all threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())
with contextlib.suppress(OSError, AttributeError):
    # libtiff prints its own complaints; Pillow raises those that matter.
    _library = ctypes.CDLL(Image.core.__file__)
    _library.TIFFSetErrorHandler(None)
    _library.TIFFSetWarningHandler(None)


def decode(data: bytes, size: int, mode: str = "squash", *, name: str = "image") -> np.ndarray:
    """Decodes and resizes a picture; of an animation, its first frame.

    Args:
      data: the bytes of a file in one of `FORMATS`, whatever its name says.
      size: pixels on a side of the result.
      mode: "squash" ignores the aspect ratio, as SiglipImageProcessor does; "crop" keeps it and
        cuts the middle; "pad" keeps it and fills with grey.
      name: what a complaint calls the picture.

    Returns:
      (size, size, 3) uint8, RGB, upright, bicubic with antialiasing.

    Raises:
      BadRecord: unreadable, truncated, or larger than `MAX_PIXELS` or `MAX_SIDE`.
      ValueError: no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise BadRecord(f"{name}: {image.width}×{image.height} pixels is too large")
            image.load()
            pixels = np.asarray(_square(_to_rgb(_upright(image)), size, mode))
    except BadRecord:
        raise
    except Image.DecompressionBombError:  # found by Pillow, before the size can be seen here
        raise BadRecord(f"{name}: more than {2 * MAX_PIXELS} pixels is too large") from None
    except UnidentifiedImageError:
        raise BadRecord(f"{name}: unreadable picture: {_what_instead(data)}") from None
    except Exception as e:  # Pillow's decoders raise many kinds on broken files
        reason = " ".join(str(e).split()) or type(e).__name__
        raise BadRecord(f"{name}: unreadable picture: {reason}") from None
    return pixels


def _what_instead(data: bytes) -> str:
    """What usually stands where a picture should."""
    start = data[:1000].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not data:
        return "the file is empty"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "HEIC is not supported"
    if start.startswith(b"<") and b"<svg" in start:
        return "SVG is not supported"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    return "not a picture"


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; the other EXIF fields, often broken, are not read."""
    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }  # fmt: skip
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block; the pixels are fine
        return image
    if orientation not in turns:
        return image
    turned = image.transpose(turns[orientation])
    turned.info = image.info  # transparency
    return turned


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; transparency is laid over white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image)
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        image.info["transparency"] = tuple(v >> 8 for v in clear)  # 16 bits, of which 8 were read
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or clear is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats, which Pillow's own conversion clips instead of scaling."""
    pixels = np.nan_to_num(np.asarray(image, np.float32))
    highest = pixels.max()
    if image.mode.startswith("I;16") or highest > 255:
        top = 65535.0
    else:
        top = 1.0 if image.mode == "F" and highest <= 1 else 255.0
    grey = (pixels.clip(0, top) * np.float32(255 / top)).round().astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[pixels == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _square(image: Image.Image, size: int, mode: str) -> Image.Image:
    width, height = image.size
    if mode == "squash":
        return _resized(image, size, size)
    if mode == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return _resized(image, size, size, (left, top, left + side, top + side))
    scale = size / max(width, height)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.new("RGB", (size, size), _GREY)
    square.paste(_resized(image, width, height), ((size - width) // 2, (size - height) // 2))
    return square


def _resized(
    image: Image.Image,
    width: int,
    height: int,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Bicubic with antialiasing; rows first, then columns, rounded between the two.

    As Pillow before 13 and torchvision do. Newer Pillows begin with the cheaper direction, which
    moves single pixels of portraits by up to 12 levels.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    bicubic = Image.Resampling.BICUBIC
    narrow = image.resize((width, image.height), bicubic, box=(left, 0, right, image.height))
    return narrow.resize((width, height), bicubic, box=(0, top, width, bottom))
