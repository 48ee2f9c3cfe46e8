"""`report.json` and its summary: counts of what a dataset has, and of what was left out and why."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vimoe_jax.datasets.preparing.kept import Kept
from vimoe_jax.datasets.preparing.leakage import compared
from vimoe_jax.datasets.preparing.sifting import TRAIN, LeftOut, Sifted, Split
from vimoe_jax.datasets.records import QA
from vimoe_jax.text.tones import tone_style


def report(sifted: Sifted) -> dict[str, Any]:
    """The facts about a sifted dataset, ready for JSON.

    Returns:
      splits: of each, pictures, questions, tasks, types, answers, text, and what was left out;
      shared: pictures and questions of every two splits, before leaked ones were dropped.
    """
    train = sifted.splits.get(TRAIN)
    known = {compared(a) for qa in _asked(train.records) for a in qa.answers} if train else None
    return {
        "splits": {
            name: _split(split, None if name == TRAIN else known)
            for name, split in sifted.splits.items()
        },
        "shared": [
            {
                "splits": list(s.splits), "pictures": s.pictures, "pairs": s.pairs,
                "examples": list(s.examples),
            }
            for s in sifted.shared
        ],
    }  # fmt: skip


def counts(pictures: int, questions: Iterable[QA]) -> dict[str, Any]:
    """How many pictures and questions there are, by task and type."""
    tasks: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for qa in questions:
        tasks[qa.task] += 1
        if qa.type:
            types[qa.type] += 1
    return {
        "pictures": pictures,
        "questions": tasks.total(),
        "tasks": dict(sorted(tasks.items())),
        "types": dict(sorted(types.items())),
    }


def texts(records: Sequence[Kept]) -> Iterator[str]:
    """Every text that training on records would show, in order."""
    for qa in _asked(records):
        yield from filter(None, (qa.question, *qa.answers, *qa.explanations))


def summary(facts: dict[str, Any]) -> list[str]:
    """The report on one screen."""
    lines = []
    for name, split in facts["splits"].items():
        answers = split["answers"]
        line = f"{name}: {split['pictures']} pictures, {split['questions']} questions"
        line += f" of {split['annotations']} annotations"
        if "distinct" in answers:
            line += f"; {answers['distinct']} distinct answers"
        if "ceiling" in answers:
            line += f", {answers['ceiling']:.2%} of questions answered by one of train's"
        lines.append(line)
        for reason, left in split["left_out"].items():
            lines.append(f"  left out, {_left(reason, left)}")
        if split["contradictions"]["count"]:
            lines.append(
                f"  kept as references, {_left('contradictions', split['contradictions'])}"
            )
        lines += [
            f"  tokens a {what}: " + ", ".join(f"{p} {n}" for p, n in tokens.items())
            for what, tokens in split.get("tokens", {}).items()
        ]
    for shared in facts["shared"]:
        if shared["pictures"]:
            one, other = shared["splits"]
            lines.append(
                f"{one} shares {shared['pictures']} pictures and {shared['pairs']} questions about "
                f"them with {other}"
            )
    return lines


def _split(split: Split, train_answers: set[str] | None) -> dict[str, Any]:
    questions = list(_asked(split.records))
    return counts(len(split.records), questions) | {
        "annotations": split.annotations,
        "answers": _answers(questions, train_answers),
        "text": _text_facts(list(texts(split.records))),
        "left_out": {reason: _left_out(left) for reason, left in split.left_out.items()},
        "contradictions": _left_out(split.contradictions),
    }


def _answers(questions: Sequence[QA], train: set[str] | None) -> dict[str, Any]:
    """How many answers, and how many of them a classifier trained on train could give."""
    facts: dict[str, Any] = {"references": sum(len(qa.answers) for qa in questions)}
    given = [{compared(a) for a in qa.answers} for qa in questions if qa.task != "caption"]
    if given:
        distinct = set().union(*given)
        facts["distinct"] = len(distinct)
        if train:
            facts["distinct_in_train"] = len(distinct & train)
            facts["ceiling"] = round(sum(bool(a & train) for a in given) / len(given), 6)
    return facts


def _text_facts(all_texts: Sequence[str]) -> dict[str, int]:
    styles = [tone_style(text) for text in all_texts]
    return {
        "texts": len(all_texts),
        "not_nfc": sum(not unicodedata.is_normalized("NFC", text) for text in all_texts),
        "tones_old": sum(style.old for style in styles),
        "tones_new": sum(style.new for style in styles),
        "tones_misplaced": sum(style.misplaced for style in styles),
    }


def _left_out(left: LeftOut) -> dict[str, Any]:
    return {"count": left.count, "pictures": len(left.pictures), "examples": left.examples}


def _left(reason: str, left: dict[str, Any]) -> str:
    text = f"{reason}: {left['count']}"
    if left["pictures"]:
        text += f" of {left['pictures']} pictures"
    if left["examples"]:
        example = left["examples"][0]
        text += f" ({example['where']}: {example['text'] or 'empty'})"
    return text


def _asked(records: Iterable[Kept]) -> Iterator[QA]:
    return (qa for record in records for qa in record.qa)
