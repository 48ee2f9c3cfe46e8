"""Scores of short answers, and what one gets without looking at the picture.

Every comparison applies one text profile (`text.normalize.Profile`) to both sides. Where a
question has several references, the best counts. Questions without any reference cannot be scored
and count nowhere; references that only hold the place of an unpublished answer are none.

To add a score, write a function and say by `metric` what it means: `score` and the report have it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vimoe_jax.base import metrics
from vimoe_jax.base.metrics import COUNT
from vimoe_jax.datasets.records import QA
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import PLAIN, Profile, is_placeholder

TASKS = ("vqa", "ocr_vqa")

# A score of one question, from the answer, all references and the profile; by the metric's name.
_SCORES: dict[str, Callable[[str, Sequence[str], Profile], float]] = {}


def metric(
    name: str, title: str, meaning: str, *, all_references: bool = False, **how: Any
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Makes the function below a metric: `score` gives its mean over the questions.

    The function takes an answer, a reference (the best one counts) and a profile.

    Args:
      name: begins with `vqa/`.
      title: as `metrics.define` takes it.
      meaning: likewise.
      all_references: the function takes a sequence of all references instead.
      how: the other arguments of `metrics.define`: `unit`, `better`, `low`, `high`.
    """
    best = min if metrics.define(name, title, meaning, **how).better == "lower" else max

    def add(function: Callable[..., float]) -> Callable[..., float]:
        def of_best(prediction: str, references: Sequence[str], profile: Profile) -> float:
            return best(function(prediction, r, profile) for r in references)

        _SCORES[name] = function if all_references else of_best
        return function

    return add


@metric("vqa/accuracy", "Accuracy", "Answers exactly equal to a reference.")
def exact(prediction: str, reference: str, profile: Profile = PLAIN) -> float:
    """1 if equal."""
    return float(profile(prediction) == profile(reference))


@metric(
    "vqa/f1_squad",
    "F1 (SQuAD)",
    "Overlap of syllables, counted with repetition; the best reference.",
)
def f1_squad(prediction: str, reference: str, profile: Profile = PLAIN) -> float:
    """SQuAD's F1: over the multisets of syllables. Two empty texts agree."""
    p, r = profile(prediction).split(), profile(reference).split()
    common = sum((Counter(p) & Counter(r)).values())
    return 2 * common / (len(p) + len(r)) if common else float(p == r)


@metric(
    "vqa/f1_uit",
    "F1 (UIT code)",
    "Distinct syllables in common over the lengths; mean over references.",
    all_references=True,
)
def f1_uit(prediction: str, references: Sequence[str], profile: Profile = PLAIN) -> float:
    """The F1 of UIT's published code: common *distinct* syllables over the lists' lengths.

    It is the mean over the references, where the other scores take the best.
    """
    total = 0.0
    for reference in references:
        p, r = profile(prediction).split(), profile(reference).split()
        common = len(set(p) & set(r))
        total += 2 * common / (len(p) + len(r)) if common else 0.0
    return total / len(references)


def _edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@metric(
    "vqa/anls",
    "ANLS",
    "1 − edits / longer length, 0 below one half: forgives a letter misread.",
)
def anls(prediction: str, reference: str, profile: Profile = PLAIN) -> float:
    """1 - edits / longer length, 0 below one half (Biten et al. 2019)."""
    p, r = profile(prediction), profile(reference)
    similarity = 1 - _edits(p, r) / max(len(p), len(r), 1)
    return similarity if similarity >= 0.5 else 0.0


@metric(
    "vqa/cer",
    "Character error rate",
    "Edits over the reference's length, at most 1.",
    better="lower",
)
def cer(prediction: str, reference: str, profile: Profile = PLAIN) -> float:
    """Character error rate: edits / the reference's length, at most 1."""
    p, r = profile(prediction), profile(reference)
    return min(1.0, _edits(p, r) / max(len(r), 1))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def _references(answers: Iterable[str]) -> tuple[str, ...]:
    return tuple(a for a in answers if not is_placeholder(a))


def scorable(predictions: Iterable[Prediction]) -> list[Prediction]:
    """The questions with a reference, placeholders taken from their answers."""
    asked = (p for p in predictions if p.task in TASKS)
    rows = (dataclasses.replace(p, answers=_references(p.answers)) for p in asked)
    return [p for p in rows if p.answers]


def placeholders(predictions: Iterable[Prediction]) -> int:
    """Questions whose every published answer is a placeholder: they cannot be scored."""
    asked = (p.answers for p in predictions if p.task in TASKS and p.answers)
    return sum(not _references(answers) for answers in asked)


def accuracy(prediction: str, references: Sequence[str], profile: Profile = PLAIN) -> float:
    """1 if equal to one of the references."""
    return max(exact(prediction, r, profile) for r in references)


