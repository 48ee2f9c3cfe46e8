"""Book covers and shop signs with Vietnamese words, and what ViOCRVQA asks of such."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vimoe_jax.data.datasets.viscenes import draw, places
from vimoe_jax.data.datasets.viscenes.words import (
    AUTHORS,
    GENRES,
    PUBLISHERS,
    SIGNS,
    TITLES,
    TRANSLATORS,
)
from vimoe_jax.errors import UserError

# DejaVu has every Vietnamese letter and comes with Matplotlib.
FONTS = ("DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf")
_GENRE_ICONS = dict(zip(GENRES, ("cat", "flower", "star", "cup", "flag", "boat"), strict=True))
_BOARDS = (
    (190, 30, 36),
    (24, 92, 160),
    (30, 120, 70),
    (240, 196, 40),
    (90, 50, 120),
    (240, 240, 236),
)


@functools.cache
def font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    """One of `FONTS`, at a height in pixels of the finished picture.

    Raises:
      UserError: Matplotlib, which carries the fonts, is not installed.
    """
    spec = importlib.util.find_spec("matplotlib")
    path = Path(spec.origin).parent / "mpl-data/fonts/ttf" / name if spec else None
    if path is None or not path.is_file():
        raise UserError(f"matplotlib: needed for its font {name}; pip install matplotlib")
    return ImageFont.truetype(str(path), pixels * draw.SCALE, layout_engine=ImageFont.Layout.BASIC)


@dataclasses.dataclass(frozen=True)
class Cover:
    """What a book cover says; `translator` may be empty."""

    title: str
    author: str
    publisher: str
    translator: str
    genre: str


@dataclasses.dataclass(frozen=True)
class Sign:
    """What a shop's sign says."""

    text: str


def sample(rng: np.random.Generator) -> Cover | Sign:
    """Draws a cover (three in four) or a sign."""

    def one(options) -> str:
        return str(options[int(rng.integers(len(options)))])

    if rng.random() < 0.25:
        return Sign(one(SIGNS))
    translator = one(TRANSLATORS) if rng.random() < 0.5 else ""
    return Cover(one(TITLES), one(AUTHORS), one(PUBLISHERS), translator, one(tuple(GENRES)))


def render(item: Cover | Sign, rng: np.random.Generator) -> Image.Image:
    """Draws it, `draw.SIZE` pixels on a side."""
    image = _sign(item, rng) if isinstance(item, Sign) else _cover(item, rng)
    return image.reduce(draw.SCALE)


def _text(d: ImageDraw.ImageDraw, xy, text: str, name: str, pixels: int, fill, width: int) -> None:
    """Centred at `xy`, shrunk until it is at most `width` wide (pixels of the finished picture)."""
    while pixels > 6 and font(name, pixels).getlength(text) > width * draw.SCALE:
        pixels -= 1
    xy = (xy[0] * draw.SCALE, xy[1] * draw.SCALE)
    d.text(xy, text, font=font(name, pixels), fill=fill, anchor="mm")


def _lines(title: str) -> list[str]:
    """Two syllables a line."""
    words = title.split()
    return [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]


def _jitter(color, rng: np.random.Generator):
    return tuple(int(v) for v in np.clip(np.array(color) + rng.normal(0, 5, 3), 0, 255))


def _cover(cover: Cover, rng: np.random.Generator) -> Image.Image:
    n = draw.SIZE * draw.SCALE
    paper, ink = GENRES[cover.genre]
    paper = _jitter(paper, rng)
    image = Image.new("RGB", (n, n), (224, 220, 214))
    d = ImageDraw.Draw(image)
    d.rectangle(
        [10, 4, n - 10, n - 4], fill=paper, outline=draw.mix(paper, (0, 0, 0), 0.3), width=3
    )
    name = FONTS[int(rng.integers(len(FONTS)))]
    center = draw.SIZE / 2 + rng.uniform(-1.5, 1.5)
    _text(d, (center, 12), cover.author, name, 11, ink, 104)
    lines = _lines(cover.title)
    top = 38 - 9 * (len(lines) - 1) + rng.uniform(-1, 1)
    for i, line in enumerate(lines):
        _text(d, (center, top + 18 * i), line, name, 18, ink, 108)
    accent = draw.mix(ink, paper, 0.35)
    draw.draw_icon(d, _GENRE_ICONS[cover.genre], accent, (center, 77), 13, angle=rng.normal(0, 4))
    _text(d, (center, 96), cover.genre, name, 9, ink, 100)
    if cover.translator:
        _text(d, (center, 107), f"Dịch: {cover.translator}", name, 9, ink, 108)
    _text(d, (center, 118), cover.publisher, name, 9, ink, 104)
    return image


