"""Encoded pictures to square uint8 arrays, as SigLIP's processor makes them.

Normalisation to [-1, 1] happens on the device: uint8 is a quarter of the bytes to move.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vimoe_jax.data.records import BadRecord

# Against decompression bombs: 256 MiB as RGB. Where Pillow would begin to warn.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3
_GREY = (127, 127, 127)  # 0 after normalisation


def decode(data: bytes, size: int, mode: str = "squash", *, name: str = "image") -> np.ndarray:
    """Decodes and resizes a picture.

    Args:
      data: the bytes of a PNG, JPEG, WebP, GIF, … file.
      size: pixels on a side of the result.
      mode: "squash" ignores the aspect ratio, as SiglipImageProcessor does; "crop" keeps it and
        cuts the middle; "pad" keeps it and fills with grey.
      name: what a complaint calls the picture.

    Returns:
      (size, size, 3) uint8, RGB, bicubic with antialiasing.

    Raises:
      BadRecord: unreadable, truncated, or larger than `MAX_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise BadRecord(f"{name}: {image.width}×{image.height} pixels is too large")
        image.load()
        image = _to_rgb(_upright(image))
    except BadRecord:
        raise
    except Exception as e:  # Pillow's decoders raise many kinds on broken files
        reason = "not a picture" if isinstance(e, UnidentifiedImageError) else e
        raise BadRecord(f"{name}: unreadable picture: {reason or type(e).__name__}") from None
    return np.asarray(_square(image, size, mode), np.uint8)


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
        # 16-bit grey, which Pillow's own conversion clips instead of scaling.
        pixels = np.asarray(image, np.float64)
        top = 65535 if image.mode.startswith("I;16") or pixels.max() > 255 else 255
        image = Image.fromarray((pixels.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _square(image: Image.Image, size: int, mode: str) -> Image.Image:
    bicubic = Image.Resampling.BICUBIC
    if mode == "squash":
        return image.resize((size, size), bicubic)
    if mode == "crop":
        return ImageOps.fit(image, (size, size), bicubic)
    if mode == "pad":
        scale = size / max(image.size)
        width, height = (max(1, round(n * scale)) for n in image.size)
        square = Image.new("RGB", (size, size), _GREY)
        corner = ((size - width) // 2, (size - height) // 2)
        square.paste(image.resize((width, height), bicubic), corner)
        return square
    raise ValueError(f"mode must be 'squash', 'crop' or 'pad', not {mode!r}")
