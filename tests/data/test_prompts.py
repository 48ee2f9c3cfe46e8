import pytest

from vimoe_jax.data import prompts
from vimoe_jax.data.prompts import num_wordings, prompt, segment
from vimoe_jax.data.records import QA, TASKS, BadRecord
from vimoe_jax.data.tokenizer import train_sentencepiece


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["con mèo màu gì? Đáp: màu đen", "Mô tả ảnh: một con mèo nằm trên ghế", "quả táo đỏ"]
    return train_sentencepiece(texts, 292)


@pytest.mark.parametrize(
    "question", ["con mèo màu gì", "con mèo màu gì?", " con mèo  màu gì ??", "con mèo màu gì？"]
)
def test_one_question_mark(question):
    for task in ("vqa", "ocr_vqa"):
        for wording in range(num_wordings(task)):
            text = prompt(task, question, wording=wording)
            assert text.count("?") == 1 and "con mèo màu gì?" in text and "{" not in text


@pytest.mark.parametrize("task", TASKS)
def test_wordings_differ_and_end_alike(task):
    texts = {prompt(task, "ở đâu", wording=w) for w in range(num_wordings(task))}
    assert len(texts) == num_wordings(task) > 1
    assert all(t.endswith(":") for t in texts)
    assert prompt(task, "ở đâu") == prompt(task, "ở đâu", wording=0)


def test_a_question_may_contain_braces():
    assert "{q} là gì?" in prompt("vqa", "{q} là gì")


@pytest.mark.parametrize("question", ["", "  ", "?", " ？ ", "\u200b?"])
def test_empty_question(question):
    with pytest.raises(BadRecord, match="empty question"):
        prompt("vqa", question)
    with pytest.raises(BadRecord, match="q7: empty question"):
        prompts.prompt_of(QA("q7", "vqa", question, ("đen",)))
    assert prompt("caption", question)


@pytest.mark.parametrize("wording", [0, 1])
@pytest.mark.parametrize("answer", [0, 1])
def test_weights_are_on_the_answer_and_the_end(tokenizer, wording, answer):
    qa = QA("a", "vqa", "con mèo màu gì", ("màu đen", "quả táo đỏ"))
    s = segment(qa, tokenizer, answer=answer, wording=wording)
    learnt = [t for t, w in zip(s.targets, s.weights, strict=True) if w]
    assert learnt == [*tokenizer.encode(qa.answers[answer]), tokenizer.eos_id]
    before = tokenizer.encode(prompt("vqa", qa.question, wording=wording))
    assert s.tokens == before + learnt[:-1]
    assert s.targets == [*s.tokens[1:], tokenizer.eos_id]
    # The first answer token is predicted from the last prompt token.
    assert s.weights.index(1.0) == len(before) - 1
    assert set(s.weights) == {0.0, 1.0}


def test_cut_keeps_the_beginning(tokenizer):
    s = segment(QA("a", "caption", "", ("một con mèo nằm trên ghế",)), tokenizer)
    cut = s.cut(5)
    assert (cut.tokens, cut.targets, cut.weights) == (s.tokens[:5], s.targets[:5], s.weights[:5])


def test_answer_without_text(tokenizer):
    with pytest.raises(BadRecord, match="q1: empty answer"):
        segment(QA("q1", "vqa", "màu gì", (" \u200b",)), tokenizer)
