"""Hugging Face tokenizers: one in Qwen's shape, trained here, and others by its side."""

import itertools
import json
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.text.tokenizers.test_sentencepiece import LETTERS, TEXTS
from vimoe_jax.base.errors import UserError
from vimoe_jax.text import tokenizers as tokenizer_lib
from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.tokenizers.__main__ import fertility
from vimoe_jax.text.tokenizers.huggingface import HFTokenizer
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece

# As in the tokenizer.json of Qwen2 and 3.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONFIG = {
    "add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>", "unk_token": None, "tokenizer_class": "Qwen2Tokenizer",
}  # fmt: skip


def qwen() -> Tokenizer:
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    t.train_from_iterator(TEXTS, trainer)
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    t.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return t


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    qwen().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    # What Qwen's own says: several ends, and a beginning that the other file denies.
    ends = {"bos_token_id": 340, "pad_token_id": 340, "eos_token_id": [342, 340]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return HFTokenizer.load(folder)


def test_special_ids_are_qwens(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id) == (340, 342)
    assert tokenizer.bos_id is tokenizer.unk_id is None
    assert tokenizer.image_id == 344  # added after <think>
    assert tokenizer.vocab_size == 345
    assert tokenizer.byte_ids == frozenset()


def test_agrees_with_the_library(folder, tokenizer):
    peer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*TEXTS, "Hoà 12,5 kg\n👩🏽!", "don't"):
        assert tokenizer.encode_raw(text) == peer.encode(text).ids


def test_every_toned_vowel_survives(tokenizer):
    for letter in LETTERS:
        assert tokenizer.decode(tokenizer.encode(letter)) == letter


