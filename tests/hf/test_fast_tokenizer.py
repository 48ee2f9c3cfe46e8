"""Our SentencePiece model as `tokenizer.json`: the same ids, whatever the text."""

import csv
import io
import json
import unicodedata

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vimoe_jax.base.errors import UserError
from vimoe_jax.hf import fast_tokenizer
from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece

TEXTS = [
    "Có mấy con mèo trong ảnh? Đáp: hai con mèo",
    "Người đàn ông đội mũ màu gì? Đáp: màu đỏ",
    "Mô tả ảnh: một chiếc thuyền nhỏ trên dòng sông rộng",
    "Quyển sách này của tác giả nào? Đáp: Nguyễn Nhật Ánh",
    "Biển hiệu ghi chữ gì? Đáp: cửa hàng bánh mì 24/7 <giá 15.000đ>",
]
ODD = [
    "", "  ", "\u200b", "a", "▁", "▁▁a", "a ▁", " a▁ b", "a\u3000\n\tb\x85c\u2028d", "\x00a\x1cb",
    "e\u0302\u0301", "a\u0301\u200b\u0323b", "đi\u200bhọc", "\ufeffxin", "ﬁ ﬂ Å K", "日本語 한국어",
    "👨‍👩‍👧 gia đình", "𐐷 𝒳", "aaaaaaaaaaa", "!!!!!!!!!", "nghiêng nghoẹo ngoằn ngoèo khuỷu tay",
    "<0x41>", "x<0x41>y", "<0x4", "<<0x41>>", "</s>", "<image>có gì?", "<s><pad><unk>", "a<",
]  # fmt: skip


@pytest.fixture(scope="module")
def ours():
    return train_sentencepiece(TEXTS, 340)


@pytest.fixture(scope="module")
def fast(ours):
    return reopened(ours)


def reopened(ours):
    """As a user has it: from the file's text; names of special tokens in a text are text."""
    tokenizer = Tokenizer.from_str(fast_tokenizer.convert(ours).to_str())
    tokenizer.encode_special_tokens = True
    return tokenizer


def assert_same(ours, fast, texts):
    for text in texts:
        ids = ours.encode(text)
        assert fast.encode(text).ids == ids, repr(text)
        assert fast.decode(ids) == ours.decode(ids), repr(text)


def test_odd_texts(ours, fast):
    assert_same(ours, fast, [*TEXTS, *ODD])
    assert_same(ours, fast, [unicodedata.normalize("NFD", t) for t in TEXTS])


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("aăâđeêôơư cmnđ▁<>0x41/s?\u0301\u0323\u0302\u200d\u00ad\u3000\n🙂日"))
)
def test_marks_spaces_and_invisible_characters(ours, fast, text):
    assert_same(ours, fast, [text])


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"])))
def test_any_text(ours, fast, text):
    assert_same(ours, fast, [text])


def test_the_text_after_pictures_is_cut_as_if_alone(ours):
    fast = fast_tokenizer.convert(ours)
    text = "  Có mấy con\u200b mèo? "
    assert fast.encode("<image>" * 3 + text).ids == [ours.image_id] * 3 + ours.encode(text)


def test_ids_keep_their_meaning(ours, fast):
    assert fast.get_vocab_size() == ours.vocab_size
    names = ("<pad>", "</s>", "<unk>", "<s>", "<image>")
    assert [fast.token_to_id(n) for n in names] == [0, 1, 2, 3, 4]
    answer = [*ours.encode("hai con"), ours.eos_id]
    assert fast.decode(answer) == "hai con"
    rare = ours.encode("日")
    assert fast.decode(rare[:-1]) == ours.decode(rare[:-1])  # half a character


def test_the_normaliser_is_ours(fast):
    for text in [*ODD, *map(chr, range(0x3400)), *map(chr, range(0xF900, 0x11000))]:
        ours = normalize(f"a{text}b")
        assert fast.normalizer.normalize_str(f"a{text}b") == "▁" + ours.replace(" ", "▁")


@pytest.mark.real_data
def test_real_sentences(real_data):
    lines = [
        line
        for file in sorted((real_data / "text").glob("*.txt"))
        if file.name != "SOURCE.txt"
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    ours = train_sentencepiece(lines[::4], 4000)
    fast = reopened(ours)
    with open(real_data / "vivqa/train.csv", encoding="utf-8") as f:
        questions = [row["question"] for row in csv.DictReader(f)][:4000]
    captions = json.loads((real_data / "uit_viic/uitviic_captions_val2017.json").read_text("utf-8"))
    texts = lines[::3] + questions + [a["caption"] for a in captions["annotations"]]
    texts += [unicodedata.normalize("NFD", t) for t in texts[::10]]
    assert len(texts) > 10_000
    assert_same(ours, fast, texts)


def foreign(**changed):
    """A model with our special pieces, but trained otherwise."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=out, minloglevel=2,
        **{
            "vocab_size": 340, "byte_fallback": True, "pad_id": 0, "eos_id": 1, "unk_id": 2,
            "bos_id": 3, "control_symbols": ["<image>"], "normalization_rule_name": "identity",
            **changed,
        },
    )  # fmt: skip
    return SentencePieceTokenizer(out.getvalue())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_type": "bpe"}, "trainer_spec.model_type"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizer_spec.name"),
        ({"byte_fallback": False, "vocab_size": 80}, "trainer_spec.byte_fallback"),
        ({"add_dummy_prefix": False}, "normalizer_spec.add_dummy_prefix"),
        ({"user_defined_symbols": ["mèo"]}, "user-defined"),
    ],
)
def test_other_models_are_refused_by_name(changed, named):
    with pytest.raises(UserError, match=named):
        fast_tokenizer.convert(foreign(**changed))
