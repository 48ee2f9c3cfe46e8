"""Our SentencePiece model as a `tokenizer.json`: the same ids, without SentencePiece.

The normaliser of the file is `text.normalize.normalize` written as a sequence of replacements, so
that a user's text needs no cleaning before it.
"""

from __future__ import annotations

import functools
from typing import Any

from vimoe_jax.base.errors import UserError
from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.tokenizers.huggingface import IMAGE
from vimoe_jax.text.tokenizers.sentencepiece import BOS, EOS, PAD, UNK, SentencePieceTokenizer

_SPACE = "▁"
_LEADING = 1 << 16  # spaces that an answer may begin with, as good as all


def convert(tokenizer: SentencePieceTokenizer) -> Any:
    """The `tokenizers.Tokenizer` that gives the same ids.

    Ids differ in two cases only. Where two ways to cut a text are equally probable, SentencePiece
    adds probabilities up in 32 bits and lets rounding decide, the Rust library adds in 64 and takes
    the first. And the names of the special tokens (`<image>`, `</s>`, …) are text to us, but tokens
    there unless `encode_special_tokens` (`split_special_tokens` in transformers) is set.
    Texts of ids are the same unless neighbouring bytes are no UTF-8: then more become U+FFFD.

    Raises:
      UserError: a SentencePiece model of another form than `train_sentencepiece` makes.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre

    pieces, proto = _pieces(tokenizer)
    result = Tokenizer(models.Unigram(pieces, tokenizer.unk_id, proto.trainer_spec.byte_fallback))
    invisible, white = map(_ranges, _characters())
    result.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(f"[{invisible}]"), ""),
            normalizers.NFC(),
            normalizers.Replace(Regex(f"[{white}]+"), " "),
            normalizers.Strip(),
            normalizers.Replace(Regex(f"[{_SPACE} ]+$"), ""),  # as SentencePiece does
            normalizers.Prepend(_SPACE),  # nothing before an empty text
            normalizers.Replace(" ", _SPACE),
        ]
    )
    # In the library's vocabulary, bytes and special tokens are pieces like others, which a text may
    # spell. SentencePiece never reads them so: a cut after their first character keeps it from it.
    names = "|".join(name[1:] for name in ("<0x[0-9A-F]{2}>", PAD, EOS, UNK, BOS, IMAGE))
    result.pre_tokenizer = pre.Split(Regex(f"<(?={names})"), "merged_with_previous")
    result.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", _LEADING, 0),
        ]
    )
    result.add_special_tokens(
        [AddedToken(name, normalized=False) for name in (PAD, EOS, UNK, BOS, IMAGE)]
    )
    return result


def _pieces(tokenizer: SentencePieceTokenizer) -> tuple[list[tuple[str, float]], Any]:
    """Pieces and scores in the order of their ids, and the parsed model."""
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # protobuf makes its classes while it is imported
    proto = messages.ModelProto.FromString(tokenizer.proto)
    trainer, cleaning = proto.trainer_spec, proto.normalizer_spec
    found = {
        "trainer_spec.model_type": (trainer.model_type, trainer.UNIGRAM),
        "trainer_spec.byte_fallback": (trainer.byte_fallback, True),
        "trainer_spec.treat_whitespace_as_suffix": (trainer.treat_whitespace_as_suffix, False),
        "normalizer_spec.name": (cleaning.name, "identity"),
        "normalizer_spec.add_dummy_prefix": (cleaning.add_dummy_prefix, True),
        "normalizer_spec.escape_whitespaces": (cleaning.escape_whitespaces, True),
    }
    for name, (value, needed) in found.items():
        if value != needed:
            raise UserError(f"tokenizer.model: {name}: only {needed!r} is exported, not {value!r}")
    kinds = messages.ModelProto.SentencePiece
    if any(p.type == kinds.USER_DEFINED for p in proto.pieces):
        raise UserError("tokenizer.model: user-defined symbols are not exported")
    return [(p.piece, p.score) for p in proto.pieces], proto


@functools.cache
def _characters() -> tuple[str, str]:
    """What `normalize` removes, and what it takes for white space."""
    invisible, white = "", ""
    # No other planes have such characters; half surrogates cannot reach the library at all.
    for number in (*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE1000)):
        c = chr(number)
        if not c.isprintable() or c == " ":
            meets = normalize(f"a{c}a")
            invisible += c * (meets == "aa")
            white += c * (meets == "a a")
    return invisible, white


def invisible_characters() -> str:
    """All that `vimoe_jax.text.normalize.normalize` removes, ascending."""
    return _characters()[0]


def _ranges(characters: str) -> str:
    """`\\x{9}-\\x{D}\\x{20}` of ascending characters."""
    text, first = "", None
    numbers = [*map(ord, characters)]
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        first = number if first is None else first
        if following != number + 1:
            text += f"\\x{{{first:X}}}" + (f"-\\x{{{number:X}}}" if number > first else "")
            first = None
    return text
