"""The page's sections, each from what was read to markup; None where there is nothing to show."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Iterator
from typing import Any

from vimoe_jax.report.charts import Bar, Series, bar_rows, expert_chart, layers_chart, line_chart
from vimoe_jax.report.goodput import goodput
from vimoe_jax.report.markup import Html, join, percent, tag
from vimoe_jax.report.meanings import KINDS, moe_meaning
from vimoe_jax.report.tables import layers
from vimoe_jax.report.workdir import Run, Split, confusions, gallery, half_width, png, right
from vimoe_jax.scores import vqa
from vimoe_jax.scores.captions import tokenize
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import Profile

_PICTURES = 24  # of the first split; half as many of each other
_QUESTIONS = 3  # per picture
_CAPTIONS = 8
_FLOORS = ("vqa/floor_per_type", "vqa/floor_majority", "vqa/floor_question_only")


def results(run: Run) -> Html:
    """The verdict in a sentence, tiles with the main numbers, accuracy by type against floors."""
    scored = [s for s in run.splits if s.metrics]
    if not scored:
        text = "No scores yet: the test splits are answered when training ends."
        return tag("p", text, class_="verdict")
    with_vqa = [s for s in scored if "vqa/accuracy" in s.metrics]
    return join(
        _verdict(scored[0]), tag("div", list(_tiles(scored)), class_="tiles"), _bars(with_vqa)
    )


def _verdict(split: Split) -> Html:
    m = split.metrics
    parts: list[Any] = []
    if "vqa/accuracy" in m:
        asked = f"{m['vqa/count']:,.0f} questions" if "vqa/count" in m else "questions"
        pictures = len({p.record_index for p in split.predictions})
        about = f" about {pictures:,} pictures" if pictures else ""
        parts += [f"On {asked}{about} of the {split.label} split, "]
        parts += [tag("b", f"{percent(m['vqa/accuracy'])} of the answers are exactly right")]
        if "vqa/floor_per_type" in m:
            floor = m["vqa/floor_per_type"]
            points = 100 * (m["vqa/accuracy"] - floor)
            parts += [
                f": {abs(points):.1f} points {'above' if points >= 0 else 'below'} the "
                f"{percent(floor)} of answering each type's commonest answer, blind"
            ]
        parts += [". "]
    if "caption/cider" in m:
        parts += ["Its captions reach ", tag("b", f"CIDEr {m['caption/cider']:.2f}"), "."]
    elif "caption/bleu_4" in m:
        parts += ["Its captions reach ", tag("b", f"BLEU-4 {m['caption/bleu_4']:.2f}"), "."]
    return tag("p", parts, class_="verdict")


def _tiles(scored: list[Split]) -> Iterator[Html]:
    for split in scored:
        m = split.metrics
        if "vqa/accuracy" in m:
            half = half_width(split.predictions, split.profile)
            spread = half is not None and tag("small", f" ± {100 * half:.1f}")
            floors = [
                f"{what} {percent(m[name])}"
                for name, what in zip(_FLOORS, ("per type", "majority", "question"), strict=True)
                if name in m
            ]
            yield tag(
                "div",
                tag("p", "VQA accuracy", tag("span", split.label), class_="what"),
                tag("p", percent(m["vqa/accuracy"]), spread, class_="big"),
                tag("p", "floors: ", " · ".join(floors)) if floors else None,
                class_="tile card",
            )
        if "caption/cider" in m:
            others = [
                f"{what} {m[name]:.3f}"
                for name, what in (("caption/bleu_4", "BLEU-4"), ("caption/rouge_l", "ROUGE-L"))
                if name in m
            ]
            yield tag(
                "div",
                tag("p", "CIDEr-D", tag("span", split.label), class_="what"),
                tag("p", f"{m['caption/cider']:.2f}", tag("small", " of 10"), class_="big"),
                tag("p", " · ".join(others)),
                class_="tile card",
            )


def _bars(splits: list[Split]) -> Html | None:
    """Accuracy of all questions, then by type under their task's heading."""
    if not splits:
        return None
    shown = splits[:3]

    def row(label: str, name: str, floors: tuple[tuple[str, str], ...], type_: str | None) -> tuple:
        bars, small = [], ""
        for color, split in enumerate(shown, 1):
            m = split.metrics
            if name in m:
                marks = tuple((m[f], what) for f, what in floors if f in m)
                bars.append(Bar(m[name], color, marks, f"{label}, {split.label}"))
        if type_ is not None:
            counts = [sum(p.type == type_ for p in s.predictions) for s in shown]
            small = " + ".join(f"{n:,}" for n in counts if n)
        return label, small and f"{small} questions", bars

    whole = bar_rows(
        [row("all questions", "vqa/accuracy", ((_FLOORS[0], "floor per type"),), None)]
    )
    task_of = {p.type: p.task for s in shown for p in s.predictions}
    types = dict.fromkeys(
        n.removeprefix("vqa/accuracy/")
        for s in shown for n in s.metrics if n.startswith("vqa/accuracy/")
    )  # fmt: skip
    groups: dict[str, list] = {}
    for t in types:
        floor = ((f"vqa/floor_per_type/{t}", "floor"),)
        groups.setdefault(task_of.get(t, ""), []).append(row(t, f"vqa/accuracy/{t}", floor, t))
    names = {"vqa": "What the picture shows", "ocr_vqa": "What is written in it", "": "By type"}
    blocks = [
        [tag("p", names.get(task, task), class_="barhead"), bar_rows(rows)]
        for task, rows in sorted(groups.items(), reverse=True)
    ]
    legend = [tag("span", tag("i", class_=f"key c{c}"), s.label) for c, s in enumerate(shown, 1)]
    legend.append(
        tag("span", tag("i", class_="key mark"), "floor: the type's commonest training answer")
    )
    return tag(
        "div",
        tag("h3", "Accuracy by question type"),
        tag("p", legend, class_="legend"),
        tag("div", whole, blocks, class_="barchart", style="margin-top:14px"),
        class_="card",
    )


