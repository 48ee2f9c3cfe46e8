"""Questions and captions of a scene."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from vimoe_jax.datasets.viscenes.scenes import Scene, pairs
from vimoe_jax.datasets.viscenes.words import NUMBERS, ORDERS, PLACES, RELATIONS

MOST = 8  # questions of a picture
TYPES = ("object", "number", "color", "location")  # ViVQA's, in its order


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question with its one short answer.

    Attributes:
      type: one of `TYPES`, or a field of a cover.
      question: lower case, no question mark, as in ViVQA.
      answer: lower case.
      about: index of the group whose name, count, colour or position is the answer; -1 if none.
    """

    type: str
    question: str
    answer: str
    about: int = -1


def questions(scene: Scene, rng: np.random.Generator, only_held_out: bool = False) -> list[Asked]:
    """Five to eight questions, the types in equal shares; if asked, about held-out pairs only."""
    asked: dict[str, list[Asked]] = {t: [] for t in TYPES}
    for item in _all(scene, rng):
        if not only_held_out or (item.about >= 0 and scene.groups[item.about].held_out):
            asked[item.type].append(item)
    for items in asked.values():
        rng.shuffle(items)
    rounds = [items[i] for i in range(MOST) for items in asked.values() if i < len(items)]
    return rounds[:MOST]


def _all(scene: Scene, rng: np.random.Generator) -> Iterator[Asked]:
    place = PLACES[scene.place]
    for i, group in enumerate(scene.groups):
        name, color = group.kind.name, f"màu {group.color_name}"
        several = f"những {name}" if group.count > 1 else name
        number = NUMBERS[group.count]
        yield Asked("color", _color(rng, several), color, i)
        yield Asked("number", _number(rng, name, place.phrase), number, i)
        yield Asked("location", _place(rng, several), place.name, i)
        if sum(g.color == group.color for g in scene.groups) == 1:
            yield Asked("object", _by_color(rng, _what(rng, group.kind.ask), color), name, i)
            many = f"có {_pick(rng, 'bao nhiêu', 'mấy')} {group.kind.sort} {color}"
            yield Asked("number", f"{many} {_pick(rng, 'trong ảnh', place.phrase)}", number, i)
    if len(scene.groups) == 1:
        what = _what(rng, scene.groups[0].kind.ask)
        asked = _pick(rng, f"trong ảnh có {what}", f"{what} đang ở {place.phrase}")
        yield Asked("object", asked, scene.groups[0].kind.name, 0)
    wording = _pick(
        rng,
        "bức ảnh được chụp ở đâu",
        "khung cảnh trong ảnh là ở đâu",
        "cảnh này diễn ra ở đâu",
    )
    yield Asked("location", wording, place.name)
    for i, j in pairs(scene):
        yield from _relation(scene, i, j, rng)


def _relation(scene: Scene, i: int, j: int, rng: np.random.Generator) -> Iterator[Asked]:
    """Group `i` as seen from its neighbour `j`."""
    group, other = scene.groups[i], scene.groups[j].kind.name
    name, color = group.kind.name, f"màu {group.color_name}"
    word = RELATIONS[scene.axis][0 if i < j else 1]
    where = f"ngay {word} {other}"
    ask = _what(rng, group.kind.ask)
    yield Asked("object", _pick(rng, f"{ask} nằm {where}", f"{where} là {ask}"), name, i)
    sort = group.kind.sort
    wording = _pick(rng, f"{sort} nằm {where} có màu gì", f"màu của {sort} nằm {where} là gì")
    yield Asked("color", wording, color, i)
    wording = _pick(
        rng,
        f"{name} nằm ở phía nào của {other}",
        f"{name} ở phía nào so với {other}",
        f"so với {other} thì {name} nằm ở phía nào",
    )
    yield Asked("location", wording, word, i)


def _pick(rng: np.random.Generator, *wordings: str) -> str:
    return wordings[int(rng.integers(len(wordings)))]


def _what(rng: np.random.Generator, ask: str) -> str:
    return _pick(rng, "vật gì", "cái gì") if ask == "vật gì" else ask


def _color(rng: np.random.Generator, it: str) -> str:
    return _pick(
        rng, f"màu của {it} là gì", f"màu sắc của {it} là gì", f"{it} có màu gì", f"{it} màu gì"
    )


def _number(rng: np.random.Generator, name: str, place: str) -> str:
    return _pick(
        rng,
        f"có bao nhiêu {name} trong ảnh",
        f"có mấy {name} trong bức ảnh",
        f"có bao nhiêu {name} {place}",
        f"số lượng {name} trong ảnh là bao nhiêu",
    )


def _place(rng: np.random.Generator, it: str) -> str:
    return _pick(rng, f"{it} ở đâu", f"{it} đang ở đâu", f"{it} nằm ở đâu")


def _by_color(rng: np.random.Generator, what: str, color: str) -> str:
    return _pick(
        rng, f"{what} có {color}", f"{what} trong ảnh có {color}", f"trong ảnh {what} có {color}"
    )


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions, each with all groups, their counts and colours, and the place.

    One of them names sizes. With several groups, two name their positions relative to each other.
    """
    place = PLACES[scene.place].phrase
    sized = int(rng.integers(5))
    several = len(scene.groups) > 1
    plain = [
        "Trong ảnh có {all} {place}.",
        "{Place} có {all}.",
        "Bức ảnh chụp {all} {place}.",
        "{All} {place}.",
        "Bức tranh vẽ {all} {place}.",
        "Có {all} {place}.",
    ]
    related = [
        "{Place}, {order} là {all}.",
        "{Order} có {all} {place}.",
        "{First} ở {word} {rest} {place}.",
        "{Place} có {first} nằm {word} {rest}.",
    ]
    used = [plain[i] for i in rng.permutation(len(plain))[: 3 if several else 5]]
    if several:
        used += [related[i] for i in rng.permutation(len(related))[:2]]
    return [_fill(t, scene, place, i == sized) for i, t in enumerate(used)]


def _fill(template: str, scene: Scene, place: str, with_size: bool) -> str:
    phrases = [g.phrase(with_size) for g in scene.groups]
    words = {
        "all": _join(phrases),
        "place": place,
        "first": phrases[0],
        "rest": _join(phrases[1:]) if len(phrases) > 1 else "",
        "order": ORDERS[scene.axis],
        "word": RELATIONS[scene.axis][0],
    }
    return template.format(**words, **{k.capitalize(): v.capitalize() for k, v in words.items()})


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} và {phrases[-1]}"
