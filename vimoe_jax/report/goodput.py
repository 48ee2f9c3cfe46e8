"""The page's bar of wall time: the share of steps, and of everything else."""

from __future__ import annotations

from vimoe_jax.report.markup import Html, percent, tag
from vimoe_jax.report.meanings import meaning
from vimoe_jax.report.workdir import Run

# By `time/…` in metrics.jsonl: what it is called, its colour.
_KINDS = {
    "steps": ("steps", "var(--c1)"),
    "compile": ("compiling", "var(--c2)"),
    "data": ("waiting for data", "var(--c3)"),
    "save": ("saving", "var(--right)"),
    "eval": ("validating", "var(--soft)"),
    "start": ("starting", "var(--wrong)"),
    "redone": ("done again", "var(--ink)"),
}


def goodput(run: Run) -> Html | None:
    """One bar over all resumptions; None if the run did not log where time went."""
    last = {kind: run.curves.get(f"time/{kind}", ((), (0.0,)))[1][-1] for kind in _KINDS}
    spent = {kind: seconds for kind, seconds in last.items() if seconds > 0}
    total = sum(spent.values())
    if not spent:
        return None
    parts, legend = [], []
    for kind, seconds in spent.items():
        name, color = _KINDS[kind]
        share = seconds / total
        text = meaning(f"time/{kind}").meaning
        title = f"{name}: {duration(seconds)}, {percent(share)}. {text}"
        style = f"width:{100 * share:.3f}%;background:{color}"
        parts.append(tag("i", style=style, title=title))
        key = tag("i", class_="key", style=f"background:{color}")
        legend.append(tag("span", key, f"{name} ", tag("b", percent(share)), title=title))
    return tag(
        "div",
        tag("h3", "Where the time went"),
        tag(
            "p",
            f"{percent(spent.get('steps', 0.0) / total)} of {duration(total)} since the first "
            "start went into steps",
            class_="lead",
            style="margin:2px 0 10px;font-size:14px",
        ),
        tag("div", parts, class_="timebar", role="img", aria_label="wall time by kind"),
        tag("p", legend, class_="legend"),
        class_="card",
        style="margin-bottom:14px",
    )


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m} min" if hours else f"{m} min {s} s" if m else f"{s} s"
