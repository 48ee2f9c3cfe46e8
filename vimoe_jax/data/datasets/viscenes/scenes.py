"""Scenes: groups of objects on a background, and what can be asked of them."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from vimoe_jax.data.datasets.viscenes import draw, places
from vimoe_jax.data.datasets.viscenes.words import (
    COLORS,
    NUMBERS,
    PLACES,
    RELATIONS,
    SIZES,
    THINGS,
    Thing,
)

COLOR_NAMES = tuple(COLORS)
# (thing, colour) pairs that only the compositional split shows: one in seven, spread so that every
# thing and every colour is seen in training with most of its partners.
HELD_OUT = frozenset(
    (t, c) for t in range(len(THINGS)) for c in range(len(COLORS)) if (3 * t + c) % 7 == 0
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Some equal objects, side by side.

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

    def phrase(self, with_size: bool = False) -> str:
        """hai con mèo (to) màu đen."""
        size = f" {SIZES[self.size]}" if with_size else ""
        return f"{NUMBERS[self.count]} {self.kind.name}{size} màu {self.color_name}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene graph: groups in order from left to right, or from top to bottom.

    Attributes:
      groups: one to three.
      axis: "left" if the first group is left of the second, "above" if it is above it.
      place: a key of `PLACES`.
    """

    groups: tuple[Group, ...]
    axis: str
    place: str


def sample(rng: np.random.Generator, held_out: bool) -> Scene:
    """Draws a scene; with `held_out` its first or last group is a pair never seen in training."""
    num = int(rng.choice(3, p=(0.25, 0.5, 0.25))) + 1
    things = rng.permutation(len(THINGS))[:num].tolist()
    axis = "left" if num == 3 or rng.random() < 0.5 else "above"
    groups = []
    novel = int(rng.integers(num)) if held_out else -1
    for i, thing in enumerate(things):
        pairs = [c for c in range(len(COLORS)) if ((thing, c) in HELD_OUT) == (i == novel)]
        size = "big" if rng.random() < 0.5 else "small"
        most = _MOST[num, size]
        groups.append(Group(thing, int(rng.choice(pairs)), int(rng.integers(1, most + 1)), size))
    return Scene(tuple(groups), axis, str(rng.choice(list(PLACES))))


