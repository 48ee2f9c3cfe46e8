"""The page's charts: SVG and plain HTML, coloured by the page's style sheet."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from vimoe_jax.report.markup import Html, join, number, percent, tag

WIDTH, HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
_POINTS = 400  # of a line at most; more cannot be seen
_COLUMNS = 48  # of a chart of layers at most
_SMOOTHING = 25  # a smoothed line averages over about 1/25 of the run


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
      name: for the legend.
      x: steps, rising.
      y: values, as many.
      color: 1, 2, 3: the page's series colours.
      smooth: draw the raw values lightly and their running mean on top.
      dots: mark the points (few values).
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 1
    smooth: bool = False
    dots: bool = False


def smoothed(values: Sequence[float]) -> list[float]:
    """Running mean, centred (so that it doesn't lag), over about 1/25 of the values."""
    half = -(-len(values) // (2 * _SMOOTHING))
    out = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        out.append(sum(window) / len(window))
    return out


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `_POINTS` points, each the mean of its neighbours; the last point stays."""
    size = -(-len(x) // _POINTS)
    if size <= 1:
        return list(x), list(y)
    blocks = [slice(i, i + size) for i in range(0, len(x), size)]
    xs = [x[b][-1] for b in blocks]
    return xs, [sum(y[b]) / len(y[b]) for b in blocks]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from low to high, about `count`."""
    span = high - low or 1.0
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if span / (unit * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


class _Scale:
    """Values to positions, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False):
        self.log = log
        self.low, self.high = (math.log10(low), math.log10(high)) if log else (low, high)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        v = math.log10(max(value, 1e-300)) if self.log else value
        part = (v - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + min(max(part, 0), 1) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
        every = -(-len(powers) // 5)
        return [10.0**p for p in powers][::every]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    share: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> Any:
    """A figure of lines over steps; None if nothing has a value.

    Args:
      title: what is on the y axis.
      series: the lines.
      note: a few words under the title.
      share: the values are fractions, written as per cent.
      marks: (value, what it is) of levels that the lines are held against.
    """
    series = [s for s in series if len(s.x)]
    if not series:
        return None
    show = percent if share else number
    drawn = [(s, *thinned(s.x, s.y)) for s in series]
    values = sorted(v for _, _, ys in drawn for v in ys)
    # A few huge values (a spike of the gradient) would press everything else flat.
    log = values[0] > 0 and values[-1] > 40 * values[len(values) // 2]
    low, high = (values[0], values[-1]) if log else (min(0.0, values[0]), values[-1] * 1.04)
    if log:
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
    low, high = min([low, *(v for v, _ in marks)]), max([high, *(v * 1.12 for v, _ in marks)])
    high = high if high > low else low + 1
    first, last = min(x[0] for _, x, _ in drawn), max(x[-1] for _, x, _ in drawn)
    sx = _Scale(first, last, _LEFT, WIDTH - _RIGHT)
    sy = _Scale(low, high, HEIGHT - _BOTTOM, _TOP, log)
    readout = [
        {"name": s.name, "x": [sx(x) for x in xs], "text": [show(y) for y in ys], "step": xs}
        for s, xs, ys in drawn
    ]
    svg = tag(
        "svg",
        _axes(sx, sy, share),
        [_mark(value, name, sy) for value, name in marks],
        [_line(s, xs, ys, sx, sy) for s, xs, ys in drawn],
        tag("line", class_="cursor", x1=0, x2=0, y1=_TOP, y2=HEIGHT - _BOTTOM),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}; last: " + ", ".join(f"{s.name} {show(s.y[-1])}" for s in series),
        data_series=json.dumps(readout, separators=(",", ":")),
    )
    legend = [
        tag("span", tag("i", class_=f"key c{s.color}"), f"{s.name} ", tag("b", show(s.y[-1])))
        for s in series
    ]
    head = tag("figcaption", tag("strong", title), note and tag("small", note))
    return tag("figure", head, svg, tag("p", legend, class_="legend"), class_="chart card")


def _axes(sx: _Scale, sy: _Scale, share: bool) -> list[Html]:
    parts = []
    for value in sy.ticks():
        y = sy(value)
        label = f"{100 * value:.3g}%" if share else number(value)
        parts.append(tag("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y))
        parts.append(tag("text", label, x=_LEFT - 6, y=y + 3.5, class_="end"))
    return parts + _steps(sx, HEIGHT - 7)


def _steps(sx: _Scale, y: float) -> list[Html]:
    """Labels of steps; they must not run out of the picture on the right."""
    parts = []
    for value in sx.ticks():
        x = sx(value)
        place = "end" if x > WIDTH - _RIGHT - 12 else "middle"
        parts.append(tag("text", number(value), x=x, y=y, class_=place))
    return parts


def _mark(value: float, name: str, sy: _Scale) -> list[Html]:
    y = sy(value)
    return [
        tag("line", class_="level", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y),
        tag("text", name, x=WIDTH - _RIGHT, y=y - 4, class_="end"),
    ]


def _line(
    s: Series, xs: Sequence[float], ys: Sequence[float], sx: _Scale, sy: _Scale
) -> list[Html]:
    def path(ys: Sequence[float], class_: str) -> Html:
        points = " ".join(f"{sx(x):g},{sy(y):g}" for x, y in zip(xs, ys, strict=True))
        return tag("polyline", points=points, class_=f"{class_} c{s.color}")

    parts = [path(ys, "raw"), path(smoothed(ys), "line")] if s.smooth else [path(ys, "line")]
    if s.dots or len(xs) == 1:
        parts += [
            tag("circle", cx=sx(x), cy=sy(y), r=2.6, class_=f"dot c{s.color}")
            for x, y in zip(xs, ys, strict=True)
        ]
    return parts


def layers_chart(
    title: str,
    steps: Sequence[float],
    values: Sequence[Sequence[float | None]],
    names: Sequence[str],
    *,
    note: str = "",
    share: bool = False,
    low: float = 0.0,
    least: float = 0.01,
) -> Html:
    """A figure of one value over layers (downwards) and steps, as depth of colour.

    Args:
      title: what the value is.
      steps: rising.
      values: one list per step, one value per layer (None where there is none).
      names: of the layers.
      note: a few words under the title.
      share: the values are fractions, written as per cent.
      low: the palest value.
      least: the deepest value if all are smaller; else the largest is.
    """
    show, left = percent if share else number, 62
    row = max(6.0, min(18.0, 150 / len(names)))
    size = -(-len(steps) // _COLUMNS)
    blocks = [slice(i, i + size) for i in range(0, len(steps), size)]
    ends = [steps[b][-1] for b in blocks]
    # A cell reaches back to the one before it; the first is as wide as a step between two lines.
    start = max(0, 2 * steps[0] - steps[1]) if len(steps) > 1 else 0
    start = start if start < steps[0] else steps[0] - 1
    sx = _Scale(start, steps[-1], left, WIDTH - _RIGHT)
    cells = []
    for layer in range(len(names)):
        for block, begin, end in zip(blocks, [start, *ends], ends, strict=False):
            found = [value for v in values[block] if (value := v[layer]) is not None]
            if found:
                cells.append((layer, begin, end, sum(found) / len(found)))
    high = max([least, *(v for *_, v in cells)])
    parts: list[Any] = [
        tag(
            "rect",
            tag("title", f"{names[layer]}, step {number(end)}: {show(value)}"),
            x=sx(begin), y=round(_TOP + layer * row, 1),
            width=max(0.5, round(sx(end) - sx(begin), 1)), height=round(row - 1, 1),
            class_="heat",
            fill_opacity=round(0.06 + 0.94 * min(max((value - low) / (high - low), 0), 1), 3),
        )
        for layer, begin, end, value in cells
    ]  # fmt: skip
    every = math.ceil(11 / row)
    for layer in range(0, len(names), every):
        y = round(_TOP + (layer + 0.5) * row + 3.5, 1)
        parts.append(tag("text", names[layer], x=left - 6, y=y, class_="end"))
    bottom = _TOP + len(names) * row
    parts += _steps(sx, round(bottom + 15, 1))
    last = ", ".join(
        f"{n} {'–' if v is None else show(v)}" for n, v in zip(names, values[-1], strict=True)
    )
    svg = tag(
        "svg",
        parts,
        viewBox=f"0 0 {WIDTH} {round(bottom + 22)}",
        role="img",
        aria_label=f"{title}; last: {last}",
    )
    head = tag("figcaption", tag("strong", title), note and tag("small", note))
    scale = tag("span", f"{show(low)} ", tag("i", class_="key ramp"), f"{show(high)}")
    return tag("figure", head, svg, tag("p", scale, class_="legend"), class_="chart card")


@dataclasses.dataclass(frozen=True)
class Bar:
    """One horizontal bar: a fraction, and marks of what it is held against.

    Attributes:
      value: in [0, 1].
      color: the page's series colour.
      marks: (fraction, what it is) drawn across the bar.
      name: what the bar is, for the tooltip.
    """

    value: float
    color: int
    marks: tuple[tuple[float, str], ...] = ()
    name: str = ""


def bar_rows(rows: Sequence[tuple[str, str, Sequence[Bar]]]) -> Html:
    """Rows (label, small print, bars), as HTML, so that the text stays readable on a phone."""
    out = []
    for label, small, bars in rows:
        tracks = []
        for bar in bars:
            marks = [
                tag(
                    "s", style=f"left:{100 * min(max(v, 0), 1):.2f}%", title=f"{what}: {percent(v)}"
                )
                for v, what in bar.marks
            ]
            width = f"width:{100 * min(max(bar.value, 0), 1):.2f}%"
            fill = tag("i", class_=f"c{bar.color}", style=width)
            against = "".join(f"; {what} {percent(v)}" for v, what in bar.marks)
            tracks.append(
                tag(
                    "div",
                    tag("span", fill, marks, class_="track"),
                    tag("b", percent(bar.value)),
                    class_="bar",
                    title=f"{bar.name}: {percent(bar.value)}{against}",
                )
            )
        name = tag("div", label, small and tag("small", small), class_="name")
        out.append(tag("div", name, tag("div", tracks, class_="bars"), class_="barrow"))
    return tag("div", out, class_="barchart")


def expert_chart(load: Sequence[float], by_kind: dict[str, Sequence[float]]) -> Html:
    """Bars of each expert's share with the balanced line, and one heat map row per token kind.

    Args:
      load: E shares that sum to 1.
      by_kind: the same of each token kind.
    """
    count, row, left, top, bars = len(load), 20, 62, 16, 96
    balanced = 1 / count
    peak = max(max(load), 1.25 * balanced)
    cell = (WIDTH - left - 6) / count
    gap = min(3.0, cell * 0.15)
    base = top + bars
    parts = []
    for i, share in enumerate(load):
        h = max(1.0, bars * share / peak)
        parts.append(
            tag(
                "rect",
                tag("title", f"expert {i}: {percent(share)} of choices"),
                x=round(left + i * cell + gap / 2, 2),
                y=round(base - h, 2),
                width=round(cell - gap, 2),
                height=round(h, 2),
                rx=min(2, cell / 4),
                class_="c1",
            )
        )
    y = round(base - bars * balanced / peak, 2)
    parts += [
        tag("line", class_="balanced", x1=left, x2=WIDTH - 6, y1=y, y2=y),
        tag("text", f"1/{count}", x=left - 6, y=y + 3.5, class_="end"),
        tag("text", "load", x=left - 6, y=base - 2, class_="end"),
    ]
    for i, share in enumerate(load if cell >= 24 else []):
        # In a row above the bars: on top of each, the balanced line would strike them through.
        x = round(left + (i + 0.5) * cell, 2)
        parts.append(tag("text", f"{100 * share:.0f}%", x=x, y=top - 5, class_="middle"))
    for r, (kind, shares) in enumerate(by_kind.items()):
        parts.append(_heat_row(kind, shares, base + 8 + r * row, row, left, cell, gap))
    bottom = base + 8 + len(by_kind) * row + 14
    every = max(1, -(-count // 16))
    parts += [
        tag("text", i, x=round(left + (i + 0.5) * cell, 2), y=bottom, class_="middle")
        for i in range(0, count, every)
    ]
    parts.append(tag("text", "expert", x=left - 6, y=bottom, class_="end"))
    label = "load of each expert: " + ", ".join(map(percent, load))
    return tag("svg", parts, viewBox=f"0 0 {WIDTH} {bottom + 6}", role="img", aria_label=label)


def _heat_row(
    kind: str, shares: Sequence[float], y: float, row: int, left: float, cell: float, gap: float
) -> Html:
    """One kind's shares, from nothing to four times the balanced share, as depth of colour."""
    parts = [tag("text", kind, x=left - 6, y=y + row / 2 + 3, class_="end")]
    for i, share in enumerate(shares):
        depth = min(1.0, share * len(shares) / 4)
        x = round(left + i * cell + gap / 2, 2)
        title = tag("title", f"expert {i}: {percent(share)} of the {kind} tokens' choices")
        parts.append(
            tag(
                "rect", title, x=x, y=y, width=round(cell - gap, 2), height=row - 3,
                rx=2, class_="heat", fill_opacity=round(0.06 + 0.94 * depth, 3),
            )
        )  # fmt: skip
        if cell >= 24:
            class_ = "middle cell on" if depth > 0.5 else "middle cell"
            x = round(left + (i + 0.5) * cell, 2)
            parts.append(tag("text", f"{100 * share:.0f}", x=x, y=y + row / 2 + 2, class_=class_))
    return join(parts)
