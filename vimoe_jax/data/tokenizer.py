"""Tokenizers behind one interface, and the command that trains a SentencePiece model.

python -m vimoe_jax.data.tokenizer --input=FILE[,FILE…] --vocab_size=N --out=FILE
"""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from vimoe_jax import cli
from vimoe_jax.data import hf_tokenizer
from vimoe_jax.data.text import normalize
from vimoe_jax.errors import UserError, exit_on_user_error

PAD, EOS, UNK, BOS, IMAGE = "<pad>", "</s>", "<unk>", "<s>", hf_tokenizer.IMAGE


class Tokenizer(Protocol):
    """Text to ids and back; ids are in [0, vocab_size).

    Attributes:
      vocab_size: one more than the largest id.
      pad_id: fills rows; may be the end token's.
      eos_id: ends a text.
      unk_id: of what cannot be written; None where everything can.
      bos_id: begins a text; None where nothing does.
      image_id: stands for a picture.
      byte_ids: of the pieces that rare characters fall back to, byte by byte; may be empty.
    """

    vocab_size: int
    pad_id: int
    eos_id: int
    unk_id: int | None
    bos_id: int | None
    image_id: int
    byte_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Ids of the normalised text, nothing added."""
        ...

    def encode_raw(self, text: str) -> list[int]:
        """Ids of the text as it stands, nothing added."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first end token, special ids left out."""
        ...

    def save(self, path: str | Path) -> None:
        """Writes what `load` reads; into a folder under its standard name."""
        ...


# Standard names in a folder; where both lie, as with some published models, the first is meant.
FILES = (hf_tokenizer.FILE, "tokenizer.model")


def load(path: str | Path) -> Tokenizer:
    """Opens a tokenizer of either kind, by what the file holds.

    Args:
      path: a SentencePiece model, a `tokenizer.json`, or a folder with one of `FILES`.

    Raises:
      UserError: no such file, or neither kind.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).exists()]
        if not found:
            raise UserError(f"{path}: holds neither {FILES[0]} nor {FILES[1]}")
        path = found[0]
    try:
        with open(path, "rb") as f:
            is_json = f.read(64).lstrip().startswith(b"{")
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    return (hf_tokenizer.HFTokenizer if is_json else SentencePieceTokenizer).load(path)


def saved_in(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).exists() for name in FILES)


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
        path = Path(path) / FILES[1] if Path(path).is_dir() else Path(path)
        temporary = Path(f"{path}.tmp")
        try:
            temporary.write_bytes(self._proto)
            temporary.replace(path)
        except OSError as e:
            raise UserError(f"{path}: {e.strerror}") from None

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


def fertility(tokenizer: Tokenizer, lines: Iterable[str]) -> dict[str, float]:
    """What a text costs.

    Returns:
      `syllables` (Vietnamese writes a space between them), `characters`, `tokens`,
      `tokens_per_syllable`, `characters_per_token`; `unknown_share` and `byte_share`, of the
      tokens that are unknown or a single byte of a rare character; `nfd_cost`, how many times the
      tokens if the text were decomposed and not normalised first.
    """
    syllables = characters = tokens = unknown = single = decomposed = 0
    for line in map(normalize, lines):
        ids = tokenizer.encode_raw(line)
        syllables += len(line.split())
        characters += len(line)
        tokens += len(ids)
        unknown += ids.count(tokenizer.unk_id)
        single += sum(i in tokenizer.byte_ids for i in ids)
        decomposed += len(tokenizer.encode_raw(unicodedata.normalize("NFD", line)))

    def ratio(a: int, b: int) -> float:
        return round(a / max(b, 1), 4)

    return {
        "syllables": syllables,
        "characters": characters,
        "tokens": tokens,
        "tokens_per_syllable": ratio(tokens, syllables),
        "characters_per_token": ratio(characters, tokens),
        "unknown_share": ratio(unknown, tokens),
        "byte_share": ratio(single, tokens),
        "nfd_cost": ratio(decomposed, tokens),
    }


def _read_lines(path: str) -> list[str]:
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    try:
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8") from None


def main(argv: Sequence[str]) -> int:
    """Trains, saves, and reports fertility on each input."""
    if not argv or "--help" in argv:
        print(__doc__)
        return 0
    options, _ = cli.parse(argv, ("input", "vocab_size", "out"))
    for name in ("input", "vocab_size", "out"):
        if name not in options:
            raise UserError(f"--{name}: needed")
    if not options["vocab_size"].isdecimal():
        raise UserError(f"--vocab_size: must be a number, not {options['vocab_size']!r}")
    files = {path: _read_lines(path) for path in options["input"].split(",")}
    texts = [line for lines in files.values() for line in lines]
    tokenizer = train_sentencepiece(texts, int(options["vocab_size"]))
    out = Path(options["out"])
    report_file = out.with_name(f"{out.stem}.report.json")
    if not out.name or out == report_file:
        raise UserError(f"--out: not a name for a model: {options['out']!r}")
    tokenizer.save(out)
    report = {path: fertility(tokenizer, lines) for path, lines in files.items()}
    for path, numbers in report.items():
        print(
            f"{numbers['tokens_per_syllable']:.3f} tokens a syllable, "
            f"{numbers['characters_per_token']:.2f} characters a token · {path}"
        )
    report_file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"{tokenizer.vocab_size} pieces -> {out}, {report_file}")
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