# (groups, size) -> how many objects find room.
_MOST = {
    (1, "big"): 5,
    (1, "small"): 5,
    (2, "big"): 3,
    (2, "small"): 5,
    (3, "big"): 2,
    (3, "small"): 4,
}
_RADIUS = {"big": 18.0, "small": 11.5}  # pixels


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draws the scene, `draw.SIZE` pixels on a side."""
    image, canvas = places.background(scene.place, rng)
    for group, box in zip(scene.groups, _boxes(scene), strict=True):
        radius = _RADIUS[group.size] * (0.86 if len(scene.groups) == 3 else 1)
        for x, y in _spots(group.count, radius, box, rng):
            jitter = rng.normal(0, 7, 3)
            color = tuple(int(v) for v in np.clip(COLORS[group.color_name] + jitter, 0, 255))
            draw.draw_icon(
                canvas,
                group.kind.icon,
                color,
                (x, y),
                radius * rng.uniform(0.92, 1.06),
                angle=rng.normal(0, 5),
                flip=bool(rng.random() < 0.5),
            )
    return image.reduce(draw.SCALE)


def _boxes(scene: Scene) -> list[tuple[float, float, float, float]]:
    """The part of the picture that each group has to itself."""
    n, edge = len(scene.groups), float(draw.SIZE)
    if scene.axis == "left":
        return [(edge * i / n, 0.0, edge * (i + 1) / n, edge) for i in range(n)]
    return [(0.0, edge * i / n, edge, edge * (i + 1) / n) for i in range(n)]


def _spots(
    count: int, radius: float, box: tuple[float, float, float, float], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Centres that do not overlap: cells of a grid as fine as the count needs, in random order."""
    x0, y0, x1, y1 = box
    columns = max(1, int((x1 - x0) // (2 * radius + 2)))
    rows = max(1, int((y1 - y0) // (2 * radius + 2)))
    columns, rows = min(columns, count), min(rows, max(-(-count // min(columns, count)), 2))
    cells = rng.permutation(columns * rows)[:count]
    width, height = (x1 - x0) / columns, (y1 - y0) / rows
    slack_x, slack_y = max(width / 2 - radius - 1, 0), max(height / 2 - radius - 1, 0)
    return [
        (
            x0 + width * (cell % columns + 0.5) + rng.uniform(-slack_x, slack_x),
            y0 + height * (cell // columns + 0.5) + rng.uniform(-slack_y, slack_y),
        )
        for cell in cells.tolist()
    ]


Question = tuple[str, str, str]  # type, question, answer


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Seven or so questions of ViVQA's four types, each with one short answer."""
    asked = [q for g in scene.groups for q in (_color(scene, g, rng), _number(scene, g, rng))]
    asked += _objects(scene, rng) + _locations(scene, rng)
    order = rng.permutation(len(asked))[:8]
    return [asked[i] for i in order.tolist()]


def _pick(rng: np.random.Generator, *wordings: str) -> str:
    return wordings[int(rng.integers(len(wordings)))]


def _the(group: Group, rng: np.random.Generator) -> str:
    """The group as the subject of a question."""
    return (
        group.kind.name if group.count == 1 else f"{_pick(rng, 'những', 'các')} {group.kind.name}"
    )


def _color(scene: Scene, group: Group, rng: np.random.Generator) -> Question:
    it = _the(group, rng)
    wording = _pick(
        rng, f"màu của {it} là gì", f"{it} có màu gì", f"màu sắc của {it} là gì", f"{it} màu gì"
    )
    return "color", wording, f"màu {group.color_name}"


def _number(scene: Scene, group: Group, rng: np.random.Generator) -> Question:
    it = group.kind.name
    wording = _pick(
        rng,
        f"có bao nhiêu {it} trong ảnh",
        f"có mấy {it} trong bức ảnh",
        f"có bao nhiêu {it} {PLACES[scene.place]}",
        f"số lượng {it} là bao nhiêu",
    )
    return "number", wording, NUMBERS[group.count]


def _objects(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """By colour, where only one group has it, and by relation to a neighbour."""
    asked = []
    for group in scene.groups:
        if sum(g.color == group.color for g in scene.groups) == 1:
            what = _pick(rng, "vật gì", "cái gì") if group.kind.ask == "vật gì" else group.kind.ask
            color = f"màu {group.color_name}"
            wording = _pick(
                rng,
                f"{what} có {color}",
                f"{what} {color} trong ảnh",
                f"trong ảnh {what} có {color}",
            )
            asked.append(("object", wording, group.kind.name))
    for first, second in zip(scene.groups, scene.groups[1:], strict=False):
        before, after = RELATIONS[scene.axis]
        target, other, word = (
            (first, second, before) if rng.random() < 0.5 else (second, first, after)
        )
        # Of three in a row, the middle one has something on both sides, but "next to" is one.
        wording = _pick(
            rng,
            f"{target.kind.ask} nằm ngay {word} {other.kind.name}",
            f"ngay {word} {other.kind.name} là {target.kind.ask}",
        )
        asked.append(("object", wording, target.kind.name))
    return asked


def _locations(scene: Scene, rng: np.random.Generator) -> list[Question]:
    group = scene.groups[int(rng.integers(len(scene.groups)))]
    wording = _pick(
        rng,
        f"{_the(group, rng)} ở đâu",
        f"{_the(group, rng)} đang ở đâu",
        "bức ảnh được chụp ở đâu",
        "khung cảnh trong ảnh là ở đâu",
    )
    asked = [("location", wording, PLACES[scene.place])]
    if len(scene.groups) > 1:
        i, j = rng.permutation(len(scene.groups))[:2].tolist()
        word = RELATIONS[scene.axis][0 if i < j else 1]
        it, other = scene.groups[i], scene.groups[j].kind.name
        wording = _pick(
            rng,
            f"{_the(it, rng)} nằm ở phía nào của {other}",
            f"{_the(it, rng)} ở bên nào so với {other}",
        )
        asked.append(("location", wording, word))
    return asked


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions: each with all groups, their counts and colours, and the place."""
    with_size = bool(rng.random() < 0.3)
    phrases = [g.phrase(with_size) for g in scene.groups]
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} và {phrases[-1]}"
    place = PLACES[scene.place]
    captions = [
        f"Trong ảnh có {listed} {place}.",
        f"{place.capitalize()} có {listed}.",
        f"Bức ảnh chụp {listed} {place}.",
        f"{listed.capitalize()} {place}.",
    ]
    if len(phrases) == 1:
        captions.append(f"Ta nhìn thấy {listed} {place}.")
    else:
        word = RELATIONS[scene.axis][0]
        rest = " và ".join(phrases[1:])
        captions.append(f"{phrases[0].capitalize()} ở {word} {rest} {place}.")
    return captions
