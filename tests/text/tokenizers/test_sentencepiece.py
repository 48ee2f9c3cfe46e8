import itertools
import json
import pickle
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimoe_jax.base.errors import UserError
from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.tokenizers.__main__ import fertility, main
from vimoe_jax.text.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece

TEXTS = [
    "có bao nhiêu con mèo đang ngồi trên ghế",
    "màu của chiếc ô tô là gì",
    "chiếc thuyền nằm ở đâu trên mặt hồ",
    "Một người đàn ông đang chơi quần vợt trên sân.",
    "Hai bạn nhỏ cầm quả bóng màu xanh lá chạy qua bãi cỏ.",
    "Cuốn sách này của tác giả nào, nhà xuất bản nào in?",
    "Những bông hoa hồng nở rộ bên cạnh ngôi nhà nhỏ.",
    "Bầu trời đêm có rất nhiều ngôi sao sáng và một vầng trăng khuyết.",
]
# Each vowel with each tone, and đ, in both cases.
VOWELS = "aăâeêioôơuưy"
TONES = ["", "\u0300", "\u0301", "\u0303", "\u0309", "\u0323"]
LETTERS = [unicodedata.normalize("NFC", v + t) for v, t in itertools.product(VOWELS, TONES)] + ["đ"]
LETTERS += [c.upper() for c in LETTERS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(TEXTS, 340)


def test_special_ids(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert (tokenizer.bos_id, tokenizer.image_id) == (3, 4)
    assert tokenizer.vocab_size == 340


def test_every_toned_vowel_survives(tokenizer):
    assert len(set(LETTERS)) == 2 * (12 * 6 + 1)
    for letter in LETTERS:
        ids = tokenizer.encode(letter)
        assert tokenizer.decode(ids) == letter
        assert tokenizer.unk_id not in ids


syllables = st.tuples(
    st.sampled_from(["", "b", "đ", "ngh", "tr", "Th", "qu"]),
    st.sampled_from(LETTERS),
    st.sampled_from(["", "n", "ng", "ch", "t", "i"]),
).map("".join)


@given(st.lists(syllables, max_size=8).map(" ".join), st.sampled_from(["NFC", "NFD"]))
def test_vietnamese_round_trip(tokenizer, text, form):
    ids = tokenizer.encode(unicodedata.normalize(form, text))
    assert tokenizer.decode(ids) == text
    assert all(tokenizer.image_id < i < tokenizer.vocab_size for i in ids)


# U+2581 is how SentencePiece itself writes a space.
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == normalize(text)
    assert tokenizer.unk_id not in ids


def test_special_names_in_text_are_only_text(tokenizer):
    text = "<image> </s> <pad> <s>"
    ids = tokenizer.encode(text)
    assert min(ids) > tokenizer.image_id
    assert tokenizer.decode(ids) == text


def test_decode_stops_at_the_end_and_skips_specials(tokenizer):
    cat, dog = tokenizer.encode("con mèo"), tokenizer.encode("con chó")
    assert tokenizer.decode([3, 4, *cat, 0, 0]) == "con mèo"
    assert tokenizer.decode([*cat, 1, *dog]) == "con mèo"
    assert tokenizer.decode([*cat, tokenizer.vocab_size + 5]) == "con mèo"
    assert tokenizer.decode([]) == ""


def test_same_texts_same_bytes(tmp_path, tokenizer):
    for name in ("a", "b"):
        train_sentencepiece(iter(TEXTS), 340).save(tmp_path / f"{name}.model")
    first, second = (tmp_path / f"{n}.model" for n in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "b.model"]
    loaded = SentencePieceTokenizer.load(first)
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_a_copy_in_another_process_agrees(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])
    assert copy.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_vocabulary_sizes_named_in_errors_work(model_type):
    with pytest.raises(UserError, match="vocab_size: 9999 is more") as e:
        train_sentencepiece(TEXTS, 9999, model_type=model_type)
    most = int(re.search(r"at most (\d+)", str(e.value))[1])
    with pytest.raises(UserError, match="vocab_size: 260 is too few") as e:
        train_sentencepiece(TEXTS, 260, model_type=model_type)
    least = int(re.search(r"at least (\d+)", str(e.value))[1])
    assert 260 < least < most < 9999
    for size in (least, most):
        made = train_sentencepiece(TEXTS, size, model_type=model_type)
        assert made.vocab_size == size
        assert made.decode(made.encode(TEXTS[0])) == TEXTS[0]


def test_no_text_and_no_size():
    with pytest.raises(UserError, match="no text"):
        train_sentencepiece(["", "\u200b"], 300)
    with pytest.raises(UserError, match="vocab_size"):
        train_sentencepiece(TEXTS, 0)


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(UserError, match=r"none\.model"):
        SentencePieceTokenizer.load(tmp_path / "none.model")
    for name, data in (("empty.model", b""), ("text.model", "con mèo".encode())):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            SentencePieceTokenizer.load(tmp_path / name)


def test_a_folder_that_is_not_there(tmp_path, tokenizer):
    with pytest.raises(UserError, match="nowhere"):
        tokenizer.save(tmp_path / "nowhere" / "vi.model")


def test_command(tmp_path, capsys):
    prose, captions = tmp_path / "prose.txt", tmp_path / "captions.txt"
    prose.write_text("\ufeff" + "\n".join(TEXTS[:4]), "utf-8")
    captions.write_text("\n".join(TEXTS[4:]), "utf-8")
    out = tmp_path / "vi.model"
    arguments = [f"--input={prose},{captions}", "--vocab_size=330", f"--out={out}"]
    assert main(arguments) == 0
    assert "tokens a syllable" in capsys.readouterr().out
    made = SentencePieceTokenizer.load(out)
    report = json.loads((tmp_path / "vi.report.json").read_text("utf-8"))
    first, second = report[str(prose)], report[str(captions)]
    assert first["syllables"] == sum(len(t.split()) for t in TEXTS[:4])
    assert first["characters"] == sum(map(len, TEXTS[:4]))
    assert second["tokens"] == sum(len(made.encode(t)) for t in TEXTS[4:])
    assert second["unknown_share"] == second["byte_share"] == 0
    assert second["nfd_cost"] > 1.5


def test_fertility_of_rare_characters(tokenizer):
    report = fertility(tokenizer, ["猫", ""])
    # A space before the word, then three bytes.
    assert report["tokens"] == 4 and report["byte_share"] == 0.75
    assert report["characters_per_token"] == 0.25 and report["nfd_cost"] == 1
    assert set(fertility(tokenizer, []).values()) == {0}


@pytest.mark.parametrize(
    "broken, complaint", [(b"\xff\xfe", "bad.txt:2: not UTF-8"), (None, "bad.txt: No such file")]
)
def test_command_on_a_bad_file(tmp_path, broken, complaint):
    path = tmp_path / "bad.txt"
    if broken:
        path.write_bytes("dòng đầu\n".encode() + broken)
    command = [sys.executable, "-m", "vimoe_jax.data.tokenizer"]
    command += [f"--input={path}", "--vocab_size=300", f"--out={tmp_path / 'x.model'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert complaint in done.stderr


def sizes_named(texts, model_type):
    """The least and most pieces that the errors name; both must do."""
    found = []
    for size, word in ((1, "least"), (10**6, "most")):
        with pytest.raises(UserError) as e:
            train_sentencepiece(texts, size, model_type=model_type)
        number = re.fullmatch(rf"vocab_size: {size} is .*; at {word} (\d+)", str(e.value))
        assert number, str(e.value)
        found.append(int(number[1]))
        made = train_sentencepiece(texts, found[-1], model_type=model_type)
        assert made.vocab_size == found[-1]
    return found


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize(
    "texts", [["a"], ["a b"], ["mèo", "mèo mèo"], ["con mèo"] * 50, ["猫"], TEXTS]
)
def test_vocabularies_that_tiny_corpora_support(texts, model_type):
    least, most = sizes_named(texts, model_type)
    assert 261 < least <= most
    for size in (270, 512, 1024, 4000, 8000, 16000, 32000, 64000):
        if least <= size <= most:
            assert train_sentencepiece(texts, size, model_type=model_type).vocab_size == size
        else:
            word = rf"at most {most}$" if size > most else rf"at least {least}$"
            with pytest.raises(UserError, match=word):
                train_sentencepiece(texts, size, model_type=model_type)


@pytest.mark.real_data
def test_vocabularies_that_a_real_corpus_supports(real_data):
    texts = (real_data / "text/ud_vtb_sentences.txt").read_text("utf-8").splitlines()[:1500]
    with pytest.raises(UserError, match=r"vocab_size: 64000 is more .*; at most (\d+)$") as e:
        train_sentencepiece(texts, 64_000)
    most = int(re.search(r"(\d+)$", str(e.value))[1])
    assert 1024 < most < 64_000
    assert train_sentencepiece(texts, most).vocab_size == most
    with pytest.raises(UserError, match=r"vocab_size: 270 is too few .*; at least (\d+)$") as e:
        train_sentencepiece(texts, 270)
    least = int(re.search(r"(\d+)$", str(e.value))[1])
    costs = []
    for size in (least, 1024):
        made = train_sentencepiece(texts, size)
        assert made.vocab_size == size
        costs.append(fertility(made, texts[:200]))
    assert costs[0]["tokens_per_syllable"] > costs[1]["tokens_per_syllable"] > 1
    assert all(c["unknown_share"] == c["byte_share"] == 0 and c["nfd_cost"] > 1.2 for c in costs)
