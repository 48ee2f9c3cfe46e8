"""Scores of short answers, and what one gets without looking at the picture.

Every comparison is made on `plain` text. Where a question has several references, the best counts.
Questions without any reference cannot be scored and count nowhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from vimoe_jax.data.records import QA
from vimoe_jax.data.text import normalize
from vimoe_jax.evaluate.predictions import Prediction

TASKS = ("vqa", "ocr_vqa")


def plain(text: str) -> str:
    """NFC, lower case, stripped, one final full stop dropped."""
    text = normalize(text).lower()
    return text.removesuffix(".").rstrip()


def exact(prediction: str, reference: str) -> float:
    """1 if equal."""
    return float(plain(prediction) == plain(reference))


def f1_squad(prediction: str, reference: str) -> float:
    """SQuAD's F1: over the multisets of syllables. Two empty texts agree."""
    p, r = plain(prediction).split(), plain(reference).split()
    common = sum((Counter(p) & Counter(r)).values())
    return 2 * common / (len(p) + len(r)) if common else float(p == r)


def f1_uit(prediction: str, references: Sequence[str]) -> float:
    """The F1 of UIT's published code: common *distinct* syllables over the lists' lengths.

    It is the mean over the references, where the other scores take the best.
    """
    total = 0.0
    for reference in references:
        p, r = plain(prediction).split(), plain(reference).split()
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


def anls(prediction: str, reference: str) -> float:
    """1 - edits / longer length, 0 below one half (Biten et al. 2019)."""
    p, r = plain(prediction), plain(reference)
    similarity = 1 - _edits(p, r) / max(len(p), len(r), 1)
    return similarity if similarity >= 0.5 else 0.0


def cer(prediction: str, reference: str) -> float:
    """Character error rate: edits / the reference's length, at most 1."""
    p, r = plain(prediction), plain(reference)
    return min(1.0, _edits(p, r) / max(len(r), 1))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def _scorable(predictions: Iterable[Prediction]) -> list[Prediction]:
    return [p for p in predictions if p.task in TASKS and p.answers]


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """1 if equal to one of the references."""
    return max(exact(prediction, r) for r in references)


def score(predictions: Sequence[Prediction]) -> dict[str, float]:
    """All scores of the question-answering tasks, as fractions; {} if there is no such question.

    `vqa/accuracy`, also by type and (where both occur) by task; `vqa/f1_squad`, `vqa/f1_uit`,
    `vqa/anls`, `vqa/cer` (lower is better), and `vqa/count`.
    """
    rows = _scorable(predictions)
    if not rows:
        return {}

    def best(metric: Callable[[str, str], float], choose: Callable = max) -> float:
        return _mean(choose(metric(p.prediction, r) for r in p.answers) for p in rows)

    metrics = {
        "vqa/accuracy": best(exact),
        "vqa/f1_squad": best(f1_squad),
        "vqa/f1_uit": _mean(f1_uit(p.prediction, p.answers) for p in rows),
        "vqa/anls": best(anls),
        "vqa/cer": best(cer, min),
    }
    by_type, by_task = defaultdict(list), defaultdict(list)
    for p in rows:
        right = accuracy(p.prediction, p.answers)
        by_type[p.type].append(right)
        by_task[p.task].append(right)
    metrics |= {f"vqa/accuracy/{t}": _mean(v) for t, v in sorted(by_type.items()) if t}
    if len(by_task) > 1:
        metrics |= {f"vqa/accuracy_task/{t}": _mean(v) for t, v in sorted(by_task.items())}
    return {**metrics, "vqa/count": len(rows)}


def floors(train: Iterable[QA], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Accuracy without looking: answering from the training questions alone.

    `vqa/floor_majority`: always the most frequent answer. `vqa/floor_per_type`: the most frequent
    one of the question's type. `vqa/floor_question_only`: the most frequent one of that very
    question. Each falls back to the one before where training has nothing. Also
    `vqa/floor_per_type/<type>`, the second one on the questions of a type alone; {} where there is
    nothing to learn from or to answer.
    """
    rows = _scorable(predictions)
    overall: Counter[str] = Counter()
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for qa in train:
        if qa.task in TASKS:
            for answer in map(plain, qa.answers):
                overall[answer] += 1
                by_type[qa.type][answer] += 1
                by_question[plain(qa.question)][answer] += 1
    if not rows or not overall:
        return {}

    def guess(*counters: Counter[str] | None) -> str:
        return next(c for c in counters if c).most_common(1)[0][0]

    def floor(answer: Callable[[Prediction], str]) -> float:
        return _mean(accuracy(answer(p), p.answers) for p in rows)

    return {
        "vqa/floor_majority": floor(lambda p: guess(overall)),
        "vqa/floor_per_type": floor(lambda p: guess(by_type.get(p.type), overall)),
        "vqa/floor_question_only": floor(
            lambda p: guess(by_question.get(plain(p.question)), by_type.get(p.type), overall)
        ),
    } | {
        f"vqa/floor_per_type/{t}": _mean(
            accuracy(guess(by_type.get(t), overall), p.answers) for p in rows if p.type == t
        )
        for t in sorted({p.type for p in rows})
        if t
    }
