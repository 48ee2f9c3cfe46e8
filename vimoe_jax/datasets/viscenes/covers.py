"""Book covers and shop signs with Vietnamese words, and what ViOCRVQA asks of such."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.viscenes import draw, places
from vimoe_jax.datasets.viscenes.asking import Asked
from vimoe_jax.datasets.viscenes.words import (
    AUTHORS,
    GENRES,
    PUBLISHERS,
    SIGNS,
    TITLES,
    TRANSLATORS,
)

# DejaVu has every Vietnamese letter and comes with Matplotlib.
FONTS = ("DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf")
TRANSLATED = "Dịch: "
TITLE, ROW, SIGN = 18, 10, 28  # heights of text, in pixels, where the words are short enough
TEXT_WIDTH = 109.0  # pixels
_BOARDS = (
    (190, 30, 36),
    (24, 92, 160),
    (30, 120, 70),
    (240, 196, 40),
    (90, 50, 120),
    (240, 240, 236),
)


def font_file(name: str) -> Path:
    """Where Matplotlib keeps one of `FONTS`; Matplotlib is not imported.

    Raises:
      UserError: Matplotlib is not installed, or came without it.
    """
    spec = importlib.util.find_spec("matplotlib")
    origin = spec.origin if spec else None
    path = Path(origin).parent / "mpl-data/fonts/ttf" / name if origin else None
    if path is None or not path.is_file():
        raise UserError(f"matplotlib: needed for its font {name}; pip install matplotlib")
    return path


@functools.cache
def font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    """One of `FONTS`, at a height in pixels of the finished picture."""
    file, size = str(font_file(name)), pixels * draw.SCALE
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


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

    sign: str


def sample(rng: np.random.Generator) -> Cover | Sign:
    """Draws a cover (three in four) or a sign."""

    def one(options) -> str:
        return options[int(rng.integers(len(options)))]

    if rng.random() < 0.25:
        return Sign(one(SIGNS))
    translator = one(TRANSLATORS) if rng.random() < 0.5 else ""
    return Cover(one(TITLES), one(AUTHORS), one(PUBLISHERS), translator, one(tuple(GENRES)))


def render(item: Cover | Sign, rng: np.random.Generator) -> Image.Image:
    """Draws it, uint8 RGB `[draw.SIZE, draw.SIZE]`."""
    return draw.finish(_sign(item, rng) if isinstance(item, Sign) else _cover(item, rng))


def fit(text: str, name: str, pixels: int, width: float) -> int:
    """The height, at most `pixels`, at which the text is at most `width` pixels wide."""
    while pixels > 6 and font(name, pixels).getlength(text) > width * draw.SCALE:
        pixels -= 1
    return pixels


def _text(
    d: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    name: str,
    pixels: int,
    fill: draw.Color,
) -> None:
    """Centred at `xy` (pixels of the finished picture), shrunk until it fits."""
    at = (xy[0] * draw.SCALE, xy[1] * draw.SCALE)
    face = font(name, fit(text, name, pixels, TEXT_WIDTH))
    d.text(at, text, font=face, fill=fill, anchor="mm")


def _box(
    d: ImageDraw.ImageDraw,
    xy: tuple[float, float, float, float],
    fill: draw.Color | None,
    outline: draw.Color | None = None,
    width: float = 0,
    radius: float = 0,
) -> None:
    """A rectangle in pixels of the finished picture."""
    corners, width = [v * draw.SCALE for v in xy], round(width * draw.SCALE)
    d.rounded_rectangle(corners, radius * draw.SCALE, fill=fill, outline=outline, width=width)


def lines(title: str) -> list[str]:
    """Two syllables a line, three lines at most."""
    words = title.split()
    return [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]


def _cover(cover: Cover, rng: np.random.Generator) -> Image.Image:
    """Author, title, emblem, genre, translator, publisher: from the top down, on a table."""
    image, d = draw.canvas()
    genre = GENRES[cover.genre]
    paper, ink = draw.jitter(genre.paper, rng, 9), genre.ink
    edge = draw.mix(paper, (0, 0, 0), 0.3)
    soft = draw.mix(paper, ink, 0.16)
    _box(d, (-1, -1, 129, 129), draw.jitter((214, 204, 192), rng, 12))
    _box(d, (9, 4, 127, 128), draw.mix((214, 204, 192), (0, 0, 0), 0.25), radius=2)
    _box(d, (4, 1, 124, 125), paper, edge, 1, radius=2)
    _box(d, (5, 2, 9, 124), edge)  # the spine
    _box(d, (10, 69 - 14, 123, 69 + 14), soft)
    name = FONTS[int(rng.integers(len(FONTS)))]
    center = 66.5 + rng.uniform(-1, 1)
    _text(d, (center, 10), cover.author, name, ROW, ink)
    title = lines(cover.title)
    for i, line in enumerate(title):
        y = 35.5 + 18 * (i - (len(title) - 1) / 2) + rng.uniform(-0.5, 0.5)
        _text(d, (center, y), line, name, TITLE, ink)
    tint = draw.mix(ink, paper, 0.2)
    dark = sum(paper) < 300
    emblem = (center + rng.uniform(-12, 12), 69.0)
    tilt = float(rng.uniform(-8, 8))
    draw.draw_icon(d, genre.emblem, tint, emblem, 11.5, angle=tilt, on_dark=dark)
    rows = [cover.genre, cover.publisher]
    if cover.translator:
        rows.insert(1, f"{TRANSLATED}{cover.translator}")
    for i, row in enumerate(rows):
        y = 117.5 - (12.0 if len(rows) == 3 else 15.0) * (len(rows) - 1 - i)
        _text(d, (center, y), row, name, ROW, ink)
    return image


def _sign(sign: Sign, rng: np.random.Generator) -> Image.Image:
    """Over a shop's door, or on two posts by the road."""
    image, d = places.background("street", rng)
    board = draw.jitter(_BOARDS[int(rng.integers(len(_BOARDS)))], rng, 9)
    ink = (255, 250, 240) if sum(board) < 420 else (60, 20, 20)
    y = rng.uniform(38, 52)
    if rng.random() < 0.5:
        _box(d, (10, y - 28, 118, 118), draw.jitter((226, 208, 178), rng, 10))
        awning = draw.mix(board, (255, 255, 255), 0.45)
        for i in range(9):
            fill = awning if i % 2 else (248, 246, 240)
            _box(d, (10 + 12 * i, y + 18, 22 + 12 * i, y + 33), fill, radius=3)
        _box(d, (24, y + 38, 62, 104), (196, 222, 232), (120, 96, 76), 1.5)
        _box(d, (76, y + 38, 104, 118), (132, 96, 68), (96, 70, 50), 1.5)
    else:
        for x in (24, 100):
            _box(d, (x, y + 20, x + 4, 112), (120, 110, 104))
    _box(d, (5, y - 22, 123, y + 22), board, ink, 1.4, radius=5)
    _text(d, (64, y), sign.sign, FONTS[int(rng.integers(len(FONTS)))], SIGN, ink)
    return image


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
        "đơn vị nào xuất bản quyển sách này", "nhà xuất bản nào in cuốn sách này",
    ),
    "translator": (
        "ai là người dịch cuốn sách này", "cuốn sách này do ai dịch",
        "dịch giả của quyển sách là ai", "tên người dịch in trên bìa sách là gì",
    ),
    "genre": (
        "cuốn sách này thuộc thể loại gì", "thể loại của quyển sách là gì",
        "đây là sách thuộc thể loại nào", "cuốn sách này được xếp vào thể loại nào",
    ),
    "sign": (
        "biển hiệu ghi chữ gì", "trên tấm biển viết gì", "dòng chữ trên biển hiệu là gì",
        "tấm biển trong ảnh ghi gì",
    ),
}  # fmt: skip


def questions(item: Cover | Sign, rng: np.random.Generator) -> list[Asked]:
    """One question a field that is there; answers are what is printed, in lower case."""
    return [
        Asked(field, _WORDINGS[field][int(rng.integers(len(_WORDINGS[field])))], text.lower())
        for field, text in dataclasses.asdict(item).items()
        if text
    ]


def captions(item: Cover | Sign) -> list[str]:
    """Five captions."""
    if isinstance(item, Sign):
        t = item.sign
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