def training(run: Run) -> Html | None:
    """Curves of what was logged while training."""
    curves = run.curves

    def s(metric: str, name: str, color: int = 1, **how: Any) -> Series:
        return Series(name, *curves.get(metric, ((), ())), color=color, **how)

    charts = [
        line_chart(
            "Loss",
            [s("train/loss", "training", smooth=True), s("val/loss", "validation", 2, dots=True)],
            note="nats an answer token",
        ),
        line_chart(
            "Token accuracy",
            [s("train/accuracy", "training", smooth=True)],
            note="answer tokens predicted right, training batches",
            share=True,
        ),
        line_chart(
            "Learning rate", [s("train/learning_rate", "peak")], note="of the fastest parts"
        ),
        line_chart(
            "Gradient norm",
            [s("train/grad_norm", "global", smooth=True)],
            note="before clipping",
        ),
        line_chart(
            "Throughput",
            [s("train/examples_per_second", "pictures a second", smooth=True)],
            note=_tokens_note(curves),
        ),
        *_moe_charts(run),
    ]
    charts = [c for c in charts if c]
    if not charts:
        return tag("p", "Nothing was logged yet (metrics.jsonl).", class_="lead")
    text = "Light lines are single steps as logged, strong ones their running mean."
    return join(tag("p", text, class_="lead"), goodput(run), tag("div", charts, class_="charts"))


