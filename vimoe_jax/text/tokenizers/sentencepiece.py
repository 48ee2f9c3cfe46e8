"""SentencePiece models: trained on normalised texts, read, written."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path

from vimoe_jax.base import files
from vimoe_jax.base.errors import UserError
from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.tokenizers.huggingface import IMAGE

FILE = "tokenizer.model"  # its name in a folder

PAD, EOS, UNK, BOS = "<pad>", "</s>", "<unk>", "<s>"


class SentencePieceTokenizer:
    """A SentencePiece model: pad is 0, end 1, unknown 2, begin 3, image 4."""

    def __init__(self, proto: bytes):
        import sentencepiece

        self._proto = proto
        self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self.vocab_size = self._model.get_piece_size()
        self.pad_id, self.eos_id, self.unk_id, self.bos_id = 0, 1, 2, 3
        self.image_id = self._model.piece_to_id(IMAGE)
        found = [self._model.pad_id(), self._model.eos_id(), self._model.unk_id()]
        if found != [0, 1, 2] or self.image_id == self.unk_id:
            raise ValueError(f"needs ids 0, 1, 2 for {PAD}, {EOS}, {UNK} and a piece {IMAGE}")
        self.byte_ids = frozenset(filter(self._model.is_byte, range(self.vocab_size)))

    def __reduce__(self):
        return SentencePieceTokenizer, (self._proto,)

    @property
    def proto(self) -> bytes:
        """The model file's bytes."""
        return self._proto

    @classmethod
    def load(cls, path: str | Path) -> SentencePieceTokenizer:
        """Reads a `.model` file.

        Raises:
          UserError: no such file, or not such a model.
        """
        try:
            return cls(Path(path).read_bytes())
        except OSError as e:
            raise UserError(f"{path}: {e.strerror}") from None
        except (RuntimeError, ValueError) as e:
            raise UserError(f"{path}: not a tokenizer of this package: {e}") from None

    def save(self, path: str | Path) -> None:
        """Writes the `.model` file, whole or not at all.

        Args:
          path: the file, or a folder for `tokenizer.model`.

        Raises:
          UserError: the file cannot be written.
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        files.write_bytes(path, self._proto)

    def encode(self, text: str) -> list[int]:
        """Ids of the normalised text, nothing added."""
        return self.encode_raw(normalize(text))

    def encode_raw(self, text: str) -> list[int]:
        """Ids of the text as it stands, nothing added."""
        return self._model.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first end token, special ids left out."""
        kept = []
        for i in ids:
            if i == self.eos_id:
                break
            # A model's vocabulary may be rounded up beyond the tokenizer's.
            if self.image_id < i < self.vocab_size:
                kept.append(int(i))
        return self._model.decode(kept)


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, *, model_type: str = "unigram"
) -> SentencePieceTokenizer:
    """Trains a tokenizer; the same texts give the same bytes.

    Every character can be written: rare ones fall back to their UTF-8 bytes, each a piece.

    Raises:
      UserError: the vocabulary is larger than the texts support, or too small for the 256 bytes and
        the characters; the message says what would do.
    """
    import sentencepiece

    sentences = [n for n in map(normalize, texts) if n]
    if not sentences:
        raise UserError("tokenizer: no text to train on")
    if vocab_size < 1:
        raise UserError(f"vocab_size: must be positive, not {vocab_size}")
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=out,
            vocab_size=max(vocab_size, 5),  # with fewer, its complaint names no number
            model_type=model_type,
            normalization_rule_name="identity",  # `normalize` did it
            character_coverage=1.0,
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            pad_piece=PAD,
            eos_piece=EOS,
            unk_piece=UNK,
            bos_piece=BOS,
            control_symbols=[IMAGE],
            num_threads=1,  # the order of sums decides ties
            minloglevel=2,
            max_sentence_length=1 << 16,
        )
    except RuntimeError as e:
        raise UserError(f"vocab_size: {_explain(str(e), vocab_size)}") from None
    return SentencePieceTokenizer(out.getvalue())


def _explain(error: str, vocab_size: int) -> str:
    """SentencePiece's own words, reduced to the number that helps."""
    if most := re.search(r"value <= (\d+)", error):
        return f"{vocab_size} is more than these texts support; at most {most[1]}"
    if least := re.search(r"required_chars.*?(\d+) vs (\d+)|smaller than.*?(\d+) vs (\d+)", error):
        numbers = [int(n) for n in least.groups() if n]
        return f"{vocab_size} is too few for the characters and bytes; at least {max(numbers)}"
    return f"{vocab_size} does not fit these texts: {' '.join(error.split())[:200]}"
