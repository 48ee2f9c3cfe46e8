"""The page's tables: every metric with its meaning, every field of the configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vimoe_jax.base.metrics import COUNT, SHARE, Metric
from vimoe_jax.report.markup import Html, join, number, percent, tag
from vimoe_jax.report.meanings import ARROWS, KINDS, meaning, moe_meaning, scoring
from vimoe_jax.report.workdir import Run, Split

_BY_TYPE = ("vqa/accuracy/", "vqa/floor_per_type/")


def metrics(run: Run) -> Html | None:
    """Every metric with its meaning: scores by split, then the last value of what was logged."""
    scored = [s for s in run.splits if s.metrics]
    groups = []
    for title, prefix in (("Questions", "vqa/"), ("Captions", "caption/"), ("Other scores", "")):
        names = dict.fromkeys(
            n for s in scored for n in s.metrics
            if not n.startswith(_BY_TYPE)
            and (n.startswith(prefix) if prefix else not n.startswith(("vqa/", "caption/")))
        )  # fmt: skip
        if names:
            rows = [_metric_row(meaning(n), [s.metrics.get(n) for s in scored]) for n in names]
            groups.append((title, [s.label for s in scored], rows))
        if prefix == "vqa/" and (rows := _type_rows(scored)):
            groups.append(("Accuracy by question type", [s.label for s in scored], rows))
    if run.curves:
        rows = [
            _metric_row(meaning(name), [values[-1], min(values), max(values)])
            for name, (_, values) in sorted(run.curves.items())
        ]
        groups.append(("While training", ["last", "lowest", "highest"], rows))
    if not groups:
        return None
    tables = []
    for title, columns, rows in groups:
        heads = [tag("th", c, class_="n") for c in columns]
        table = tag("table", tag("thead", tag("tr", tag("th", title), heads)), tag("tbody", rows))
        tables.append(tag("div", tag("div", table, class_="scroll"), class_="card"))
    interval = (
        "The ± beside accuracy is a 95% interval over pictures, since questions about one picture "
        "are not independent."
    )
    labels = dict.fromkeys(scoring(s.scoring) for s in scored)
    if len(labels) > 1:
        labels = [f"{s.label}: {scoring(s.scoring)}" for s in scored]
    return join(
        tag("p", " ".join(labels), " ", interval, class_="lead"),
        [tag("div", t, style="margin-bottom:14px") for t in tables],
    )


def _type_rows(scored: list[Split]) -> list[Html]:
    """Accuracy of each type, its floor below."""
    prefix, floor = _BY_TYPE
    types = dict.fromkeys(
        n.removeprefix(prefix) for s in scored for n in s.metrics if n.startswith(prefix)
    )
    rows = []
    for t in types:
        cells = []
        for m in (s.metrics for s in scored):
            value = m.get(prefix + t)
            small = f"floor {percent(m[floor + t])}" if floor + t in m else ""
            text = "–" if value is None else percent(value)
            cells.append(tag("td", text, small and tag("small", small), class_="n"))
        rows.append(tag("tr", tag("td", t), cells))
    return rows


def layers(reports: list[dict[str, Any]]) -> Html:
    """The MoE reports of the evaluation, one row per layer."""
    drops = [r.get("drop_fraction_by_kind", {}) for r in reports]
    columns = {
        "load_max_over_mean": [r.get("max_load", max(r["load"]) * len(r["load"])) for r in reports],
        "router_entropy": [r.get("entropy") for r in reports],
        "drop_fraction": [r.get("drop_fraction") for r in reports],
        **{f"drop_fraction_{kind}": [d.get(kind) for d in drops] for kind in KINDS},
        "unserved_fraction": [r.get("unserved_fraction") for r in reports],
    }
    known = {
        moe_meaning(name): values
        for name, values in columns.items()
        if any(v is not None for v in values)
    }
    heads = [tag("th", _title(m), class_="n") for m in known]
    rows = [
        tag("tr", tag("td", r["name"]), [_cell(m, v[i]) for m, v in known.items()])
        for i, r in enumerate(reports)
    ]
    head = tag("thead", tag("tr", tag("th", "Layer"), heads))
    table = tag("table", head, tag("tbody", rows), class_="layers")
    return tag("div", tag("div", table, class_="scroll"), class_="card", style="margin-top:14px")


def _metric_row(m: Metric, values: list[float | None]) -> Html:
    return tag("tr", tag("td", _title(m)), [_cell(m, v) for v in values])


def _title(m: Metric) -> Html:
    arrow = ARROWS[m.better] and tag("span", f" {ARROWS[m.better]}", class_="arrow")
    return join(m.title, arrow, m.meaning and tag("small", m.meaning))


def _cell(m: Metric, value: float | None) -> Html:
    show = {SHARE: percent, COUNT: lambda v: f"{v:,.0f}"}.get(m.unit, number)
    return tag("td", "–" if value is None else show(value), class_="n")


def configuration(run: Run) -> Html | None:
    """Every field of the configuration, folded away."""
    if not run.config:
        return None
    rows = [
        tag("tr", tag("td", tag("code", name)), tag("td", tag("code", value)))
        for name, value in _flat(run.config)
    ]
    table = tag("div", tag("table", tag("tbody", rows)), class_="scroll card")
    return tag("details", tag("summary", f"All {len(rows)} fields"), table)


def _flat(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield path + str(name), text
