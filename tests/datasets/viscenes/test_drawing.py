"""ViScenes' pictures, captions and questions, before they become a dataset."""

import functools
import itertools
import re
import unicodedata
from collections import Counter, defaultdict

import numpy as np
import pytest

from vimoe_jax.datasets.viscenes import asking, builder, covers, draw, icons, scenes, words

SPLITS = builder.SPLITS
SEEN = tuple(s for s in SPLITS if s != "test_compositional")
THING = {t.name: t for t in words.THINGS}
# "chiếc ô tô" before "chiếc ô".
NAME = "|".join(sorted(THING, key=len, reverse=True))
COLOR = "|".join(sorted(words.COLORS, key=len, reverse=True))
PHRASE = re.compile(
    rf"({'|'.join(words.NUMBERS.values())}) ({NAME})(?: (?:to|nhỏ))? màu ({COLOR})\b", re.I
)


@functools.cache
def made(split: str, count: int = 120) -> tuple[builder.Picture, ...]:
    return tuple(builder.picture(0, split, i) for i in range(count))


def only_scenes(*splits: str) -> list[builder.Picture]:
    return [p for s in splits for p in made(s) if isinstance(p.shows, scenes.Scene)]


def texts(picture: builder.Picture) -> list[str]:
    return picture.captions + [t for a in picture.asked for t in (a.question, a.answer)]


def told(caption: str) -> list[tuple[str, str, str]]:
    """What a caption says is there: (number, name, colour)."""
    return [tuple(m.lower() for m in found) for found in PHRASE.findall(caption)]


def plain(example: dict) -> tuple:
    return example["id"], example["image"].getvalue(), repr(example["qa"])


def test_same_seed_same_bytes_in_any_order():
    where = [(split, i) for split in SPLITS for i in range(4)]
    forth = {w: plain(builder.example(7, *w)) for w in where}
    back = {w: plain(builder.example(7, *w)) for w in reversed(where)}
    assert forth == back
    assert plain(builder.example(8, *where[0])) != forth[where[0]]


def test_no_picture_twice():
    images = [p.image.tobytes() for split in SPLITS for p in made(split)]
    assert len(set(images)) == len(images)


def test_pictures_are_rgb_of_the_declared_size_and_both_kinds_appear():
    assert {(p.image.mode, p.image.size) for p in made("train")} == {("RGB", (128, 128))}
    share = len(only_scenes("train")) / len(made("train"))
    assert 0.6 < share < 0.9
    kinds = {type(p.shows) for p in made("train")}
    assert kinds == {scenes.Scene, covers.Cover, covers.Sign}


# Scenes: what is drawn.


def extents(scene: scenes.Scene, placed: scenes.Placed) -> np.ndarray:
    """Corners [[x0, y0], [x1, y1]] of what is drawn, outline included."""
    icon = icons.ICONS[scene.groups[placed.group].kind.icon]
    points = np.concatenate([p for p, _ in icon]) * placed.radius
    points = points @ draw.rotation(placed.angle, placed.flip) + placed.center
    return np.stack([points.min(0) - draw.OUTLINE, points.max(0) + draw.OUTLINE])


def laid_out(count: int = 300):
    for i in range(count):
        rng = np.random.default_rng([3, i])
        scene = scenes.sample(rng, held_out=bool(i % 2))
        yield scene, scenes.layout(scene, rng), rng


def test_objects_stay_inside_and_never_overlap():
    for scene, placed, _ in laid_out():
        assert Counter(p.group for p in placed) == {i: g.count for i, g in enumerate(scene.groups)}
        boxes = [extents(scene, p) for p in placed]
        assert all((b >= 0).all() and (b <= draw.SIZE).all() for b in boxes)
        for a, b in itertools.combinations(boxes, 2):
            assert (a[0] >= b[1]).any() or (b[0] >= a[1]).any(), scene


def test_objects_are_large_and_big_ones_larger():
    sizes = defaultdict(list)
    for scene, placed, _ in laid_out():
        for p in placed:
            low, high = extents(scene, p)
            sizes[scene.groups[p.group].size].append((high - low).max())
    assert 20 <= min(sizes["small"]) and max(sizes["big"]) <= 48
    assert min(sizes["big"]) > max(sizes["small"]) + 3


