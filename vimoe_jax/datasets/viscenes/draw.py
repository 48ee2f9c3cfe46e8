"""Painting: icons onto a canvas larger than the picture, then reduced for smooth edges."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from vimoe_jax.datasets.viscenes.icons import ICONS

Color = tuple[int, int, int]
SIZE = 128  # pixels on a side of a finished picture
SCALE = 3  # the canvas is this much larger
OUTLINE = 1.2  # width of an icon's outline, in pixels of the finished picture
_BLACK = 170  # colours whose sum is below get a light outline
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
    r, g, b = (round(a * (1 - share) + b * share) for a, b in zip(color, other, strict=True))
    return r, g, b


def jitter(color: Color, rng: np.random.Generator, spread: float) -> Color:
    """`color`, up to `spread` levels lighter or darker, and a little off in hue."""
    shift = rng.uniform(-spread, spread) + rng.uniform(-spread / 3, spread / 3, 3)
    r, g, b = (int(v) for v in np.clip(np.array(color) + shift, 0, 255))
    return r, g, b


def _corners(points: np.ndarray) -> np.ndarray:
    """Where each corner (float [N, 2]) moves as the polygon's edges move outwards by one."""
    ahead = np.roll(points, -1, 0) - points
    ahead /= np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-9)
    x, y = points.T
    turn = np.sign(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    normal = turn * np.stack([ahead[:, 1], -ahead[:, 0]], 1)
    before = np.roll(normal, 1, 0)
    # Sharp tips would move far away: they are cut off at three times the width.
    return (normal + before) / np.maximum(1 + (normal * before).sum(1, keepdims=True), 0.67)


_CORNERS = {name: [_corners(points) for points, _ in parts] for name, parts in ICONS.items()}


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

    The outline runs around the whole: first every part, enlarged, then all the fills.
    """
    turn = rotation(angle, flip)
    scale, at = radius * SCALE, np.array(center) * SCALE
    black = sum(color) < _BLACK
    edge = _LIGHT if on_dark or black else _DARK
    for (points, _), corners in zip(ICONS[name], _CORNERS[name], strict=True):
        grown = (points * scale + corners * (OUTLINE * SCALE)) @ turn + at
        d.polygon(grown.ravel().tolist(), fill=edge)
    for points, role in ICONS[name]:
        d.polygon(((points * scale) @ turn + at).ravel().tolist(), fill=_paint(color, role, black))


def rotation(angle: float, flip: bool) -> np.ndarray:
    """The matrix that turns points (float [N, 2], on its left) by degrees, after a mirroring."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[-c, -s], [-s, c]] if flip else [[c, s], [-s, c]])


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