def _moe_charts(run: Run) -> Iterator[Html | None]:
    """The MoE reports: by part, by token kind, by layer."""
    curves: dict[str, dict[str, Any]] = {}  # by last word of the name, then by part
    for name, curve in run.curves.items():
        if name.startswith("train/moe/"):
            part, _, kind = name.removeprefix("train/moe/").rpartition("/")
            curves.setdefault(kind, {})[part] = curve

    def per_part(kind: str) -> list[Series]:
        parts = curves.get(kind, {}).items()
        return [Series(part, *curve, color=i % 3 + 1) for i, (part, curve) in enumerate(parts)]

    yield line_chart(
        "Dropped choices",
        per_part("drop_fraction"),
        note="routed choices that found their expert full",
        share=True,
    )
    for part in curves.get("drop_fraction", {}):
        kinds = [(k, curves.get(f"drop_fraction_{k}", {}).get(part)) for k in KINDS]
        lines = [Series(k, *c, color=i) for i, (k, c) in enumerate(kinds, 1) if c]
        if len(lines) > 1:  # the vision tower has one kind only
            note = "of each kind of token's choices"
            yield line_chart(f"Dropped by kind, {part}", lines, note=note, share=True)
    yield line_chart(
        "Unserved tokens",
        per_part("unserved_fraction"),
        note="taken by no expert; their residual goes on",
        share=True,
    )
    yield line_chart(
        "Imbalance",
        per_part("load_max_over_mean"),
        note="busiest expert over the mean; 1 is balanced",
        marks=[(1, "")],
    )
    counts = sorted({run.moe(part)[0] for part in curves.get("router_entropy", {})} - {0})
    yield line_chart(
        "Router entropy",
        per_part("router_entropy"),
        note="nats a token; ln E is undecided",
        marks=[(math.log(e), f"ln {e}") for e in counts],
    )
    for kind in curves:
        if kind.endswith("_loss"):
            note = "unweighted, mean over layers"
            yield line_chart(moe_meaning(kind).title, per_part(kind), note=note)
    dropped, busier = "many choices dropped", "one expert far busier"
    for kind, title, chart in (
        (
            "drop_fraction",
            "Dropped by layer",
            functools.partial(
                layers_chart, share=True, note=f"over steps; strong colour: {dropped}"
            ),
        ),
        (
            "load_max_over_mean",
            "Imbalance by layer",
            functools.partial(
                layers_chart, low=1.0, least=1.25, note=f"over steps; strong colour: {busier}"
            ),
        ),
    ):
        for name, (steps, values) in run.layer_curves.items():
            if name.startswith("train/moe/") and name.endswith(f"/{kind}"):
                part = name.removeprefix("train/moe/").rpartition("/")[0]
                names = _layer_names(run, part, len(values[-1]))
                yield chart(f"{title}, {part}", steps, values, names)


def _layer_names(run: Run, part: str, count: int) -> list[str]:
    """By their place among all layers, if the configuration has it, else among MoE layers."""
    numbers = run.moe(part)[1]
    if len(numbers) == count:
        return [f"layer {n}" for n in numbers]
    return [f"MoE {n}" for n in range(1, count + 1)]


def _tokens_note(curves: dict[str, tuple[list[int], list[float]]]) -> str:
    values = sorted(curves.get("train/tokens_per_second", ((), ()))[1])
    return f"median {values[len(values) // 2]:,.0f} tokens a second" if values else ""


