"""Hugging Face's `tokenizer.json` (byte-level BPE and others), through their Rust library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import json_text, read_object, replacing
from vimoe_jax.text.normalize import normalize

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
ROLES = ("eos", "pad", "unk", "bos", "image")
IMAGE = "<image>"


class HFTokenizer:
    """A `tokenizer.json` with the tokens that have a role.

    Attributes:
      vocab_size: one more than the largest id.
      pad_id: the end token's where there is no padding.
      eos_id: of the end token.
      unk_id: None where nothing is unknown.
      bos_id: None where a text begins without a token.
      image_id: of `<image>`, added at the end where the file has none.
      byte_ids: of pieces `<0x00>` … `<0xFF>` that unknown characters fall back to.
    """

    def __init__(self, definition: str, roles: Mapping[str, str | None]):
        """Takes the file's text and the token of each role.

        Raises:
          ValueError: not a tokenizer, no end token, or a token that is not in the vocabulary.
        """
        from tokenizers import Tokenizer

        self._arguments = definition, dict(roles)
        try:
            self._model = Tokenizer.from_str(definition)
        except Exception as e:  # the Rust side raises nothing narrower
            raise ValueError(f"not a {FILE}: {e}") from None
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True  # their names in a text are only text
        self._roles = {name: roles.get(name) for name in ROLES}
        if not self._roles["eos"]:
            raise ValueError(f"no end token is named (eos_token in {CONFIG})")
        self._roles["pad"] = self._roles["pad"] or self._roles["eos"]
        self._roles["image"] = self._roles["image"] or IMAGE
        self._model.add_special_tokens([self._roles["image"]])
        ids = {
            name: self._id(name, token) for name, token in self._roles.items() if token is not None
        }
        self.pad_id, self.eos_id, self.image_id = ids["pad"], ids["eos"], ids["image"]
        self.unk_id, self.bos_id = ids.get("unk"), ids.get("bos")
        vocabulary = self._model.get_vocab()
        # The library numbers what it adds by how many there are, whatever their ids.
        if len(set(vocabulary.values())) < len(vocabulary):
            raise ValueError(f"its ids have gaps, so {self._roles['image']!r} cannot be added")
        self.vocab_size = max(vocabulary.values()) + 1
        self.byte_ids = frozenset(vocabulary.get(f"<0x{b:02X}>", -1) for b in range(256)) - {-1}
        added = self._model.get_added_tokens_decoder()
        self._dropped = {i for i, token in added.items() if token.special} | set(ids.values())

    def _id(self, name: str, token: str) -> int:
        number = self._model.token_to_id(token)
        if number is None:
            raise ValueError(f"{name}_token {token!r} is not in its vocabulary")
        return number

    def __reduce__(self):
        return HFTokenizer, self._arguments

    @classmethod
    def load(cls, path: str | Path, **roles: str) -> HFTokenizer:
        """Reads a `tokenizer.json`, or the folder of one.

        Tokens with a role are those of the arguments (`pad`, `eos`, `unk`, `bos`, `image`), else of
        `tokenizer_config.json`, `special_tokens_map.json` or `generation_config.json` beside it.

        Raises:
          UserError: no such file, a broken one, or tokens that do not fit.
        """
        if unknown := roles.keys() - set(ROLES):
            raise TypeError(f"no such role: {', '.join(sorted(unknown))}")
        path = Path(path)
        file = path / FILE if path.is_dir() else path
        try:
            definition = file.read_text(encoding="utf-8")
        except OSError as e:
            raise UserError(f"{file}: {e.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"{file}: not a {FILE}: not UTF-8") from None
        try:
            return cls(definition, {**_roles(file, definition), **roles})
        except ValueError as e:
            raise UserError(f"{file}: {' '.join(str(e).split())}") from None

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` into a folder, each whole.

        Args:
          path: the folder, or the path of its `tokenizer.json`.

        Raises:
          UserError: another file's name, or a file cannot be written.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        if not path.is_dir() and path.name != FILE:
            raise UserError(f"{path}: must be a folder, or be called {FILE}")
        config = {f"{name}_token": token for name, token in self._roles.items()}
        # The inner one takes its place first: with the tokenizer, everything is there.
        with replacing(folder / FILE) as definition, replacing(folder / CONFIG) as beside:
            definition.write(self._model.to_str())
            definition.flush()  # a full disk shows before either is in its place
            beside.write(json_text(config))

    def encode(self, text: str) -> list[int]:
        """Ids of the normalised text, nothing added."""
        return self.encode_raw(normalize(text))

    def encode_raw(self, text: str) -> list[int]:
        """Ids of the text as it stands, nothing added."""
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first end token, special ids left out."""
        kept = []
        for i in map(int, ids):
            if i == self.eos_id:
                break
            # A model's vocabulary may be rounded up beyond the tokenizer's.
            if i not in self._dropped and 0 <= i < self.vocab_size:
                kept.append(i)
        return self._model.decode(kept, skip_special_tokens=False)


def _roles(file: Path, definition: str) -> dict[str, str | None]:
    """The token of each role, by the files beside a `tokenizer.json`.

    A role that a file sets to null is settled: Qwen's `generation_config.json` gives a token to
    begin with that its `tokenizer_config.json` denies.
    """
    roles: dict[str, str | None] = {}
    for name in (CONFIG, "special_tokens_map.json"):
        values = read_object(file.with_name(name), optional=True)
        for role in ROLES:
            key = f"{role}_token"
            if key in values and role not in roles:
                token = values[key]
                token = token.get("content") if isinstance(token, dict) else token
                if not (token is None or isinstance(token, str)):
                    raise UserError(f"{file.with_name(name)}: {key}: must be a token's text")
                roles[role] = token
    generation = file.with_name("generation_config.json")
    values = read_object(generation, optional=True)
    for role in ROLES:
        number = values.get(f"{role}_token_id")
        if role not in roles and number is not None:
            roles[role] = _token(definition, number, f"{generation}: {role}_token_id")
    return roles


def _token(definition: str, number: Any, where: str) -> str:
    """The token of an id, or of the first of several."""
    from tokenizers import Tokenizer

    number = number[0] if isinstance(number, list) and number else number
    if type(number) is not int or number < 0:
        raise UserError(f"{where}: must be an id, not {number!r}")
    try:
        token = Tokenizer.from_str(definition).id_to_token(number)
    except Exception as e:  # the Rust side raises nothing narrower
        raise ValueError(f"not a {FILE}: {e}") from None
    if token is None:
        raise UserError(f"{where}: {number} is not in the vocabulary")
    return token