@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["NFC", "NFD"]))
def test_any_text_round_trip(tokenizer, text, form):
    ids = tokenizer.encode(unicodedata.normalize(form, text))
    assert tokenizer.decode(ids) == normalize(unicodedata.normalize(form, text))
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_special_names_in_text_are_only_text(tokenizer):
    text = "<image> <|im_end|> <|endoftext|>"
    ids = tokenizer.encode(text)
    assert not {tokenizer.image_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    assert tokenizer.decode(ids) == text


def test_decode_stops_at_the_end_and_skips_specials(tokenizer):
    cat, dog = tokenizer.encode("con mèo"), tokenizer.encode("con chó")
    pad, image, start = tokenizer.pad_id, tokenizer.image_id, 341
    assert tokenizer.decode([start, image, *cat, pad, pad]) == "con mèo"
    assert tokenizer.decode([*cat, tokenizer.eos_id, *dog]) == "con mèo"
    assert tokenizer.decode([*cat, tokenizer.vocab_size + 5, -1]) == "con mèo"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(tokenizer.encode("ờ")[:1]) == "\ufffd"  # half a letter


def test_a_copy_in_another_process_agrees(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])
    assert (copy.vocab_size, copy.image_id) == (tokenizer.vocab_size, tokenizer.image_id)


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_saved_and_loaded(tmp_path, tokenizer, name):
    tokenizer.save(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = tokenizer_lib.load(path)
        for attribute in ("vocab_size", "pad_id", "eos_id", "unk_id", "bos_id", "image_id"):
            assert getattr(again, attribute) == getattr(tokenizer, attribute)
        assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    again.save(tmp_path)  # over itself
    assert tokenizer_lib.load(tmp_path).vocab_size == tokenizer.vocab_size


def test_saved_whole_or_not_at_all(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"nowhere/tokenizer\.json: cannot write"):
        tokenizer.save(tmp_path / "nowhere" / "tokenizer.json")
    with pytest.raises(UserError, match=r"vi\.model: must be a folder, or be called"):
        tokenizer.save(tmp_path / "vi.model")
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        tokenizer.save(tmp_path)
    assert not list(tmp_path.glob(".*"))


def write(folder, **files):
    qwen().save(str(folder / "tokenizer.json"))
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{name}.json").write_text(text)
    return folder


def test_where_roles_come_from(tmp_path):
    end = {"content": "<|im_end|>", "lstrip": False}
    made = HFTokenizer.load(write(tmp_path, special_tokens_map={"eos_token": end}))
    assert made.eos_id == made.pad_id == 342 and made.bos_id is None
    ids = {"eos_token_id": [342, 340], "pad_token_id": 340, "bos_token_id": 341}
    made = HFTokenizer.load(write(tmp_path, special_tokens_map={}, generation_config=ids))
    assert (made.eos_id, made.pad_id, made.bos_id) == (342, 340, 341)
    config = {"eos_token": "<|endoftext|>", "image_token": "<|im_start|>", "bos_token": None}
    made = HFTokenizer.load(write(tmp_path, tokenizer_config=config))
    assert (made.eos_id, made.image_id, made.bos_id, made.vocab_size) == (340, 341, None, 344)
    made = HFTokenizer.load(tmp_path, eos="<|im_end|>", pad="<|im_start|>", bos="a")
    assert (made.eos_id, made.pad_id, made.bos_id) == (342, 341, made.encode("a")[0])
    with pytest.raises(TypeError, match="end"):
        HFTokenizer.load(tmp_path, end="<|im_end|>")


@pytest.mark.parametrize(
    "files, complaint",
    [
        ({}, r"tokenizer\.json: no end token"),
        ({"tokenizer_config": {"eos_token": "</s>"}}, r"json: eos_token '</s>' is not in its"),
        ({"tokenizer_config": {"eos_token": 3}}, r"config\.json: eos_token: must be a token"),
        ({"tokenizer_config": "{"}, r"tokenizer_config\.json: not JSON"),
        ({"special_tokens_map": "[]"}, r"special_tokens_map\.json: not a JSON object"),
        ({"generation_config": {"eos_token_id": 9999}}, r"eos_token_id: 9999 is not in"),
        ({"generation_config": {"eos_token_id": []}}, r"eos_token_id: must be an id"),
        ({"generation_config": {"eos_token_id": True}}, r"eos_token_id: must be an id"),
        ({"tokenizer": "{}", "generation_config": {"eos_token_id": 1}}, "json: not a tokenizer"),
        ({"tokenizer": '{"model": 3}', "tokenizer_config": CONFIG}, "json: not a tokenizer"),
    ],
)
def test_broken_folders(tmp_path, files, complaint):
    with pytest.raises(UserError, match=complaint) as e:
        tokenizer_lib.load(write(tmp_path, **files))
    assert "\n" not in str(e.value)


def test_either_kind_by_what_the_file_holds(tmp_path, tokenizer):
    pieces = train_sentencepiece(TEXTS, 340)
    pieces.save(tmp_path)
    assert tokenizer_lib.saved_in(tmp_path)
    assert type(tokenizer_lib.load(tmp_path)) is type(pieces)
    pieces.save(tmp_path / "odd.json")
    assert type(tokenizer_lib.load(tmp_path / "odd.json")) is type(pieces)
    tokenizer.save(tmp_path)
    assert type(tokenizer_lib.load(tmp_path)) is HFTokenizer
    (tmp_path / "empty").mkdir()
    assert not tokenizer_lib.saved_in(tmp_path / "empty")
    for path, complaint in (
        (tmp_path / "empty", r"holds neither tokenizer\.json nor tokenizer\.model"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(UserError, match=complaint):
            tokenizer_lib.load(path)
    for data in (b"", b"\xff\xfe{", b"{\xff", "con mèo".encode()):
        (tmp_path / "broken").write_bytes(data)
        with pytest.raises(UserError, match="broken: not a"):
            tokenizer_lib.load(tmp_path / "broken")


PIECES = ["<unk>", "<s>", "</s>", "<0xC3>", "a", "b"]


def test_nothing_is_begun_cut_or_padded(tmp_path):
    vocabulary = {t: i for i, t in enumerate(PIECES)}
    t = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    t.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    t.enable_truncation(2)
    t.enable_padding(length=9)
    t.save(str(tmp_path / "tokenizer.json"))
    made = HFTokenizer.load(tmp_path, eos="</s>", bos="<s>", unk="<unk>")
    assert (made.unk_id, made.bos_id, made.eos_id, made.byte_ids) == (0, 1, 2, {3})
    assert made.encode("abab") == [4, 5, 4, 5]
    assert made.decode([1, 4, 0, 5]).replace(" ", "") == "ab"
    assert made.vocab_size == made.image_id + 1 == 7
    report = fertility(made, ["ab", "z"])
    assert report["tokens"] == 3 and report["unknown_share"] == round(1 / 3, 4)


def test_ids_with_gaps_hold_no_new_token(tmp_path):
    vocabulary = {t: 2 * i for i, t in enumerate(PIECES)}
    Tokenizer(models.BPE(vocabulary, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"json: its ids have gaps, so '<image>' cannot be added"):
        HFTokenizer.load(tmp_path, eos="</s>")
    made = HFTokenizer.load(tmp_path, eos="</s>", image="<unk>")
    assert (made.image_id, made.vocab_size) == (0, 11)


def test_fertility(tokenizer):
    report = fertility(tokenizer, TEXTS)
    assert report["unknown_share"] == report["byte_share"] == 0
    assert report["nfd_cost"] == 1  # its own normaliser composes
    tokens = list(itertools.chain(*map(tokenizer.encode, TEXTS)))
    assert report["tokens"] == len(tokens)
    assert report["characters_per_token"] == round(sum(map(len, TEXTS)) / len(tokens), 4)
