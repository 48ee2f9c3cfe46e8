"""The page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from vimoe_jax.base import files
from vimoe_jax.report import sections, tables
from vimoe_jax.report import workdir as report_data
from vimoe_jax.report.goodput import duration
from vimoe_jax.report.markup import Html, join, number, tag
from vimoe_jax.report.style import CSS, SCRIPT

_SECTIONS = (
    ("results", "Results", sections.results),
    ("training", "Training", sections.training),
    ("answers", "Answers", sections.answers),
    ("captions", "Captions", sections.captions),
    ("experts", "Experts", sections.experts),
    ("metrics", "All metrics", tables.metrics),
    ("configuration", "Configuration", tables.configuration),
)


def write_report(workdir: Path) -> Path:
    """Writes `DIR/report.html`, whole or not at all; what is missing in DIR is left out.

    Returns:
      The page's path.

    Raises:
      UserError: there is no such folder, or the file cannot be written.
    """
    workdir = Path(workdir)
    page = render(report_data.load(workdir), workdir.resolve().name)
    path = workdir / "report.html"
    files.write_text(path, page)
    return path


def render(run: report_data.Run, title: str) -> str:
    """The whole page."""
    # The policy forbids every request, and every script but ours, whatever the data hold.
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{title} · ViMoE"),
        tag("style", Html(CSS)),
    )
    bodies = [(anchor, name, build(run)) for anchor, name, build in _SECTIONS]
    bodies = [(anchor, name, body) for anchor, name, body in bodies if body]
    nav = tag("nav", [tag("a", name, href=f"#{anchor}") for anchor, name, _ in bodies])
    sections = [
        # The results need no heading: the verdict is one.
        tag("section", anchor != "results" and tag("h2", name), body, id=anchor)
        for anchor, name, body in bodies
    ]
    header = tag(
        "header",
        tag("p", "ViMoE run report", class_="eyebrow"),
        tag("h1", title),
        tag("ul", _facts(run), class_="facts"),
        nav,
    )
    footer = tag("footer", "Written by vimoe_jax.evaluate.report from the files in the workdir.")
    problems = run.problems and tag("div", [tag("p", p) for p in run.problems], class_="note")
    main = tag("main", problems, sections)
    body = tag("body", header, main, footer, tag("script", Html(SCRIPT)))
    return join(Html("<!doctype html>\n"), tag("html", head, body, lang="en")) + "\n"


def _facts(run: report_data.Run) -> list[Html]:
    """Size, length and place of the run, one list item each."""
    names = {
        "parameters": "parameters",
        "active_parameters": "active a token",
        "steps": "steps",
        "train_seconds": "of training",
        "device": "",
    }
    items = []
    for key, value in {k: run.summary[k] for k in names if k in run.summary}.items():
        if key == "train_seconds" and report_data.finite(value):
            text = duration(value)
        elif "parameters" in key and report_data.finite(value) and value >= 1e6:
            text = f"{value / 1e6:.2f} M" if value < 1e9 else f"{value / 1e9:.2f} B"
        else:
            text = _text(value)
        items.append(tag("li", tag("b", text), f" {names[key]}"))
    for key, value in run.summary.items():
        if key not in names:
            items.append(tag("li", f"{key.replace('_', ' ')} ", tag("b", _text(value))))
    return items


def _text(value: Any) -> str:
    if report_data.finite(value):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
