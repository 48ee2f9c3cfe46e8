"""Vietnamese templates: a question or a request for a caption to prompt, answer and loss mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vimoe_jax.datasets.records import QA, BadRecord
from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.tokenizers import Tokenizer
from vimoe_jax.text.wordings import STYLES

_BECAUSE = ", vì "


def suited(qa: QA, style: str) -> str:
    """The style, but "plain" where it asks for an explanation and the dataset has none."""
    return "plain" if style == "explain" and not qa.explanations else style


def wordings(task: str, style: str = "plain") -> tuple[str, ...]:
    """The templates of a task in a style."""
    return STYLES[style].get(task, STYLES["plain"][task])


def num_wordings(task: str, style: str = "plain") -> int:
    """How many wordings a task's prompt has."""
    return len(wordings(task, style))


def prompt(task: str, question: str, *, wording: int = 0, style: str = "plain") -> str:
    """The text before the answer.

    Raises:
      BadRecord: a question is needed and there is none.
    """
    template = wordings(task, style)[wording]
    if "{q}" not in template:
        return template
    question = normalize(question).rstrip("?？ ")
    if not question:
        raise BadRecord("empty question")
    return template.replace("{q}", f"{question}?")


def prompt_of(qa: QA, *, wording: int = 0, style: str = "plain") -> str:
    """`prompt` of a QA in the suited style; the complaint names its id."""
    try:
        return prompt(qa.task, qa.question, wording=wording, style=suited(qa, style))
    except BadRecord as e:
        raise BadRecord(f"{qa.id}: {e}") from None


def target(qa: QA, *, answer: int = 0, style: str = "plain", explanation: int = 0) -> str:
    """The text to learn: a reference answer, with "explain" followed by why.

    Raises:
      BadRecord: an answer or explanation without text.
    """
    text = normalize(qa.answers[answer])
    if not text:
        raise BadRecord(f"{qa.id}: empty answer")
    if suited(qa, style) != "explain":
        return qa.answers[answer]
    why = normalize(qa.explanations[explanation]).removeprefix("bởi vì ").removeprefix("vì ")
    if not why:
        raise BadRecord(f"{qa.id}: empty explanation")
    return f"{text.removesuffix('.')}{_BECAUSE}{why}"


def answer_in(text: str, qa: QA, style: str) -> str:
    """The answer alone in what a model said, which is what is scored."""
    return text.partition(_BECAUSE)[0] if suited(qa, style) == "explain" else text


def all_prompts(qa: QA, style: str = "plain") -> Iterator[str]:
    """A question's prompt in every wording."""
    style = suited(qa, style)
    for wording in range(num_wordings(qa.task, style)):
        yield prompt(qa.task, qa.question, wording=wording, style=style)


def all_targets(qa: QA, style: str = "plain") -> Iterator[str]:
    """The reference answers, and with "explain" the first of them with each explanation."""
    yield from qa.answers
    if suited(qa, style) == "explain":
        for i in range(len(qa.explanations)):
            yield target(qa, style=style, explanation=i)


@dataclasses.dataclass(frozen=True)
class Segment:
    """One question and answer as training sees it: n input tokens, each with its next token.

    Attributes:
      tokens: prompt and answer.
      targets: the next token at each place; the last is the end token.
      weights: 1 where the target is an answer token or the end, else 0.
    """

    tokens: list[int]
    targets: list[int]
    weights: list[float]

    def cut(self, length: int) -> Segment:
        """The first `length` places."""
        return Segment(self.tokens[:length], self.targets[:length], self.weights[:length])


def segment(
    qa: QA,
    tokenizer: Tokenizer,
    *,
    answer: int = 0,
    wording: int = 0,
    style: str = "plain",
    explanation: int = 0,
) -> Segment:
    """Prompt + target (one of the reference answers) + end token.

    Raises:
      BadRecord: no question, or an answer or explanation without text.
    """
    before = tokenizer.encode(prompt_of(qa, wording=wording, style=style))
    after = tokenizer.encode(target(qa, answer=answer, style=style, explanation=explanation))
    ids = [*before, *after, tokenizer.eos_id]
    weights = [0.0] * (len(before) - 1) + [1.0] * (len(after) + 1)
    return Segment(ids[:-1], ids[1:], weights)
