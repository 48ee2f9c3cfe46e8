"""Icons: the objects of the scenes and the emblems of the books' genres, as polygons.

An icon is a list of (points, role), back to front. Points lie in the square [-1, 1]², y down, and
are scaled to fill it. The role picks the colour: the object's own ("main"), a darker or lighter
tint of it ("shade", "light"), its eye, or one that does not change with the object.
"""

from __future__ import annotations

import math

import numpy as np

Part = tuple[np.ndarray, str]


def _ellipse(cx: float, cy: float, rx: float, ry: float, start=0.0, stop=360.0) -> np.ndarray:
    t = np.radians(np.linspace(start, stop, 28, endpoint=stop - start < 360))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def _points(*xy: float) -> np.ndarray:
    return np.array(xy, float).reshape(-1, 2)


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return _points(x0, y0, x1, y0, x1, y1, x0, y1)


def _mirror(points: np.ndarray) -> np.ndarray:
    return points * (-1, 1)


def _turn(points: np.ndarray, degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


def _cat() -> list[Part]:
    ear = _points(-0.54, -0.4, -0.52, -1.05, -0.06, -0.7)
    inner = _points(-0.46, -0.58, -0.45, -0.88, -0.24, -0.7)
    tail = _points(0.4, 0.95, 0.92, 0.8, 1.02, 0.1, 0.8, 0.06, 0.72, 0.5, 0.4, 0.56)
    return [
        (tail, "main"),
        (_ellipse(0, 0.48, 0.54, 0.52), "main"),
        (_ellipse(0, 0.62, 0.26, 0.32), "light"),
        (ear, "main"),
        (_mirror(ear), "main"),
        (inner, "light"),
        (_mirror(inner), "light"),
        (_ellipse(0, 0.02, 0.46, 0.2), "shade"),
        (_ellipse(0, -0.3, 0.58, 0.48), "main"),
        (_ellipse(-0.24, -0.34, 0.12, 0.15), "eye"),
        (_ellipse(0.24, -0.34, 0.12, 0.15), "eye"),
        (_points(-0.1, -0.12, 0.1, -0.12, 0, 0.0), "eye"),
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
        (_box(-0.2, 0.5, -0.08, 0.96), "beak"),
        (_box(0.12, 0.5, 0.24, 0.96), "beak"),
        (_points(-0.3, -0.1, -1.12, -0.42, -1.02, 0.26, -0.4, 0.36), "main"),
        (_ellipse(0, 0.12, 0.66, 0.5), "main"),
        (_points(0.74, -0.58, 1.16, -0.34, 0.74, -0.16), "beak"),
        (_ellipse(0.46, -0.4, 0.42, 0.42), "main"),
        (_points(-0.62, -0.08, 0.22, -0.04, 0.1, 0.3, -0.2, 0.4, -0.5, 0.24), "shade"),
        (_ellipse(0.56, -0.46, 0.12, 0.13), "eye"),
    ]


def _butterfly() -> list[Part]:
    top, low = _ellipse(-0.54, -0.36, 0.46, 0.5), _ellipse(-0.44, 0.5, 0.36, 0.4)
    spot = _ellipse(-0.58, -0.4, 0.2, 0.24)
    return [
        (low, "shade"), (_mirror(low), "shade"), (top, "main"), (_mirror(top), "main"),
        (spot, "light"), (_mirror(spot), "light"), (_ellipse(0, 0.02, 0.11, 0.78), "dark"),
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
        (_ellipse(0, 0, 1, 1), "main"),
        (_turn(_ellipse(0, 0, 0.96, 0.4, -160, -20), 28), "light"),
        (_turn(_ellipse(0, 0, 0.96, 0.4, 20, 160), 28), "light"),
    ]


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
        (_points(0.12, -0.94, 0.12, 0.22, 0.92, 0.22), "main"),
        (_points(-0.12, -0.72, -0.12, 0.22, -0.74, 0.22), "light"),
        (_points(-1.0, 0.34, 1.0, 0.34, 0.62, 0.94, -0.62, 0.94), "main"),
        (_points(-0.96, 0.4, 0.96, 0.4, 0.86, 0.56, -0.86, 0.56), "shade"),
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


def _kite() -> list[Part]:
    return [
        (_points(-0.03, 0.3, 0.03, 0.3, 0.3, 0.72, 0.1, 1.0, 0.04, 0.98, 0.2, 0.72), "main"),
        (_points(0, -1.0, 0.6, -0.3, 0, 0.5, -0.6, -0.3), "main"),
        (_points(0, -1.0, 0, 0.5, -0.6, -0.3), "light"),
    ]


def _heart() -> list[Part]:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outline = np.stack([16 * np.sin(t) ** 3, -y], 1)
    return [(outline, "main"), (_ellipse(-7, -6, 2.6, 2), "light")]


def _flask() -> list[Part]:
    return [
        (_box(-0.22, -0.9, 0.22, -0.2), "glass"),
        (_points(-0.22, -0.3, 0.22, -0.3, 0.78, 0.95, -0.78, 0.95), "glass"),
        (_points(-0.44, 0.2, 0.44, 0.2, 0.76, 0.92, -0.76, 0.92), "main"),
        (_box(-0.32, -1.0, 0.32, -0.84), "shade"),
        (_ellipse(-0.12, 0.56, 0.1, 0.1), "light"),
        (_ellipse(0.2, 0.72, 0.08, 0.08), "light"),
    ]  # fmt: skip


def _pot() -> list[Part]:
    return [
        (_box(-1.0, -0.1, 1.0, 0.14), "dark"),
        (_points(-0.74, -0.2, 0.74, -0.2, 0.66, 0.8, 0.5, 0.92, -0.5, 0.92, -0.66, 0.8), "main"),
        (_ellipse(0, -0.62, 0.14, 0.14), "dark"),
        (_ellipse(0, -0.2, 0.78, 0.36, 180, 360), "shade"),
        (_ellipse(-0.4, 0.3, 0.1, 0.26), "light"),
    ]


def _pagoda() -> list[Part]:
    parts: list[Part] = []
    for y, w in ((0.4, 0.6), (-0.35, 0.36)):
        parts.append((_box(-w, y, w, y + 0.55), "light"))
        eave = w + 0.34
        parts.append((_points(-eave, y + 0.06, -w, y - 0.3, w, y - 0.3, eave, y + 0.06), "main"))
    return [*parts, (_points(-0.1, -0.6, 0, -1.0, 0.1, -0.6), "dark")]


def _suitcase() -> list[Part]:
    return [
        (_box(-0.36, -0.82, 0.36, -0.4), "dark"),
        (_box(-0.22, -0.68, 0.22, -0.4), "glass"),
        (_box(-1.0, -0.5, 1.0, 0.82), "main"),
        (_box(-0.64, -0.5, -0.42, 0.82), "light"),
        (_box(0.42, -0.5, 0.64, 0.82), "light"),
    ]


def _fit(parts: list[Part]) -> list[Part]:
    """Centred, and as large as the square allows."""
    points = np.concatenate([p for p, _ in parts])
    low, high = points.min(0), points.max(0)
    return [((p - (low + high) / 2) / ((high - low).max() / 2), role) for p, role in parts]


OBJECTS = {
    "cat": _cat, "fish": _fish, "bird": _bird, "butterfly": _butterfly, "apple": _apple,
    "ball": _ball, "car": _car, "boat": _boat, "house": _house, "tree": _tree, "flower": _flower,
    "hat": _hat, "cup": _cup, "umbrella": _umbrella, "flag": _flag, "star": _star,
}  # fmt: skip
# Kept apart from the objects: a book's emblem must not show a pair of object and colour.
EMBLEMS = {
    "kite": _kite, "heart": _heart, "flask": _flask, "pot": _pot, "pagoda": _pagoda,
    "suitcase": _suitcase,
}  # fmt: skip
ICONS: dict[str, list[Part]] = {k: _fit(make()) for k, make in (OBJECTS | EMBLEMS).items()}