def answers(run: Run) -> Html | None:
    """Pictures with questions, references and answers, chosen without looking at the answers."""
    shown = [s for s in run.splits if any(p.task in vqa.TASKS for p in s.predictions)]
    if not shown:
        return None
    text = (
        "Not hand-picked: pictures spread evenly over the split, whatever their answers. The k-th "
        "picture shows its questions k, k+1, k+2 (counted round), so that all types occur. "
        "✓ equals a reference, ✗ does not; → is the reference."
    )
    blocks = [tag("p", text, class_="lead")]
    for i, split in enumerate(shown):
        pictures = gallery(split, _PICTURES if i == 0 else _PICTURES // 2, vqa.TASKS)
        cards = [_card(split, k, index, rows) for k, (index, rows) in enumerate(pictures)]
        grid = tag("div", cards, class_="gallery")
        blocks.append(grid if i == 0 else _fold(f"Pictures of the {split.label} split", grid))
    wrong = confusions(shown[0].predictions, shown[0].profile)
    if wrong:
        rows = [
            tag(
                "tr",
                tag("td", t),
                tag("td", ref),
                tag("td", p or "(nothing)"),
                tag("td", n, class_="n"),
            )
            for t, ref, p, n in wrong
        ]
        heads = [tag("th", h) for h in ("Type", "Reference", "Answer")]
        head = tag("thead", tag("tr", heads, tag("th", "Times", class_="n")))
        table = tag("div", tag("table", head, tag("tbody", rows)), class_="scroll card")
        blocks.append(_fold(f"Most frequent mistakes on the {shown[0].label} split", table))
    return join(blocks)


def _fold(title: str, body: Html) -> Html:
    return tag("details", tag("summary", title), body)


def _card(split: Split, k: int, index: int, questions: list[Prediction]) -> Html:
    count = min(_QUESTIONS, len(questions))
    items = [_item(questions[(k + j) % len(questions)], split.profile) for j in range(count)]
    alt = f"picture {index} of {split.label}"
    return tag(
        "article", _picture(split, index, alt), tag("ul", items, class_="qas"), class_="pic card"
    )


def _item(p: Prediction, profile: Profile) -> Html:
    good = right(p, profile)
    answer = tag("p", p.prediction or "(nothing)", class_=f"a {'ok' if good else 'no'}")
    reference = None if good else tag("p", " / ".join(p.answers), class_="a ref")
    kind = tag("span", p.type or p.task, class_="kind")
    question = tag("p", kind, tag("span", p.question, lang="vi"), class_="q")
    return tag("li", question, answer, reference)


def _picture(split: Split, index: int, alt: str) -> Html:
    data = png(split.images[index]) if index in split.images else None
    if data is None:
        return tag("div", f"no picture {index}", class_="nopic")
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return tag("img", src=source, alt=alt, loading="lazy")


def captions(run: Run) -> Html | None:
    """Captions beside all their references."""
    text = (
        "Pictures spread evenly over the split, whatever their captions. Underlined: syllables "
        "that no reference has. Green: the reference that the caption equals."
    )
    blocks: list[Any] = [tag("p", text, class_="lead")]
    for split in run.splits:
        chosen = gallery(split, _CAPTIONS, ("caption",))
        if chosen:
            cards = [_caption(split, i, p) for i, rows in chosen for p in rows[:1]]
            grid = tag("div", cards, class_="caps")
            first = len(blocks) == 1
            blocks.append(grid if first else _fold(f"Captions of the {split.label} split", grid))
    return join(blocks) if len(blocks) > 1 else None


def _caption(split: Split, index: int, p: Prediction) -> Html:
    tokens = functools.partial(tokenize, profile=split.profile)
    known = {syllable for a in p.answers for syllable in tokens(a).split()}
    words = []
    for word in p.prediction.split():
        bare = word.rstrip(".,;:!?")
        mark = not set(tokens(bare).split()) <= known
        words.append(join(tag("mark", bare) if mark else bare, word[len(bare) :], " "))
    whole = tokens(p.prediction)
    references = [tag("li", a, class_="hit" if tokens(a) == whole else None) for a in p.answers]
    text = tag("p", words or "(nothing)", class_="cap", lang="vi")
    picture = _picture(split, index, f"picture {index} of {split.label}")
    body = tag("div", text, tag("ul", references, class_="refs", lang="vi"))
    return tag("article", picture, body, class_="capcard card")


def experts(run: Run) -> Html | None:
    """Each MoE layer's load, balanced or not, and which token kinds go where."""
    shown = [s for s in run.splits if s.experts]
    if not shown:
        return None
    text = (
        "Bars: each expert's share of all routed choices; the dashed line is perfect balance. "
        "Below: the same for each kind of token, in per cent; deep colour means a kind's favourite "
        "expert (four times its balanced share, or more). Counted over a few batches, with "
        "evaluation's routing."
    )
    blocks = [tag("p", text, class_="lead")]
    for i, split in enumerate(shown):
        grid = tag("div", [_layer(layer) for layer in split.experts], class_="charts")
        body = join(grid, layers(split.experts))
        blocks.append(body if i == 0 else _fold(f"Experts on the {split.label} split", body))
    return join(blocks)


def _layer(layer: dict[str, Any]) -> Html:
    load = layer["load"]
    # The number of equally used experts that would be as spread out.
    effective = math.exp(-sum(x * math.log(x) for x in load if x > 0))
    facts = [f"as if {effective:.1f} of {len(load)} experts shared evenly"]
    if "drop_fraction" in layer:
        facts.append(f"{percent(layer['drop_fraction'])} dropped")
    if "entropy" in layer:
        facts.append(f"gate entropy {layer['entropy']:.2f} of {math.log(len(load)):.2f} nats")
    head = tag("figcaption", tag("strong", layer["name"]), tag("small", " · ".join(facts)))
    return tag("figure", head, expert_chart(load, layer["by_kind"]), class_="chart card")
