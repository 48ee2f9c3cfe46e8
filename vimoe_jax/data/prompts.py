"""Vietnamese templates: a question or a request for a caption to prompt, answer and loss mask."""

from __future__ import annotations

import dataclasses

from vimoe_jax.data.records import QA, BadRecord
from vimoe_jax.data.text import normalize
from vimoe_jax.data.tokenizer import Tokenizer

# The first wording is the one used at evaluation. `{q}` is the question with its question mark.
_QUESTION = ("{q} Đáp:", "Câu hỏi: {q} Trả lời ngắn gọn:", "Nhìn ảnh và trả lời: {q} Đáp:")
TEMPLATES: dict[str, tuple[str, ...]] = {
    "caption": ("Mô tả ảnh:", "Hãy mô tả bức ảnh này:", "Trong ảnh có gì? Mô tả bằng một câu:"),
    "vqa": _QUESTION,
    "ocr_vqa": (*_QUESTION, "Đọc chữ trong ảnh rồi trả lời: {q} Đáp:"),
}


def num_wordings(task: str) -> int:
    """How many wordings a task's prompt has."""
    return len(TEMPLATES[task])


def prompt(task: str, question: str, *, wording: int = 0) -> str:
    """The text before the answer.

    Raises:
      BadRecord: a question is needed and there is none.
    """
    template = TEMPLATES[task][wording]
    if "{q}" not in template:
        return template
    question = normalize(question).rstrip("?？ ")
    if not question:
        raise BadRecord("empty question")
    return template.replace("{q}", f"{question}?")


def prompt_of(qa: QA, *, wording: int = 0) -> str:
    """`prompt` of a QA, whose id the complaint names."""
    try:
        return prompt(qa.task, qa.question, wording=wording)
    except BadRecord as e:
        raise BadRecord(f"{qa.id}: {e}") from None


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


def segment(qa: QA, tokenizer: Tokenizer, *, answer: int = 0, wording: int = 0) -> Segment:
    """Prompt + one of the reference answers + end token.

    Raises:
      BadRecord: no question, or an answer without text.
    """
    before = tokenizer.encode(prompt_of(qa, wording=wording))
    after = tokenizer.encode(qa.answers[answer])
    if not after:
        raise BadRecord(f"{qa.id}: empty answer")
    ids = [*before, *after, tokenizer.eos_id]
    weights = [0.0] * (len(before) - 1) + [1.0] * (len(after) + 1)
    return Segment(ids[:-1], ids[1:], weights)