def test_objects_show_their_colour():
    for scene, placed, rng in laid_out(60):
        pixels = np.asarray(scenes.render(scene, placed, rng)).astype(int)
        for p in placed:
            group = scene.groups[p.group]
            (x0, y0), (x1, y1) = extents(scene, p).astype(int)
            box = pixels[y0 : y1 + 1, x0 : x1 + 1]
            off = np.abs(box - words.COLORS[group.color_name]).max(-1)
            assert (off < 30).mean() > 0.12, group


def test_scenes_vary():
    shown = [p.shows for p in only_scenes("train")]
    assert {len(s.groups) for s in shown} == {1, 2, 3}
    assert {s.axis for s in shown} == set(words.RELATIONS)
    assert {s.place for s in shown} == set(words.PLACES)
    assert {g.count for s in shown for g in s.groups} == {1, 2, 3, 4, 5}
    assert {g.kind for s in shown for g in s.groups} == set(words.THINGS)
    assert {g.color for s in shown for g in s.groups} == set(range(len(words.COLORS)))


def test_what_a_background_shows_is_not_counted():
    for scene, _, _ in laid_out():
        assert words.NOT_ON.get(scene.place) not in {g.kind.icon for g in scene.groups}


# The compositional split.


def test_held_out_pairs_are_few_and_spread():
    total = len(words.THINGS) * len(words.COLORS)
    assert 0.1 < len(scenes.HELD_OUT) / total < 0.2
    by_thing = Counter(t for t, _ in scenes.HELD_OUT)
    by_color = Counter(c for _, c in scenes.HELD_OUT)
    assert max(by_thing.values()) <= 2 and max(by_color.values()) <= 3


def held_out_names() -> set[tuple[str, str]]:
    return {(words.THINGS[t].name, scenes.COLOR_NAMES[c]) for t, c in scenes.HELD_OUT}


def test_held_out_pairs_are_told_of_in_the_compositional_split_alone():
    held_out = held_out_names()
    for split in SPLITS:
        for picture in only_scenes(split):
            found = {(name, color) for c in picture.captions for _, name, color in told(c)}
            if split == "test_compositional":
                assert found & held_out, picture.captions
            else:
                assert not found & held_out, picture.captions


def test_compositional_questions_are_about_the_held_out_pair():
    pictures = made("test_compositional")
    assert all(isinstance(p.shows, scenes.Scene) for p in pictures)
    for picture in pictures:
        novel = [i for i, g in enumerate(picture.shows.groups) if g.held_out]
        assert {a.about for a in picture.asked} == set(novel)
        name = picture.shows.groups[novel[0]].kind.name
        color = f"màu {picture.shows.groups[novel[0]].color_name}"
        for a in picture.asked:
            assert name in f"{a.question} {a.answer}" or color in f"{a.question} {a.answer}"


def test_covers_show_no_object():
    assert not {g.emblem for g in words.GENRES.values()} & {t.icon for t in words.THINGS}


# Scenes: what is said.


def test_five_captions_each_tell_all():
    for picture in only_scenes(*SPLITS):
        scene = picture.shows
        want = {
            (words.NUMBERS[g.count], g.kind.name, g.color_name) for g in scene.groups
        }  # counts, things and colours
        assert len(set(picture.captions)) == 5
        for caption in picture.captions:
            assert set(told(caption)) == want, caption
            assert words.PLACES[scene.place].phrase in caption.lower()
            assert caption[0].isupper() and caption.endswith(".") and "{" not in caption
        order = words.ORDERS[scene.axis], words.RELATIONS[scene.axis][0]
        related = sum(any(o in c.lower() for o in order) for c in picture.captions)
        assert related == (2 if len(scene.groups) > 1 else 0)
        assert any(re.search(r" (to|nhỏ) màu ", c) for c in picture.captions)


def test_nouns_come_with_their_classifier():
    nouns = {t.noun: t.classifier for t in words.THINGS}
    pattern = re.compile(rf"(\w+) ({'|'.join(sorted(nouns, key=len, reverse=True))})(?!\w)")
    seen = Counter()
    for picture in only_scenes(*SPLITS):
        for text in texts(picture):
            for before, noun in pattern.findall(text.lower()):
                assert before == nouns[noun], text
                seen[noun] += 1
    assert set(seen) == set(nouns)