metrics.define("vqa/count", "Questions", "Questions scored.", unit=COUNT, better="neither")
metrics.define(
    "vqa/placeholders",
    "Placeholders",
    "Questions left out: their answers were not published.",
    unit=COUNT,
    better="neither",
)
metrics.define(
    "vqa/accuracy/{type}",
    "Accuracy: {type}",
    "Answers exactly equal to a reference, on the questions of type {type} alone.",
)
metrics.define(
    "vqa/accuracy_task/{task}", "Accuracy: {task}", "On the questions of task {task} alone."
)


def score(predictions: Sequence[Prediction], profile: Profile = PLAIN) -> dict[str, float]:
    """All scores of the question-answering tasks; {} if there is no such question.

    Every `metric` of this module (`vqa/accuracy`, `vqa/anls`, …); accuracy also by type and (where
    both occur) by task; `vqa/count`. Where there are any, `vqa/placeholders`: questions left out
    because their answers were not published.
    """
    rows = scorable(predictions)
    left_out = placeholders(predictions)
    unscored: dict[str, float] = {"vqa/placeholders": left_out} if left_out else {}
    if not rows:
        return unscored
    scores = {
        name: _mean(function(p.prediction, p.answers, profile) for p in rows)
        for name, function in _SCORES.items()
    } | unscored
    by_type, by_task = defaultdict(list), defaultdict(list)
    for p in rows:
        right = accuracy(p.prediction, p.answers, profile)
        by_type[p.type].append(right)
        by_task[p.task].append(right)
    scores |= {f"vqa/accuracy/{t}": _mean(v) for t, v in sorted(by_type.items()) if t}
    if len(by_task) > 1:
        scores |= {f"vqa/accuracy_task/{t}": _mean(v) for t, v in sorted(by_task.items())}
    return {**scores, "vqa/count": len(rows)}


def answer_vocabulary(train: Iterable[QA], profile: Profile = PLAIN) -> Counter[str]:
    """How often training questions have each answer, as the profile writes it."""
    return Counter(profile(a) for qa in train if qa.task in TASKS for a in _references(qa.answers))


_blind = functools.partial(metrics.define, better="neither")
_blind(
    "vqa/floor_majority",
    "Floor: majority",
    "Blind: always the training set's most frequent answer.",
)
_blind(
    "vqa/floor_per_type",
    "Floor: per type",
    "Blind: the most frequent answer of the question's type.",
)
_blind(
    "vqa/floor_per_type/{type}",
    "Floor: {type}",
    "Blind: the most frequent answer of type {type}, on its questions alone.",
)
_blind(
    "vqa/floor_question_only",
    "Floor: question only",
    "Blind: the most frequent answer to that very question, else of its type.",
)
_blind(
    "vqa/ceiling_train_answers",
    "Ceiling: training answers",
    "Questions with an answer that training has: a classifier over these reaches no more.",
)


def floors(
    train: Sequence[QA], predictions: Sequence[Prediction], profile: Profile = PLAIN
) -> dict[str, float]:
    """Accuracy without looking, and with nothing but training's answers to choose from.

    `vqa/floor_majority`: always the most frequent answer. `vqa/floor_per_type`: the most frequent
    one of the question's type. `vqa/floor_question_only`: the most frequent one of that very
    question. Each falls back to the one before where training has nothing. Also
    `vqa/floor_per_type/<type>`, the second one on the questions of a type alone.

    `vqa/ceiling_train_answers`: the share of questions one of whose answers is an answer in
    training, which is all that a classifier over these could reach.

    {} where there is nothing to learn from or to answer.
    """
    rows = scorable(predictions)
    overall = answer_vocabulary(train, profile)
    if not rows or not overall:
        return {}
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for qa in train:
        answers = answer_vocabulary([qa], profile)
        by_type[qa.type].update(answers)
        by_question[profile(qa.question)].update(answers)

    def guess(*counters: Counter[str] | None) -> str:
        return next(c for c in counters if c).most_common(1)[0][0]

    def floor(answer: Callable[[Prediction], str], of: Sequence[Prediction] = rows) -> float:
        return _mean(accuracy(answer(p), p.answers, profile) for p in of)

    def of_type(p: Prediction) -> str:
        return guess(by_type.get(p.type), overall)

    def of_question(p: Prediction) -> str:
        return guess(by_question.get(profile(p.question)), by_type.get(p.type), overall)

    types = sorted({p.type for p in rows if p.type})
    return {
        "vqa/floor_majority": floor(lambda p: guess(overall)),
        "vqa/floor_per_type": floor(of_type),
        "vqa/floor_question_only": floor(of_question),
        "vqa/ceiling_train_answers": _mean(
            any(profile(a) in overall for a in p.answers) for p in rows
        ),
    } | {f"vqa/floor_per_type/{t}": floor(of_type, [p for p in rows if p.type == t]) for t in types}