def _sign(sign: Sign, rng: np.random.Generator) -> Image.Image:
    image, d = places.background("street", rng)
    board = _jitter(_BOARDS[int(rng.integers(len(_BOARDS)))], rng)
    ink = (255, 250, 240) if sum(board) < 420 else (60, 20, 20)
    y = rng.uniform(40, 70)
    s = draw.SCALE
    for x in (24, 100):
        d.rectangle([x * s, (y + 20) * s, (x + 4) * s, draw.SIZE * s], fill=(120, 110, 104))
    d.rounded_rectangle(
        [6 * s, (y - 24) * s, 122 * s, (y + 24) * s], 12, fill=board, outline=ink, width=4
    )
    _text(d, (64, y), sign.text, FONTS[int(rng.integers(len(FONTS)))], 28, ink, 106)
    return image


Question = tuple[str, str, str]  # type, question, answer

_WORDINGS: dict[str, tuple[str, ...]] = {
    "title": (
        "tên của cuốn sách này là gì", "tựa đề của quyển sách là gì", "cuốn sách này có tên là gì",
        "nhan đề in trên bìa sách là gì",
    ),
    "author": (
        "ai là tác giả của cuốn sách này", "cuốn sách này do ai viết",
        "tác giả của quyển sách là ai", "ai đã viết cuốn sách này",
    ),
    "publisher": (
        "nhà xuất bản của cuốn sách này là gì", "cuốn sách do nhà xuất bản nào phát hành",
        "đơn vị nào xuất bản quyển sách này",
    ),
    "translator": (
        "ai là người dịch cuốn sách này", "cuốn sách này do ai dịch",
        "dịch giả của quyển sách là ai",
    ),
    "genre": (
        "cuốn sách này thuộc thể loại gì", "thể loại của quyển sách là gì",
        "đây là sách thuộc thể loại nào",
    ),
    "sign": ("biển hiệu ghi chữ gì", "trên tấm biển viết gì", "dòng chữ trên biển hiệu là gì"),
}  # fmt: skip


def questions(item: Cover | Sign, rng: np.random.Generator) -> list[Question]:
    """One question a field that is there; answers are what is printed, in lower case."""
    fields = {"sign": item.text} if isinstance(item, Sign) else dataclasses.asdict(item)
    return [
        (field, _WORDINGS[field][int(rng.integers(len(_WORDINGS[field])))], text.lower())
        for field, text in fields.items()
        if text
    ]


def captions(item: Cover | Sign) -> list[str]:
    """Five captions."""
    if isinstance(item, Sign):
        t = item.text
        return [
            f"Một tấm biển hiệu ghi chữ {t}.",
            f"Biển hiệu {t} trên đường phố.",
            f"Bức ảnh chụp tấm biển có dòng chữ {t}.",
            f"Trên phố có một tấm biển viết {t}.",
            f"Tấm biển {t} đặt bên đường.",
        ]
    c = item
    return [
        f"Bìa cuốn sách {c.title} của {c.author}.",
        f"Cuốn sách {c.genre} {c.title} do {c.publisher} phát hành.",
        f"Trang bìa sách {c.title}, tác giả {c.author}.",
        f"Ảnh bìa quyển {c.title} của tác giả {c.author}, {c.publisher}.",
        f"Quyển sách thể loại {c.genre} có tên {c.title}.",
    ]