def geometry(scene: scenes.Scene, placed: list[scenes.Placed]):
    """(i, j) -> on which side of group j group i is, from where the objects are drawn."""
    boxes = []
    for i in range(len(scene.groups)):
        corners = np.stack([extents(scene, p) for p in placed if p.group == i])
        boxes.append((corners[:, 0].min(0), corners[:, 1].max(0)))
    middle = [np.mean([p.center for p in placed if p.group == i], 0) for i in range(len(boxes))]
    sides = {}
    for i, j in itertools.permutations(range(len(boxes)), 2):
        dx, dy = middle[i] - middle[j]
        axis = 0 if abs(dx) > abs(dy) else 1
        # No object of one reaches into the other's band.
        assert boxes[i][1][axis] <= boxes[j][0][axis] or boxes[j][1][axis] <= boxes[i][0][axis]
        before = (dx, dy)[axis] < 0
        sides[i, j] = (("bên trái", "bên phải"), ("phía trên", "phía dưới"))[axis][not before]
        sides[i, j, "far"] = abs((dx, dy)[axis])
    return sides


def answers(scene: scenes.Scene, placed: list[scenes.Placed], kind: str, question: str) -> set[str]:
    """All right answers, found by someone who knows the picture but not how it was asked."""
    sides = geometry(scene, placed)
    groups = dict(enumerate(scene.groups))
    named = [i for n in re.findall(NAME, question) for i in groups if groups[i].kind.name == n]
    if "phía nào" in question:
        subject, other = named if not question.startswith("so với") else reversed(named)
        return {sides[subject, other]}
    if kind == "location":
        return {words.PLACES[scene.place].name}
    chosen = set(groups)
    if near := re.search(
        rf"ngay ({'|'.join(sum(words.RELATIONS.values(), ()))}) ({NAME})", question
    ):
        other = next(i for i in groups if groups[i].kind.name == near[2])
        on_side = [i for i in groups if i != other and sides[i, other] == near[1]]
        chosen = set(sorted(on_side, key=lambda i: sides[i, other, "far"])[:1])
    elif named:
        chosen &= set(named)
    if color := re.search(rf"màu ({COLOR})(?!\w)", question):
        chosen = {i for i in chosen if groups[i].color_name == color[1]}
    if kind == "number":
        return {words.NUMBERS[sum(p.group in chosen for p in placed)]}
    if kind == "color":
        return {f"màu {groups[i].color_name}" for i in chosen}
    return {groups[i].kind.name for i in chosen}


def test_every_question_has_one_right_answer():
    asked = Counter()
    for scene, placed, rng in laid_out():
        for a in asking.questions(scene, rng):
            assert answers(scene, placed, a.type, a.question) == {a.answer}, (scene, a)
            sort = re.search(r"\b(con|quả|vật|cái) gì", a.question)
            if a.type == "object":
                belongs = a.answer.split()[0] if a.answer[:3] in ("con", "quả") else "thing"
                assert (sort[1] if sort[1] in ("con", "quả") else "thing") == belongs, a
            asked[a.type] += 1
    assert set(asked) == set(asking.TYPES)


def test_five_to_eight_questions_all_different():
    for picture in only_scenes(*SPLITS):
        asked = [a.question for a in picture.asked]
        assert 5 <= len(asked) <= asking.MOST and len(set(asked)) == len(asked), asked


def test_no_answer_is_too_frequent():
    for split, limit in (("train", 0.3), ("test_compositional", 0.3)):
        count = defaultdict(Counter)
        for picture in made(split):
            for a in picture.asked:
                count[a.type][a.answer] += 1
        for kind, by_answer in count.items():
            if by_answer.total() >= 60:
                assert max(by_answer.values()) / by_answer.total() < limit, (kind, by_answer)


def test_questions_are_worded_in_many_ways():
    words_of = defaultdict(set)
    for picture in made("train"):
        for a in picture.asked:
            words_of[a.type].add(re.sub(rf"{NAME}|màu ({COLOR})", "_", a.question))
    assert all(len(w) >= 3 for w in words_of.values()), words_of


# Covers, signs, and all text.


