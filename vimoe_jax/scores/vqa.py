"""Scores of short answers, and what one gets without looking at the picture.

Every comparison applies one text profile (`text.normalize.Profile`) to both sides. Where a
question has several references, the best counts. Questions without any reference cannot be scored
and count nowhere; references that only hold the place of an unpublished answer are none.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from vimoe_jax.datasets.records import QA
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import PLAIN, Profile, is_placeholder

TASKS = ("vqa", "ocr_vqa")


def exact(prediction: str, reference: str, profile: Profile = PLAIN) -> float:
    """1 if equal."""
    return float(profile(prediction) == profile(reference))


def f1_squad(prediction: str, reference: str, profile: Profile = PLAIN) -> float:
    """SQuAD's F1: over the multisets of syllables. Two empty texts agree."""
    p, r = profile(prediction).split(), profile(reference).split()
    common = sum((Counter(p) & Counter(r)).values())
    return 2 * common / (len(p) + len(r)) if common else float(p == r)


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


def anls(prediction: str, reference: str, profile: Profile = PLAIN) -> float:
    """1 - edits / longer length, 0 below one half (Biten et al. 2019)."""
    p, r = profile(prediction), profile(reference)
    similarity = 1 - _edits(p, r) / max(len(p), len(r), 1)
    return similarity if similarity >= 0.5 else 0.0


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


def score(predictions: Sequence[Prediction], profile: Profile = PLAIN) -> dict[str, float]:
    """All scores of the question-answering tasks, as fractions; {} if there is no such question.

    `vqa/accuracy`, also by type and (where both occur) by task; `vqa/f1_squad`, `vqa/f1_uit`,
    `vqa/anls`, `vqa/cer` (lower is better), and `vqa/count`. Where there are any,
    `vqa/placeholders`: questions left out because their answers were not published.
    """
    rows = scorable(predictions)
    left_out = placeholders(predictions)
    metrics: dict[str, float] = {"vqa/placeholders": left_out} if left_out else {}
    if not rows:
        return metrics

    def best(metric: Callable[[str, str, Profile], float], choose: Callable = max) -> float:
        return _mean(choose(metric(p.prediction, r, profile) for r in p.answers) for p in rows)

    metrics = {
        "vqa/accuracy": best(exact),
        "vqa/f1_squad": best(f1_squad),
        "vqa/f1_uit": _mean(f1_uit(p.prediction, p.answers, profile) for p in rows),
        "vqa/anls": best(anls),
        "vqa/cer": best(cer, min),
        **metrics,
    }
    by_type, by_task = defaultdict(list), defaultdict(list)
    for p in rows:
        right = accuracy(p.prediction, p.answers, profile)
        by_type[p.type].append(right)
        by_task[p.task].append(right)
    metrics |= {f"vqa/accuracy/{t}": _mean(v) for t, v in sorted(by_type.items()) if t}
    if len(by_task) > 1:
        metrics |= {f"vqa/accuracy_task/{t}": _mean(v) for t, v in sorted(by_task.items())}
    return {**metrics, "vqa/count": len(rows)}


def answer_vocabulary(train: Iterable[QA], profile: Profile = PLAIN) -> Counter[str]:
    """How often training questions have each answer, as the profile writes it."""
    return Counter(profile(a) for qa in train if qa.task in TASKS for a in _references(qa.answers))


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
