"""Tokenizers behind one interface."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from vimoe_jax.base.errors import UserError
from vimoe_jax.text.tokenizers import huggingface, sentencepiece


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back; ids are in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def pad_id(self) -> int:
        """Fills rows; may be the end token's."""
        ...

    @property
    def eos_id(self) -> int:
        """Ends a text."""
        ...

    @property
    def unk_id(self) -> int | None:
        """Of what cannot be written; None where everything can."""
        ...

    @property
    def bos_id(self) -> int | None:
        """Begins a text; None where nothing does."""
        ...

    @property
    def image_id(self) -> int:
        """Stands for a picture."""
        ...

    @property
    def byte_ids(self) -> frozenset[int]:
        """Of the pieces that rare characters fall back to, byte by byte; may be empty."""
        ...

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
FILES = (huggingface.FILE, sentencepiece.FILE)


def load(path: str | Path) -> Tokenizer:
    """Opens a tokenizer of either format, by the content of the file.

    Args:
      path: a SentencePiece model, a `tokenizer.json`, or a folder with one of `FILES`.

    Raises:
      UserError: no such file, or neither format.
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
    return (huggingface.HFTokenizer if is_json else sentencepiece.SentencePieceTokenizer).load(path)


def saved_in(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).exists() for name in FILES)
