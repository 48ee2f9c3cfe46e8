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
