"""A picture of a run's answers, for a README or a slide."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vimoe_jax.base import files
from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.viscenes.covers import font_file
from vimoe_jax.report import workdir as report_data
from vimoe_jax.scores import vqa
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import Profile, normalize

_PAPER, _CARD, _LINE = "#f7f6f3", "#ffffff", "#dedbd3"
_INK, _SOFT, _RIGHT, _WRONG = "#1d2026", "#5c626d", "#1c7a4a", "#b8372b"
_TILE, _PAD, _GAP = 380, 16, 20  # pixels
_COLUMNS, _PICTURES, _QUESTIONS = 4, 8, 2
_ROW = 26  # height of a line of text


def save_grid_png(workdir: Path, path: Path) -> None:
    """Draws about eight test pictures with questions and answers, chosen as in the page.

    Args:
      workdir: of a run that was evaluated.
      path: of the PNG to write, whole or not at all.

    Raises:
      UserError: the run has no thumbnails, or the file cannot be written.
    """
    run = report_data.load(Path(workdir))
    split = next((s for s in run.splits if s.images and s.predictions), None)
    if split is None:
        raise UserError(f"{workdir}: no evaluated pictures under eval/ to draw")
    chosen = []
    for k, (index, rows) in enumerate(report_data.gallery(split, _PICTURES, vqa.TASKS)):
        picture = _open(split.images[index])
        if picture is not None:
            # The page's rule: the k-th picture shows its questions k, k+1, … counted round.
            count = min(_QUESTIONS, len(rows))
            chosen.append((picture, [rows[(k + j) % len(rows)] for j in range(count)]))
    if not chosen:
        raise UserError(f"{workdir}: no picture with a question under eval/{split.name} to draw")
    png = io.BytesIO()
    _draw(chosen, split.profile).save(png, format="PNG", optimize=True)
    files.write_bytes(path, png.getvalue())


def _open(path: Path) -> Image.Image | None:
    data = report_data.png(path)
    try:
        return Image.open(io.BytesIO(data)).convert("RGB") if data else None
    except (OSError, ValueError):
        return None


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has every Vietnamese letter, from matplotlib's own files."""
    file = font_file("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """At most `most` lines; what does not fit ends in an ellipsis."""
    lines = [""]
    for word in normalize(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    for i, line in enumerate(lines):
        while font.getlength(line) > width and len(line) > 1:
            line = line.removesuffix("…")[:-1] + "…"
        lines[i] = line
    return lines


def _text_lines(rows: list[Prediction], profile: Profile) -> list[tuple[str, str, bool, int]]:
    """(text, colour, bold, space above) of everything under a picture."""
    question, answer = _font(18), _font(18, bold=True)
    width, lines = _TILE - 2 * _PAD, []
    for p in rows:
        good = report_data.right(p, profile)
        for i, line in enumerate(_wrap(p.question, question, width, 2)):
            lines.append((line, _INK, False, 12 if i == 0 else 0))
        mark, color = ("✓", _RIGHT) if good else ("✗", _WRONG)
        said = _wrap(f"{mark} {p.prediction or '(nothing)'}", answer, width, 1)[0]
        lines.append((said, color, True, 1))
        if not good:
            wanted = _wrap(f"→ {p.answers[0] if p.answers else ''}", question, width, 1)[0]
            lines.append((wanted, _SOFT, False, 0))
    return lines


def _draw(chosen: list[tuple[Image.Image, list[Prediction]]], profile: Profile) -> Image.Image:
    texts = [_text_lines(rows, profile) for _, rows in chosen]
    columns = min(_COLUMNS, len(chosen))
    bands = [texts[i : i + columns] for i in range(0, len(texts), columns)]
    heights = [_TILE + max(sum(_ROW + above for *_, above in t) for t in band) for band in bands]
    size = (columns * (_TILE + _GAP) + _GAP, sum(heights) + _GAP * (len(bands) + 1))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    plain, bold = _font(18), _font(18, bold=True)
    for k, ((picture, _), lines) in enumerate(zip(chosen, texts, strict=True)):
        band, column = divmod(k, columns)
        x = _GAP + column * (_TILE + _GAP)
        y = _GAP + sum(heights[:band]) + band * _GAP
        box = (x, y, x + _TILE - 1, y + heights[band] - 1)
        draw.rounded_rectangle(box, 10, fill=_CARD, outline=_LINE)
        inner = _TILE - 2 * _PAD
        sheet.paste(picture.resize((inner, inner), Image.Resampling.BICUBIC), (x + _PAD, y + _PAD))
        top = y + _TILE - _PAD
        for text, color, strong, above in lines:
            top += above
            draw.text((x + _PAD, top), text, fill=color, font=bold if strong else plain)
            top += _ROW
    return sheet