def printed() -> set[str]:
    rows = {*words.TITLES, *words.AUTHORS, *words.PUBLISHERS, *words.GENRES, *words.SIGNS}
    return rows | {covers.TRANSLATED + t for t in words.TRANSLATORS}


def test_all_text_is_nfc_and_questions_look_like_vivqas():
    for split in SPLITS:
        for picture in made(split):
            for text in texts(picture):
                assert text and text == unicodedata.normalize("NFC", text).strip()
                assert "\n" not in text and "  " not in text
            for a in picture.asked:
                assert a.question == a.question.lower() and "?" not in a.question
                assert a.answer == a.answer.lower()
    assert all(t == unicodedata.normalize("NFC", t) for t in printed())


@pytest.mark.parametrize("name", covers.FONTS)
def test_the_font_has_every_letter(name):
    font = covers.font(name, 18)
    vietnamese = "ăâđêôơưàảãáạằẳẵắặầẩẫấậèẻẽéẹềểễếệìỉĩíịòỏõóọồổỗốộờởỡớợùủũúụừửữứựỳỷỹýỵ"
    letters = set("".join(printed())) | set(vietnamese) | set(vietnamese.upper())
    tofu = bytes(font.getmask("\U0010fffd"))
    missing = {c for c in letters if c != " " and bytes(font.getmask(c)) in (tofu, b"")}
    assert not missing
    assert tofu != bytes(font.getmask("a"))


@pytest.mark.parametrize("name", covers.FONTS)
def test_words_fit_at_a_legible_size(name):
    for title in words.TITLES:
        rows = covers.lines(title)
        assert len(rows) <= 3 and " ".join(rows) == title
        assert min(covers.fit(r, name, covers.TITLE, covers.TEXT_WIDTH) for r in rows) >= 14
    for row in printed() - set(words.SIGNS) - set(words.TITLES):
        assert covers.fit(row, name, covers.ROW, covers.TEXT_WIDTH) >= 9
    for sign in words.SIGNS:
        assert covers.fit(sign, name, covers.SIGN, covers.TEXT_WIDTH) >= 16
    wide = "Một Dòng Chữ Dài Không Vừa"
    size = covers.fit(wide, name, 18, 109)
    assert size < 18 and covers.font(name, size).getlength(wide) <= 109 * draw.SCALE


def test_covers_are_asked_about_what_they_print():
    shown = [p for p in made("train") + made("test") if isinstance(p.shows, covers.Cover)]
    assert any(p.shows.translator for p in shown) and any(not p.shows.translator for p in shown)
    for picture in shown:
        want = {"title", "author", "publisher", "genre"}
        want |= {"translator"} if picture.shows.translator else set()
        assert {a.type: a.answer for a in picture.asked} == {
            field: getattr(picture.shows, field).lower() for field in want
        }
        assert len(set(picture.captions)) == 5
        assert all(picture.shows.title in c for c in picture.captions)


def test_signs_are_asked_for_their_words():
    shown = [p for p in made("train") if isinstance(p.shows, covers.Sign)]
    assert shown
    for picture in shown:
        assert [(a.type, a.answer) for a in picture.asked] == [("sign", picture.shows.sign.lower())]
        assert len(set(picture.captions)) == 5
        assert all(picture.shows.sign in c for c in picture.captions)


def test_words_are_drawn():
    for one, other in ((covers.Sign("Phở Bò"), covers.Sign("Phố Bơ")),):
        a, b = (np.asarray(covers.render(i, np.random.default_rng(0))) for i in (one, other))
        assert (a != b).any()
    base = covers.Cover("Biển Gọi", "Đặng Khôi", "NXB Tri Ân", "Tạ Đức Huy", "khoa học")
    for field, value in (
        ("title", "Sao Hôm"), ("author", "Lê Thu An"), ("publisher", "NXB Sao Mai"),
        ("translator", "Phan Văn Kỷ"), ("genre", "du lịch"),
    ):  # fmt: skip
        changed = covers.Cover(**{**vars(base), field: value})
        a, b = (np.asarray(covers.render(i, np.random.default_rng(0))) for i in (base, changed))
        assert (np.abs(a.astype(int) - b).max(-1) > 60).sum() > 30, field
