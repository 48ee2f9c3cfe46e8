"""HTML and SVG that cannot be injected into: text is escaped unless it was built here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

_VOID = {"img", "meta", "br", "hr", "input"}


class Html(str):
    """Markup; every other string is text and gets escaped."""

    __slots__ = ()


def escape(child: Any) -> str:
    """Markup as it is, None and False as nothing, iterables joined, the rest as escaped text."""
    if child is None or child is False:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        # Lone surrogates (JSON can hold them) have no UTF-8; NUL has no place in HTML.
        text = child.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
        return html.escape(text)
    if isinstance(child, Iterable):
        return "".join(map(escape, child))
    return html.escape(str(child))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. `class_` is `class`, other underscores are hyphens; None leaves one out."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{text}>")
    return Html(f"<{name}{text}>{escape(children)}</{name}>")


def join(*children: Any) -> Html:
    """Several elements or texts as one."""
    return Html(escape(children))


def number(value: float) -> str:
    """A number as people write it: three digits that matter, thousands grouped."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1000 or (value == int(value) and size >= 1):
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 0.001:
        return f"{value:.3g}"
    if size < 1e-12:
        return "0"
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def percent(value: float) -> str:
    """A fraction as per cent, one digit after the point."""
    return f"{100 * value:.1f}%"
