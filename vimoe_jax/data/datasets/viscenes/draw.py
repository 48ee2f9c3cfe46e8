"""Drawings as polygons in the unit square [-1, 1]², y pointing down, and backgrounds.

A drawing is a list of (points, role); the role picks the colour: the object's own, a darker or
lighter shade of it, or one that does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Part = tuple[np.ndarray, str]
SIZE = 128  # pixels on a side of a finished picture
SCALE = 2  # drawn larger, then reduced: antialiasing

_FIXED: dict[str, Color] = {
    "dark": (40, 36, 40), "glass": (206, 232, 246), "leaf": (66, 140, 54), "wood": (134, 90, 50),
    "beak": (240, 160, 30), "pollen": (244, 196, 48),
}  # fmt: skip


def _ellipse(cx: float, cy: float, rx: float, ry: float, start=0.0, stop=360.0) -> np.ndarray:
    t = np.radians(np.linspace(start, stop, 28, endpoint=stop - start < 360))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def _points(*xy: float) -> np.ndarray:
    return np.array(xy, float).reshape(-1, 2)


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return _points(x0, y0, x1, y0, x1, y1, x0, y1)


def _mirror(points: np.ndarray) -> np.ndarray:
    return points * (-1, 1)


def _cat() -> list[Part]:
    ear = _points(-0.52, -0.4, -0.5, -1.0, -0.08, -0.68)
    tail = _points(0.4, 0.9, 0.95, 0.7, 0.98, 0.1, 0.8, 0.1, 0.76, 0.55, 0.4, 0.62)
    return [
        (tail, "main"),
        (_ellipse(0, 0.48, 0.52, 0.52), "main"),
        (ear, "main"),
        (_mirror(ear), "main"),
        (_ellipse(0, -0.3, 0.54, 0.46), "main"),
        (_ellipse(-0.2, -0.34, 0.1, 0.13), "eye"),
        (_ellipse(0.2, -0.34, 0.1, 0.13), "eye"),
        (_points(-0.09, -0.14, 0.09, -0.14, 0, -0.03), "eye"),
    ]


def _fish() -> list[Part]:
    return [
        (_points(0.4, 0, 1.0, -0.55, 0.86, 0, 1.0, 0.55), "shade"),
        (_points(-0.3, -0.3, 0.1, -0.75, 0.35, -0.25), "shade"),
        (_ellipse(-0.2, 0, 0.76, 0.46), "main"),
        (_points(-0.05, 0.02, 0.25, 0.3, -0.15, 0.3), "shade"),
        (_ellipse(-0.6, -0.1, 0.11, 0.11), "eye"),
    ]


def _bird() -> list[Part]:
    return [
        (_points(-0.12, 0.4, -0.02, 0.4, -0.02, 1.0, -0.12, 1.0), "dark"),
        (_points(0.12, 0.4, 0.22, 0.4, 0.22, 1.0, 0.12, 1.0), "dark"),
        (_points(-0.4, 0.0, -1.0, -0.3, -0.95, 0.3), "shade"),
        (_ellipse(0, 0.1, 0.62, 0.44), "main"),
        (_points(0.68, -0.5, 1.05, -0.32, 0.68, -0.2), "beak"),
        (_ellipse(0.46, -0.38, 0.34, 0.34), "main"),
        (_points(-0.4, -0.1, 0.25, 0.0, -0.1, 0.4), "shade"),
        (_ellipse(0.54, -0.45, 0.09, 0.09), "eye"),
    ]


def _butterfly() -> list[Part]:
    top, low = _ellipse(-0.52, -0.38, 0.46, 0.5), _ellipse(-0.42, 0.5, 0.36, 0.4)
    spot = _ellipse(-0.54, -0.4, 0.18, 0.2)
    return [
        (low, "shade"), (_mirror(low), "shade"), (top, "main"), (_mirror(top), "main"),
        (spot, "light"), (_mirror(spot), "light"), (_ellipse(0, 0.02, 0.1, 0.8), "dark"),
    ]  # fmt: skip


def _apple() -> list[Part]:
    return [
        (_points(-0.06, -0.4, -0.02, -0.95, 0.12, -0.95, 0.08, -0.4), "wood"),
        (_points(0.08, -0.62, 0.4, -0.98, 0.75, -0.8, 0.45, -0.52), "leaf"),
        (np.concatenate([_ellipse(0.32, 0.18, 0.6, 0.74, -115, 80),
                         _ellipse(-0.32, 0.18, 0.6, 0.74, 100, 295)]), "main"),
        (_ellipse(-0.42, -0.05, 0.14, 0.2), "light"),
    ]  # fmt: skip


def _ball() -> list[Part]:
    return [
        (_ellipse(0, 0, 0.92, 0.92), "main"),
        (np.concatenate([_ellipse(0, 0, 0.92, 0.92, -25, 25),
                         _ellipse(0, 0, 0.92, 0.92, 155, 205)]), "light"),
        (_ellipse(-0.35, -0.5, 0.16, 0.12), "light"),
    ]  # fmt: skip


def _car() -> list[Part]:
    wheel, hub = _ellipse(-0.52, 0.5, 0.27, 0.27), _ellipse(-0.52, 0.5, 0.11, 0.11)
    return [
        (_points(-0.62, -0.05, -0.36, -0.58, 0.42, -0.58, 0.7, -0.05), "main"),
        (_points(-0.44, -0.08, -0.26, -0.45, 0.0, -0.45, 0.0, -0.08), "glass"),
        (_points(0.1, -0.08, 0.1, -0.45, 0.34, -0.45, 0.52, -0.08), "glass"),
        (_points(-1, 0.0, -0.9, -0.1, 0.85, -0.1, 1, 0.12, 1, 0.5, -1, 0.5), "main"),
        (wheel, "dark"), (_mirror(wheel), "dark"), (hub, "glass"), (_mirror(hub), "glass"),
    ]  # fmt: skip


def _boat() -> list[Part]:
    return [
        (_box(-0.06, -0.98, 0.06, 0.4), "wood"),
        (_points(0.12, -0.9, 0.12, 0.24, 0.85, 0.24), "light"),
        (_points(-0.12, -0.7, -0.12, 0.24, -0.66, 0.24), "light"),
        (_points(-1.0, 0.34, 1.0, 0.34, 0.62, 0.9, -0.62, 0.9), "main"),
    ]


def _house() -> list[Part]:
    return [
        (_box(-0.68, -0.15, 0.68, 0.92), "main"),
        (_points(-0.98, -0.1, 0, -0.98, 0.98, -0.1), "shade"),
        (_box(-0.16, 0.3, 0.2, 0.92), "dark"),
        (_box(-0.54, 0.1, -0.24, 0.42), "glass"),
        (_box(0.3, 0.1, 0.58, 0.42), "glass"),
    ]


def _tree() -> list[Part]:
    return [
        (_points(-0.14, 0.2, 0.14, 0.2, 0.2, 1.0, -0.2, 1.0), "wood"),
        (_ellipse(-0.42, -0.05, 0.46, 0.42), "main"),
        (_ellipse(0.42, -0.05, 0.46, 0.42), "main"),
        (_ellipse(0, -0.48, 0.52, 0.5), "main"),
    ]


def _flower() -> list[Part]:
    turn = [math.radians(60 * i + 30) for i in range(6)]
    petals = [_ellipse(0.42 * math.cos(a), -0.3 + 0.42 * math.sin(a), 0.28, 0.28) for a in turn]
    return [
        (_box(-0.06, -0.2, 0.06, 1.0), "leaf"),
        (_points(0.05, 0.75, 0.5, 0.4, 0.55, 0.62), "leaf"),
        *((p, "main") for p in petals),
        (_ellipse(0, -0.3, 0.24, 0.24), "pollen"),
    ]


def _hat() -> list[Part]:
    return [
        (_ellipse(0, 0.45, 1.0, 0.26), "main"),
        (
            _points(-0.56, 0.42, -0.46, -0.62, -0.2, -0.74, 0.2, -0.74, 0.46, -0.62, 0.56, 0.42),
            "main",
        ),
        (_points(-0.56, 0.36, -0.53, 0.08, 0.53, 0.08, 0.56, 0.36), "shade"),
    ]


def _cup() -> list[Part]:
    handle = np.concatenate(
        [_ellipse(0.42, 0.0, 0.5, 0.46, -80, 80), _ellipse(0.42, 0.0, 0.28, 0.24, 80, -80)]
    )
    return [
        (handle, "main"),
        (_points(-0.72, -0.7, 0.48, -0.7, 0.36, 0.86, -0.6, 0.86), "main"),
        (_ellipse(-0.12, -0.7, 0.6, 0.16), "shade"),
    ]


def _umbrella() -> list[Part]:
    hook = np.concatenate(
        [_ellipse(0.2, 0.72, 0.26, 0.26, 180, 0), _ellipse(0.2, 0.72, 0.12, 0.12, 0, 180)]
    )
    return [
        (_box(-0.06, -0.3, 0.06, 0.75), "dark"),
        (hook, "dark"),
        (np.concatenate([_ellipse(0, 0.05, 1.0, 0.95, 180, 360),
                         _points(0.66, -0.14, 0.33, 0.05, 0, -0.14, -0.33, 0.05, -0.66, -0.14)]),
         "main"),
        (np.concatenate([_ellipse(0, 0.05, 0.33, 0.95, 180, 360), _points(0, -0.14)]), "shade"),
    ]  # fmt: skip


def _flag() -> list[Part]:
    x = np.linspace(-0.62, 0.95, 14)
    wave = 0.1 * np.sin((x + 0.62) * 4.5)
    cloth = np.concatenate([np.stack([x, wave - 0.9], 1), np.stack([x, wave + 0.12], 1)[::-1]])
    return [(_box(-0.76, -1.0, -0.6, 1.0), "wood"), (cloth, "main")]


def _star() -> list[Part]:
    a = np.radians(np.arange(10) * 36 - 90)
    r = np.where(np.arange(10) % 2, 0.42, 1.0)
    return [(np.stack([r * np.cos(a), r * np.sin(a) + 0.08], 1), "main")]


ICONS: dict[str, Callable[[], list[Part]]] = {
    "cat": _cat, "fish": _fish, "bird": _bird, "butterfly": _butterfly, "apple": _apple,
    "ball": _ball, "car": _car, "boat": _boat, "house": _house, "tree": _tree, "flower": _flower,
    "hat": _hat, "cup": _cup, "umbrella": _umbrella, "flag": _flag, "star": _star,
}  # fmt: skip
_PARTS = {name: make() for name, make in ICONS.items()}


def mix(color: Color, other: Color, share: float) -> Color:
    """`color` with a share of another."""
    return tuple(round(a * (1 - share) + b * share) for a, b in zip(color, other, strict=True))


def _paint(color: Color, role: str) -> Color:
    dark_object = sum(color) < 180
    if role == "main":
        return color
    if role == "shade":
        return mix(color, (255, 255, 255) if dark_object else (0, 0, 0), 0.24)
    if role == "light":
        return mix(color, (255, 255, 255) if sum(color) < 700 else (120, 120, 130), 0.55)
    if role == "eye":
        return (255, 255, 255) if dark_object else _FIXED["dark"]
    return _FIXED[role]


def draw_icon(
    canvas: ImageDraw.ImageDraw,
    name: str,
    color: Color,
    center: tuple[float, float],
    radius: float,
    *,
    angle: float = 0.0,
    flip: bool = False,
) -> None:
    """Draws an object around `center`, in pixels of the finished picture; angle in degrees."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[c, s], [-s, c]]) * radius * SCALE
    at = np.array(center) * SCALE
    # Dark objects get a light outline and all others a dark one, to stand out on any background.
    outline = (236, 236, 240) if sum(color) < 180 else (44, 40, 48)
    for points, role in _PARTS[name]:
        xy = (points * ((-1 if flip else 1), 1)) @ turn + at
        flat = [tuple(p) for p in xy]
        canvas.polygon(flat, fill=_paint(color, role))
        if role in ("main", "shade", "light"):
            canvas.line([*flat, flat[0]], fill=outline, width=SCALE, joint="curve")


