"""Painting: icons onto a canvas larger than the picture, then reduced for smooth edges."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from vimoe_jax.data.datasets.viscenes.icons import ICONS

Color = tuple[int, int, int]
SIZE = 128  # pixels on a side of a finished picture
SCALE = 3  # the canvas is this much larger
OUTLINE = 1.2  # width of an icon's outline, in pixels of the finished picture
_LIGHT, _DARK = (240, 240, 244), (44, 40, 48)
_FIXED: dict[str, Color] = {
    "dark": (52, 48, 54), "glass": (206, 232, 246), "leaf": (66, 140, 54), "wood": (128, 104, 84),
    "beak": (240, 160, 30), "pollen": (244, 196, 48),
}  # fmt: skip


def canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty canvas, `SIZE * SCALE` pixels on a side, and what draws on it."""
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE))
    return image, ImageDraw.Draw(image)


def finish(image: Image.Image) -> Image.Image:
    """The canvas reduced to the finished picture, uint8 RGB [SIZE, SIZE]."""
    return image.reduce(SCALE)


def mix(color: Color, other: Color, share: float) -> Color:
    """`color` with a share of another."""
    return tuple(round(a * (1 - share) + b * share) for a, b in zip(color, other, strict=True))


def jitter(color: Color, rng: np.random.Generator, spread: float) -> Color:
    """`color` off by a few levels."""
    return tuple(int(v) for v in np.clip(rng.normal(color, spread), 0, 255))


def outlines(
    name: str, center: tuple[float, float], radius: float, angle: float, flip: bool
) -> list[np.ndarray]:
    """An icon's polygons, back to front, in pixels of the finished picture; angle in degrees."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[c, s], [-s, c]]) * radius
    if flip:
        turn = turn * ((-1,), (1,))
    return [points @ turn + center for points, _ in ICONS[name]]


def draw_icon(
    d: ImageDraw.ImageDraw,
    name: str,
    color: Color,
    center: tuple[float, float],
    radius: float,
    *,
    angle: float = 0.0,
    flip: bool = False,
    on_dark: bool = False,
) -> None:
    """Draws an icon of `2 * radius` pixels; on a dark ground its outline is light.

    The outline runs around the whole: first every part with a thick edge, then all the fills.
    """
    parts = [
        [tuple(p) for p in points * SCALE] for points in outlines(name, center, radius, angle, flip)
    ]
    black = sum(color) < 180
    edge = _LIGHT if on_dark or black else _DARK
    for flat in parts:
        d.line([*flat, *flat[:2]], fill=edge, width=round(2 * OUTLINE * SCALE), joint="curve")
    for flat, (_, role) in zip(parts, ICONS[name], strict=True):
        d.polygon(flat, fill=_paint(color, role, black))


def _paint(color: Color, role: str, black: bool) -> Color:
    if role == "main":
        return color
    if role == "shade":
        return mix(color, (255, 255, 255) if black else (0, 0, 0), 0.28)
    if role == "light":
        return mix(color, (255, 255, 255) if sum(color) < 700 else (120, 120, 130), 0.5)
    if role == "eye":
        return _LIGHT if black else _DARK
    return _FIXED[role]
