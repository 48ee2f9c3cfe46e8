"""Annotations to records: what cannot be used is left out, counted, and shown by examples.

Text is compared after `text.normalize`, lower-cased. Of an annotation's answers, empty ones and
placeholders go, and it is left out when none remains. Annotations that ask the same of the same
picture:

- The same answer again is a duplicate and kept once; so is a repeated caption.
- Captions, answers of open-ended datasets and lists of answers become references of one question.
- Elsewhere different answers contradict each other. None is kept from train: nothing says which is
  right, and learning both teaches a coin's toss. In an evaluation split they become references of
  one question: leaving hard questions out would make the score better than it is, and either
  answer is one that a person gave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.annotations import Annotations, Asked, Malformed, Picture
from vimoe_jax.datasets.preparing import leakage
from vimoe_jax.datasets.preparing.files import Files, NoPicture
from vimoe_jax.datasets.preparing.kept import Kept
from vimoe_jax.datasets.preparing.leakage import EXAMPLES, compared
from vimoe_jax.datasets.preparing.pictures import Verdict
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.records import QA
from vimoe_jax.text.normalize import is_placeholder

TRAIN = "train"  # every other split is for evaluation
MALFORMED = "malformed annotation"
NO_QUESTION = "empty question"
NO_ANSWER = "empty answer"
PLACEHOLDER = "placeholder answer"
UNREADABLE = "unreadable image"
DUPLICATE = "duplicate"
CONFLICT = "conflicting duplicates"
LEAKED = "leaked to test"

_SHOWN = 120  # characters of an example
# An answer is one line in the prepared files, and text that has no UTF-8 cannot be written.
_ONE_LINE = dict.fromkeys(map(ord, "\n\r"), " ") | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")

Find = Callable[[Picture, str], Path]
Check = Callable[[Sequence[Path]], Mapping[Path, Verdict]]


@dataclasses.dataclass
class LeftOut:
    """Annotations not used for one reason: how many, of which pictures, and some of them."""

    count: int = 0
    pictures: set[str] = dataclasses.field(default_factory=set)
    examples: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def add(self, where: str, text: str, picture: str = "") -> None:
        """Counts one annotation."""
        self.count += 1
        if picture:
            self.pictures.add(picture)
        if len(self.examples) < EXAMPLES:
            text = text.translate(_ONE_LINE)
            text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
            self.examples.append({"where": where, "text": text})


@dataclasses.dataclass
class Split:
    """One split, sifted.

    Attributes:
      records: what is kept, in the order of publication.
      annotations: how many were published, malformed ones included.
      left_out: by reason.
      contradictions: of evaluation splits, questions whose differing answers became references.
    """

    records: list[Kept] = dataclasses.field(default_factory=list)
    annotations: int = 0
    left_out: dict[str, LeftOut] = dataclasses.field(default_factory=dict)
    contradictions: LeftOut = dataclasses.field(default_factory=LeftOut)

    def leave(self, reason: str, where: str, text: str, picture: str = "") -> None:
        """Leaves one annotation out."""
        self.left_out.setdefault(reason, LeftOut()).add(where, text, picture)


@dataclasses.dataclass(frozen=True)
class Sifted:
    """A dataset, sifted: its splits, and what they shared before leaked pictures were dropped."""

    splits: dict[str, Split]
    shared: list[leakage.Shared]


@dataclasses.dataclass(frozen=True)
class _Candidate:
    asked: Asked
    path: Path | None = None
    digest: str = ""


def read(dataset: Dataset, files: Files, variant: str) -> dict[str, Annotations]:
    """The annotations of each split that a folder holds.

    Raises:
      UserError: it holds none, or one is broken.
    """
    found = dict(dataset.read(files, variant))
    if not found:
        expected = ", ".join(dataset.expected)
        raise UserError(f"{files.root}: no annotations of {dataset.title}; expected {expected}")
    return {split: found[split] for split in dataset.splits if split in found}


def sift(
    dataset: Dataset,
    annotations: Mapping[str, Annotations],
    find: Find | None = None,
    check: Check | None = None,
    *,
    drop_leaked: bool = False,
) -> Sifted:
    """Makes records of annotations.

    Args:
      dataset: whose they are.
      annotations: by split.
      find: the file of a picture (`Files.picture`); None to prepare annotations alone.
      check: which files can be read (`pictures.Checker`); needed with `find`.
      drop_leaked: leave pictures out of train that an evaluation split holds.
    """
    splits = {name: Split() for name in annotations}
    candidates = {n: list(_worded(annotations[n], s)) for n, s in splits.items()}
    if find is not None and check is not None:
        for name, split in splits.items():
            candidates[name] = list(_found(candidates[name], name, split, find))
        paths = {c.path: None for some in candidates.values() for c in some if c.path}
        verdicts = check(list(paths))
        for name, split in splits.items():
            candidates[name] = list(_readable(candidates[name], split, verdicts))
    for name, split in splits.items():
        lenient = name != TRAIN
        split.records = list(_grouped(candidates[name], split, dataset.open_ended, lenient))
    shared = leakage.between({name: split.records for name, split in splits.items()})
    if drop_leaked and TRAIN in splits:
        _drop_leaked(splits)
    return Sifted(splits, shared)


def _worded(annotations: Annotations, split: Split) -> Iterator[_Candidate]:
    """Those with a question and an answer."""
    for a in annotations:
        split.annotations += 1
        if isinstance(a, Malformed):
            split.leave(MALFORMED, a.where, a.reason)
            continue
        qa = a.qa
        if qa.task != "caption" and not compared(qa.question).rstrip("?？ "):
            split.leave(NO_QUESTION, a.where, qa.question, a.picture.id)
            continue
        written = [answer for answer in qa.answers if compared(answer)]
        real = [answer for answer in written if not is_placeholder(answer)]
        if not real:
            reason = PLACEHOLDER if written else NO_ANSWER
            split.leave(reason, a.where, " | ".join(qa.answers), a.picture.id)
            continue
        qa = dataclasses.replace(
            qa,
            question=qa.question.translate(_ONE_LINE),
            answers=tuple(answer.translate(_ONE_LINE) for answer in real),
            explanations=tuple(e.translate(_ONE_LINE) for e in qa.explanations if compared(e)),
        )
        yield _Candidate(dataclasses.replace(a, qa=qa))


def _found(
    candidates: list[_Candidate], name: str, split: Split, find: Find
) -> Iterator[_Candidate]:
    """Those whose picture is there."""
    places: dict[str, Path | NoPicture] = {}
    for c in candidates:
        picture = c.asked.picture
        if picture.id not in places:
            try:
                places[picture.id] = find(picture, name)
            except NoPicture as e:
                places[picture.id] = e
        place = places[picture.id]
        if isinstance(place, NoPicture):
            text = picture.names[0] if picture.names else picture.id
            split.leave(str(place), c.asked.where, text, picture.id)
        else:
            yield dataclasses.replace(c, path=place)


def _readable(
    candidates: list[_Candidate], split: Split, verdicts: Mapping[Path, Verdict]
) -> Iterator[_Candidate]:
    """Those whose picture can be decoded."""
    for c in candidates:
        if c.path is None:
            raise ValueError(f"{c.asked.where}: nobody has looked for its picture")
        verdict = verdicts[c.path]
        if verdict.error:
            text = f"{c.path.name}: {verdict.error}"
            split.leave(UNREADABLE, c.asked.where, text, c.asked.picture.id)
        else:
            yield dataclasses.replace(c, digest=verdict.digest)


def _grouped(
    candidates: list[_Candidate], split: Split, open_ended: bool, lenient: bool
) -> Iterator[Kept]:
    """One record per picture, one question for all that ask the same."""
    by_picture: dict[str, list[_Candidate]] = {}
    for c in candidates:
        by_picture.setdefault(c.asked.picture.id, []).append(c)
    for name, some in by_picture.items():
        questions: dict[tuple[str, str], list[Asked]] = {}
        for c in some:
            qa = c.asked.qa
            question = "" if qa.task == "caption" else compared(qa.question)
            questions.setdefault((qa.task, question), []).append(c.asked)
        qa = (_one(same, split, open_ended, lenient) for same in questions.values())
        if kept := tuple(q for q in qa if q is not None):
            first = some[0]
            picture = first.asked.picture
            file = picture.names[0] if picture.names else ""
            yield Kept(name, file, picture.coco, first.path, first.digest, kept)


def _one(same: list[Asked], split: Split, open_ended: bool, lenient: bool) -> QA | None:
    """One question out of annotations that ask the same; None if they contradict each other."""
    answers = [{compared(answer): answer for answer in reversed(a.qa.answers)} for a in same]
    several = open_ended or same[0].qa.task == "caption" or any(len(a) > 1 for a in answers)
    if not several and len(set().union(*answers)) > 1:
        text = f"{same[0].qa.question}: " + " | ".join(a.qa.answers[0] for a in same)
        if lenient:
            split.contradictions.add(same[0].where, text, same[0].picture.id)
        else:
            for a in same:
                split.leave(CONFLICT, a.where, text, a.picture.id)
            return None
    references: dict[str, str] = {}
    for a in same:
        new = {compared(answer): answer for answer in a.qa.answers}
        if references and new.keys() <= references.keys():
            text = f"{a.qa.question}: {' | '.join(a.qa.answers)}".removeprefix(": ")
            split.leave(DUPLICATE, a.where, text, a.picture.id)
        for key, answer in zip(map(compared, a.qa.answers), a.qa.answers, strict=True):
            references.setdefault(key, answer)
    explanations = dict.fromkeys(e for a in same for e in a.qa.explanations)
    return dataclasses.replace(
        same[0].qa, answers=tuple(references.values()), explanations=tuple(explanations)
    )


def _drop_leaked(splits: dict[str, Split]) -> None:
    """Leaves pictures out of train that another split holds."""
    others = [r for name, split in splits.items() if name != TRAIN for r in split.records]
    held, train = leakage.Held(others), splits[TRAIN]
    for record in train.records:
        if record in held:
            for qa in record.qa:
                text = qa.question or qa.answers[0]
                train.leave(LEAKED, f"{TRAIN}: {record.id}", text, record.id)
    train.records = [r for r in train.records if r not in held]
