"""Scenes: groups of equal objects in a place, side by side or one above the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vimoe_jax.datasets.viscenes import draw, places
from vimoe_jax.datasets.viscenes.words import COLORS, NOT_ON, NUMBERS, PLACES, SIZES, THINGS, Thing

COLOR_NAMES = tuple(COLORS)
# (thing, colour) pairs that only the compositional split shows: one in seven, spread so that every
# thing and every colour is seen in training with most of its partners.
HELD_OUT = frozenset(
    (t, c) for t in range(len(THINGS)) for c in range(len(COLORS)) if (3 * t + c) % 7 == 0
)
_RADIUS = {"big": (20.0, 17.0), "small": (12.0, 12.0)}  # pixels: where there is room, and where not
_TILT = 6.0  # degrees at most
_GROW = (0.94, 1.0)  # relative size of an object within its group
_MARGIN = 2.0  # pixels around the picture
# Centres of two groups may differ across their axis by this share of the distance along it, so
# that "left of" can never be mistaken for "above".
_SKEW = 0.5


@dataclasses.dataclass(frozen=True)
class Group:
    """Some equal objects, close to each other.

    Attributes:
      thing: index into `THINGS`.
      color: index into `COLORS`.
      count: 1 to 5.
      size: "big" or "small".
    """

    thing: int
    color: int
    count: int
    size: str

    @property
    def kind(self) -> Thing:
        """What they are."""
        return THINGS[self.thing]

    @property
    def color_name(self) -> str:
        """Their colour, in Vietnamese."""
        return COLOR_NAMES[self.color]

    @property
    def held_out(self) -> bool:
        """Whether no split but the compositional one may show such."""
        return (self.thing, self.color) in HELD_OUT

    def phrase(self, with_size: bool = False) -> str:
        """hai con mèo (to) màu đen."""
        size = f" {SIZES[self.size]}" if with_size else ""
        return f"{NUMBERS[self.count]} {self.kind.name}{size} màu {self.color_name}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene graph: groups in order from left to right, or from top to bottom.

    Attributes:
      groups: one to three, no two of the same thing.
      axis: "left" if the first group is left of the second, "above" if it is above it.
      place: a key of `PLACES`.
    """

    groups: tuple[Group, ...]
    axis: str
    place: str


@dataclasses.dataclass(frozen=True)
class Placed:
    """An object where it is drawn: centre and radius in pixels, angle in degrees."""

    group: int
    center: tuple[float, float]
    radius: float
    angle: float
    flip: bool


def sample(rng: np.random.Generator, held_out: bool) -> Scene:
    """Draws a scene; with `held_out`, exactly one group is of a pair that training never shows."""
    num = int(rng.choice(3, p=(0.2, 0.45, 0.35))) + 1
    place = str(rng.choice(list(PLACES)))
    allowed = [t for t, thing in enumerate(THINGS) if thing.icon != NOT_ON.get(place)]
    things = rng.permutation(allowed)[:num].tolist()
    novel = int(rng.integers(num)) if held_out else -1
    groups = []
    for i, thing in enumerate(things):
        colors = [c for c in range(len(COLORS)) if ((thing, c) in HELD_OUT) == (i == novel)]
        count = int(rng.integers(1, 6 if num < 3 else 5))
        # Where both sizes fit, big ones are drawn more often: they never fit where many stand.
        room_for_big = num == 1 or count <= 3
        size = "big" if room_for_big and rng.random() < 0.65 else "small"
        groups.append(Group(thing, int(rng.choice(colors)), count, size))
    return Scene(tuple(groups), "left" if rng.random() < 0.5 else "above", place)


def layout(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """Places every object: none overlap, each group keeps to its own band of the picture."""
    axis = 0 if scene.axis == "left" else 1
    while True:
        centers = [_scatter(scene, i, axis, rng) for i in range(len(scene.groups))]
        means = [c.mean(0) for c, _ in centers]
        steps = [abs(b - a) for i, a in enumerate(means) for b in means[i + 1 :]]
        if all(step[1 - axis] <= _SKEW * step[axis] for step in steps):
            break
    return [
        Placed(
            i,
            (float(x), float(y)),
            radius * float(rng.uniform(*_GROW)),
            float(rng.uniform(-_TILT, _TILT)),
            bool(rng.random() < 0.5),
        )
        for i, (points, radius) in enumerate(centers)
        for x, y in points
    ]


def _scatter(
    scene: Scene, index: int, axis: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Centres (float [count, 2], pixels) of a group, and their radius.

    The group's band is cut into cells as large as an object; some are drawn, and the objects moved
    within them.
    """
    group, num = scene.groups[index], len(scene.groups)
    low = np.full(2, _MARGIN)
    extent = np.full(2, draw.SIZE - 2 * _MARGIN)
    extent[axis] /= num
    low[axis] += extent[axis] * index
    for radius in _RADIUS[group.size]:
        turn = np.radians(_TILT)
        cell = 2 * (radius * (np.cos(turn) + np.sin(turn)) + draw.OUTLINE)
        grid = (extent // cell).astype(int)
        if grid.prod() >= group.count:
            break
    else:
        raise AssertionError(f"no room for {group} among {num}")
    grid = np.minimum(grid, max(2, group.count))  # few objects get room to move
    picked = rng.permutation(grid.prod())[: group.count]
    where = np.stack([picked % grid[0], picked // grid[0]], 1)
    size = extent / grid
    return low + size * (where + 0.5) + rng.uniform(-0.5, 0.5, where.shape) * (size - cell), radius


def render(scene: Scene, placed: list[Placed], rng: np.random.Generator) -> Image.Image:
    """Draws the scene, uint8 RGB `[draw.SIZE, draw.SIZE]`; every object's tint differs a little."""
    image, d = places.background(scene.place, rng)
    for item in placed:
        group = scene.groups[item.group]
        draw.draw_icon(
            d,
            group.kind.icon,
            draw.jitter(COLORS[group.color_name], rng, 14),
            item.center,
            item.radius,
            angle=item.angle,
            flip=item.flip,
            on_dark=scene.place in places.DARK,
        )
    return draw.finish(image)


def pairs(scene: Scene) -> Iterator[tuple[int, int]]:
    """Ordered pairs of neighbouring groups: (index, index of a neighbour)."""
    for i in range(len(scene.groups) - 1):
        yield i, i + 1
        yield i + 1, i
