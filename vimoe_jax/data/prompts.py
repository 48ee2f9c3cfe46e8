"""Vietnamese templates: a question or a request for a caption to prompt, answer and loss mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vimoe_jax.data.records import QA, BadRecord
from vimoe_jax.data.text import normalize
from vimoe_jax.data.tokenizer import Tokenizer

_QUESTION = ("{q} Đáp:", "Câu hỏi: {q} Trả lời ngắn gọn:", "Nhìn ảnh và trả lời: {q} Đáp:")
_EXPLAIN = (
    "{q} Trả lời và giải thích:",
    "Câu hỏi: {q} Trả lời rồi cho biết vì sao:",
    "Nhìn ảnh, trả lời và nêu lý do: {q} Đáp:",
)

# By style and task. The first wording is the one used at evaluation; `{q}` is the question with its
# question mark. A task that a style does not name is asked plainly.
STYLES: dict[str, dict[str, tuple[str, ...]]] = {
    "plain": {
        "caption": ("Mô tả ảnh:", "Hãy mô tả bức ảnh này:", "Trong ảnh có gì? Mô tả bằng một câu:"),
        "vqa": _QUESTION,
        "ocr_vqa": (*_QUESTION, "Đọc chữ trong ảnh rồi trả lời: {q} Đáp:"),
    },
    "short": {  # answers of a few words, captions of one short sentence
        "caption": (
            "Mô tả ảnh bằng một câu ngắn:",
            "Viết một câu ngắn tả bức ảnh này:",
            "Tóm tắt nội dung bức ảnh trong một câu:",
        ),
        "vqa": (
            "{q} Trả lời ngắn gọn:",
            "Trả lời bằng một vài từ: {q} Đáp:",
            "Nhìn ảnh và trả lời thật ngắn: {q} Đáp:",
        ),
        "ocr_vqa": (
            "{q} Trả lời ngắn gọn theo chữ trong ảnh:",
            "Đọc chữ trong ảnh và trả lời ngắn gọn: {q} Đáp:",
            "Câu hỏi về chữ trong ảnh: {q} Trả lời ngắn gọn:",
        ),
    },
    "detailed": {  # whole sentences (OpenViVQA, EVJVQA), captions of several
        "caption": (
            "Mô tả chi tiết bức ảnh:",
            "Hãy tả kỹ những gì nhìn thấy trong ảnh:",
            "Viết một đoạn văn mô tả đầy đủ bức ảnh này:",
        ),
        "vqa": (
            "{q} Trả lời bằng một câu đầy đủ:",
            "Câu hỏi: {q} Trả lời đầy đủ:",
            "Quan sát bức ảnh rồi trả lời thành câu: {q} Đáp:",
        ),
        "ocr_vqa": (
            "{q} Trả lời bằng một câu đầy đủ theo chữ trong ảnh:",
            "Đọc chữ trong ảnh rồi trả lời thành câu: {q} Đáp:",
            "Câu hỏi về chữ trong ảnh: {q} Trả lời đầy đủ:",
        ),
    },
    "sports": {  # UIT-ViIC
        "caption": (
            "Mô tả hoạt động thể thao trong ảnh:",
            "Viết một câu tả cảnh thể thao này:",
            "Trong ảnh, ai đang chơi môn thể thao nào? Mô tả bằng một câu:",
        ),
    },
    "daily": {  # KTVIC
        "caption": (
            "Mô tả cảnh sinh hoạt trong ảnh:",
            "Viết một câu tả cảnh đời thường này:",
            "Trong ảnh, mọi người đang làm gì và ở đâu? Mô tả bằng một câu:",
        ),
    },
    "book": {  # ViOCRVQA
        "ocr_vqa": (
            "{q} Trả lời theo chữ trên bìa sách:",
            "Đọc bìa sách rồi trả lời: {q} Đáp:",
            "Đây là bìa của một cuốn sách. {q} Đáp:",
        ),
    },
    "scene_text": {  # ViTextVQA
        "ocr_vqa": (
            "{q} Trả lời theo chữ trong ảnh:",
            "Đọc biển hiệu và chữ viết trong ảnh rồi trả lời: {q} Đáp:",
            "Tìm chữ trong ảnh để trả lời: {q} Đáp:",
        ),
    },
    "explain": {"vqa": _EXPLAIN, "ocr_vqa": _EXPLAIN},  # ViVQA-X
}
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
