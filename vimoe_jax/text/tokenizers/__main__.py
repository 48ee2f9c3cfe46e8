"""Trains a SentencePiece model on Vietnamese text, and reports what a text costs.

python -m vimoe_jax.data.tokenizer --input=FILE[,FILE…] --vocab_size=N --out=FILE
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from vimoe_jax.base import cli
from vimoe_jax.base.errors import UserError, exit_on_user_error
from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.tokenizers import Tokenizer
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece


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
        unknown += sum(i == tokenizer.unk_id for i in ids)
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
