import pytest

from vimoe_jax.data import prompts
from vimoe_jax.data.prompts import num_wordings, prompt, segment
from vimoe_jax.datasets.records import QA, TASKS, BadRecord
from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece
from vimoe_jax.text.wordings import STYLES


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["con mèo màu gì? Đáp: màu đen", "Mô tả ảnh: một con mèo nằm trên ghế", "quả táo đỏ"]
    return train_sentencepiece(texts, 292)


EXPLAINED = QA(
    "x", "vqa", "có mưa không", ("có.", "đúng"),
    explanations=("vì đường ướt", "bởi vì trời đầy mây", "mọi người che ô"),
)  # fmt: skip


@pytest.mark.parametrize(
    "question", ["con mèo màu gì", "con mèo màu gì?", " con mèo  màu gì ??", "con mèo màu gì？"]
)
def test_one_question_mark(question):
    for task in ("vqa", "ocr_vqa"):
        for wording in range(num_wordings(task)):
            text = prompt(task, question, wording=wording)
            assert text.count("?") == 1 and "con mèo màu gì?" in text and "{" not in text


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("task", TASKS)
def test_wordings_differ_and_end_alike(task, style):
    count = num_wordings(task, style)
    texts = {prompt(task, "ở đâu", wording=w, style=style) for w in range(count)}
    assert len(texts) == count > 1
    assert all(t.endswith(":") and t == normalize(t) for t in texts)
    assert prompt(task, "ở đâu", style=style) == prompt(task, "ở đâu", wording=0, style=style)
    if task != "caption":
        assert all("ở đâu?" in t for t in texts)


def test_the_plain_style_is_the_usual_one():
    for task in TASKS:
        assert prompt(task, "ở đâu") == prompt(task, "ở đâu", style="plain")
    assert [prompt(t, "ở đâu") for t in TASKS] == ["Mô tả ảnh:", *["ở đâu? Đáp:"] * 2]


def test_styles_ask_in_their_own_words_and_plainly_where_they_have_none():
    for style, tasks in STYLES.items():
        if style == "plain":
            continue
        for task in TASKS:
            own = prompt(task, "ở đâu", style=style) != prompt(task, "ở đâu")
            assert own == (task in tasks)


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


def test_an_explained_answer(tokenizer):
    texts = [prompts.target(EXPLAINED, style="explain", explanation=i) for i in range(3)]
    assert texts == ["có, vì đường ướt", "có, vì trời đầy mây", "có, vì mọi người che ô"]
    assert prompts.target(EXPLAINED, answer=1, style="explain") == "đúng, vì đường ướt"
    assert prompts.prompt_of(EXPLAINED, style="explain") == "có mưa không? Trả lời và giải thích:"
    assert prompts.target(EXPLAINED) == "có."
    s = segment(EXPLAINED, tokenizer, style="explain", explanation=2)
    learnt = [t for t, w in zip(s.targets, s.weights, strict=True) if w]
    assert learnt == [*tokenizer.encode(texts[2]), tokenizer.eos_id]


def test_only_the_answer_is_scored():
    for i in range(3):
        said = prompts.target(EXPLAINED, style="explain", explanation=i)
        assert prompts.answer_in(said, EXPLAINED, "explain") == "có"
    assert prompts.answer_in("có", EXPLAINED, "explain") == "có"
    assert prompts.answer_in("có, vì mưa", EXPLAINED, "plain") == "có, vì mưa"


def test_without_explanations_the_question_is_asked_plainly():
    bare = QA("x", "vqa", "có mưa không", ("có, vì ướt",))
    assert prompts.prompt_of(bare, style="explain") == prompts.prompt_of(bare)
    assert prompts.target(bare, style="explain") == "có, vì ướt"
    assert prompts.answer_in("có, vì ướt", bare, "explain") == "có, vì ướt"


def test_explanation_without_text(tokenizer):
    qa = QA("q1", "vqa", "màu gì", ("đen",), explanations=(" \u200b",))
    with pytest.raises(BadRecord, match="q1: empty explanation"):
        segment(qa, tokenizer, style="explain")


@pytest.mark.parametrize("style", ["plain", "short", "explain"])
def test_a_tokenizer_learns_from_every_text_of_the_style(style):
    asked = set(prompts.all_prompts(EXPLAINED, style))
    assert asked == {
        prompts.prompt_of(EXPLAINED, wording=w, style=style) for w in range(len(asked))
    }
    told = list(prompts.all_targets(EXPLAINED, style))
    assert told[:2] == ["có.", "đúng"] and len(told) == (5 if style == "explain" else 2)
