"""Backgrounds: muted, so that objects stand out, and each known by its large areas of colour."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from vimoe_jax.datasets.viscenes.draw import SCALE, SIZE, Color, canvas, mix

N = SIZE * SCALE
DARK = frozenset({"night"})  # where outlines must be light


def background(place: str, rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A new picture of a place (a key of `words.PLACES`), `SIZE * SCALE` pixels on a side."""
    image, d = canvas()
    _PAINTERS[place](d, int(N * rng.uniform(0.24, 0.36)), rng)
    return image, d


def _px(pixels: float) -> int:
    return round(pixels * SCALE)


def _fade(d: ImageDraw.ImageDraw, top: int, bottom: int, start: Color, end: Color) -> None:
    """A band of colour from `start` to `end`, in a few steps."""
    steps = 12
    edges = np.linspace(top, bottom, steps + 1).astype(int).tolist()
    for i in range(steps):
        d.rectangle([0, edges[i], N, edges[i + 1]], fill=mix(start, end, i / (steps - 1)))


def _scatter(rng: np.random.Generator, top: int, count: int) -> list[list[int]]:
    return rng.integers((0, top), (N, N), size=(count, 2)).tolist()


def _cloud(d: ImageDraw.ImageDraw, horizon: int, rng: np.random.Generator) -> None:
    x, y = int(rng.integers(N)), int(rng.integers(_px(5), max(_px(6), horizon - _px(10))))
    for dx, dy, r in ((-9, 2, 5), (0, 0, 7), (9, 2, 5)):
        cx, cy, r = x + _px(dx), y + _px(dy), _px(r)
        d.ellipse([cx - r, cy - r, cx + r, cy + r], fill=(248, 251, 254))


def _grass(d, horizon, rng):
    _fade(d, 0, horizon, (176, 216, 242), (222, 240, 250))
    _cloud(d, horizon, rng)
    _fade(d, horizon, N, (176, 214, 134), (150, 196, 108))
    for x, y in _scatter(rng, horizon + _px(4), 34):
        d.line([x, y, x + _px(1.5), y - _px(4)], fill=(126, 176, 88), width=_px(0.8))


def _beach(d, horizon, rng):
    sea = horizon // 2
    _fade(d, 0, sea, (190, 226, 246), (222, 242, 250))
    _fade(d, sea, horizon, (96, 176, 208), (140, 206, 220))
    d.rectangle([0, horizon - _px(2), N, horizon + _px(1)], fill=(248, 250, 246))
    _fade(d, horizon + _px(1), N, (246, 230, 188), (238, 214, 160))
    for x, y in _scatter(rng, horizon + _px(4), 50):
        d.rectangle([x, y, x + _px(0.8), y + _px(0.8)], fill=(220, 196, 144))


def _street(d, horizon, rng):
    _fade(d, 0, horizon, (208, 218, 228), (228, 230, 232))
    x = 0
    while x < N:
        width, top = _px(rng.uniform(12, 24)), int(rng.uniform(_px(3), horizon - _px(8)))
        d.rectangle([x, top, x + width - _px(2), horizon], fill=(182, 180, 192))
        x += width
    d.rectangle([0, horizon, N, horizon + _px(5)], fill=(206, 200, 192))
    d.rectangle([0, horizon + _px(5), N, N], fill=(150, 152, 160))
    middle = (horizon + N) // 2
    for x in range(-_px(rng.uniform(0, 28)), N, _px(28)):
        d.rectangle([x, middle, x + _px(15), middle + _px(3)], fill=(222, 220, 208))


def _room(d, horizon, rng):
    floor = N - horizon
    d.rectangle([0, 0, N, floor], fill=(244, 222, 202))
    for x in range(_px(rng.uniform(0, 12)), N, _px(12)):
        d.rectangle([x, 0, x + _px(4), floor], fill=(238, 212, 190))
    _fade(d, floor, N, (196, 158, 118), (178, 138, 100))
    for x in range(_px(rng.uniform(0, 20)), N + _px(20), _px(22)):
        d.line([x, floor, x - _px(12), N], fill=(160, 122, 86), width=_px(0.8))
    d.rectangle([0, floor - _px(4), N, floor], fill=(252, 246, 238))


def _classroom(d, horizon, rng):
    floor = N - horizon // 2
    d.rectangle([0, 0, N, floor], fill=(240, 240, 222))
    left, top = _px(rng.uniform(4, 12)), _px(rng.uniform(4, 10))
    board = [left, top, N - left, floor - _px(12)]
    d.rectangle([board[0] - _px(3), board[1] - _px(3), board[2] + _px(3), board[3] + _px(3)],
                fill=(170, 126, 82))  # fmt: skip
    d.rectangle(board, fill=(112, 128, 126))
    for x, y in rng.uniform((left + _px(8), top + _px(6)), (N - _px(40), floor - _px(22)), (5, 2)):
        d.line([x, y, x + _px(20), y - _px(1)], fill=(146, 160, 158), width=_px(1.2))
    d.rectangle([0, floor, N, N], fill=(206, 190, 170))


def _lake(d, horizon, rng):
    _fade(d, 0, horizon, (210, 230, 240), (236, 242, 240))
    shift = rng.uniform(-0.1, 0.1) * N
    for x0, x1, x2, y, fill in (
        (-0.1, 0.25, 0.6, 0.3, (168, 200, 186)),
        (0.35, 0.72, 1.1, 0.15, (150, 186, 178)),
    ):
        peak = (N * x1 + shift, horizon * y)
        d.polygon([(N * x0 + shift, horizon), peak, (N * x2 + shift, horizon)], fill=fill)
    _fade(d, horizon, N, (158, 208, 230), (112, 172, 210))
    for x, y in _scatter(rng, horizon + _px(3), 20):
        d.arc([x, y, x + _px(11), y + _px(5)], 200, 340, fill=(198, 228, 242), width=_px(1))


def _snow(d, horizon, rng):
    _fade(d, 0, horizon, (168, 184, 208), (202, 212, 226))
    d.rectangle([0, horizon, N, N], fill=(222, 229, 240))
    d.ellipse([-N // 3, horizon - _px(14), N * 2 // 3, N], fill=(222, 229, 240))
    d.ellipse([N // 3, horizon - _px(8), N * 4 // 3, N], fill=(222, 229, 240))
    _fade(d, horizon + _px(6), N, (230, 236, 245), (238, 242, 249))
    for x, y in _scatter(rng, 0, 44):
        d.ellipse([x, y, x + _px(2), y + _px(2)], fill=(253, 254, 255))


def _night(d, horizon, rng):
    ground = N - horizon // 2
    _fade(d, 0, ground, (24, 30, 66), (62, 70, 124))
    for x, y in _scatter(rng, 0, 36):
        d.rectangle([x, y, x + _px(0.7), y + _px(0.7)], fill=(196, 202, 232))
    x, y, r = int(rng.uniform(0.1, 0.9) * N), _px(rng.uniform(12, 22)), _px(9)
    d.ellipse([x - r, y - r, x + r, y + r], fill=(224, 222, 196))
    d.ellipse([x - r // 3, y - r - _px(2), x + r * 5 // 3, y + r - _px(2)], fill=(34, 40, 80))
    d.rectangle([0, ground, N, N], fill=(38, 56, 66))


_PAINTERS = {
    "grass": _grass, "beach": _beach, "street": _street, "room": _room,
    "classroom": _classroom, "lake": _lake, "snow": _snow, "night": _night,
}  # fmt: skip