def background(place: str, rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A muted background, so that objects stand out; drawn at `SIZE * SCALE`."""
    n = SIZE * SCALE
    image = Image.new("RGB", (n, n))
    d = ImageDraw.Draw(image)
    horizon = int(n * rng.uniform(0.2, 0.34))
    _BACKGROUNDS[place](d, n, horizon, rng)
    return image, d


def _blades(d: ImageDraw.ImageDraw, n: int, top: int, rng: np.random.Generator, color: Color):
    for x, y in rng.integers((0, top), (n, n), size=(40, 2)).tolist():
        d.line([(x, y), (x + 3, y - 7)], fill=color, width=2)


def _grass(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon], fill=(206, 230, 244))
    d.rectangle([0, horizon, n, n], fill=(172, 210, 140))
    _blades(d, n, horizon + 8, rng, (140, 184, 108))


def _beach(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon // 2], fill=(214, 236, 248))
    d.rectangle([0, horizon // 2, n, horizon], fill=(120, 190, 212))
    d.rectangle([0, horizon, n, n], fill=(242, 226, 184))
    for x, y in rng.integers((0, horizon), (n, n), size=(60, 2)).tolist():
        d.ellipse([x, y, x + 2, y + 2], fill=(222, 202, 154))


def _street(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon], fill=(222, 226, 230))
    x = 0
    while x < n:
        width = int(rng.integers(24, 52))
        top = int(rng.integers(4, max(5, horizon - 12)))
        d.rectangle([x, top, x + width - 4, horizon], fill=(196, 190, 196))
        x += width
    d.rectangle([0, horizon, n, n], fill=(168, 168, 174))
    for x in range(-10, n, 56):
        d.rectangle([x, n - 34, x + 30, n - 28], fill=(226, 226, 220))


def _room(d, n, horizon, rng):
    floor = n - horizon
    d.rectangle([0, 0, n, floor], fill=(240, 226, 212))
    d.rectangle([0, floor, n, n], fill=(204, 174, 140))
    for x in range(int(rng.integers(0, 40)), n, 48):
        d.line([(x, floor), (x - 20, n)], fill=(186, 154, 120), width=2)
    d.rectangle([0, floor - 6, n, floor], fill=(250, 246, 240))


def _lake(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon], fill=(226, 238, 240))
    d.polygon([(0, horizon), (n * 0.3, horizon * 0.3), (n * 0.55, horizon)], fill=(176, 204, 190))
    d.polygon([(n * 0.4, horizon), (n * 0.75, horizon * 0.2), (n, horizon)], fill=(162, 192, 182))
    d.rectangle([0, horizon, n, n], fill=(152, 198, 222))
    for x, y in rng.integers((0, horizon + 4), (n, n), size=(24, 2)).tolist():
        d.arc([x, y, x + 22, y + 10], 200, 340, fill=(190, 222, 238), width=2)


def _snow(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon], fill=(196, 206, 222))
    d.rectangle([0, horizon, n, n], fill=(234, 238, 246))
    for x, y in rng.integers((0, 0), (n, n), size=(50, 2)).tolist():
        d.ellipse([x, y, x + 4, y + 4], fill=(252, 252, 255))


_BACKGROUNDS = {
    "grass": _grass, "beach": _beach, "street": _street,
    "room": _room, "lake": _lake, "snow": _snow,
}  # fmt: skip
