"""Trains a SentencePiece model on Vietnamese text, and counts the tokens that texts need.

    python -m vimoe_jax.data.tokenizer --input=a.txt,b.txt --vocab_size=8000 --out=vi.model

The report lies beside the model, as NAME.report.json.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from vimoe_jax.base import cli, files, values
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.schema import at_least
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


def _read_lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    try:
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """The command's options."""

    input: tuple[Path, ...] = cli.option(
        values.paths, "FILE[,FILE…]", "UTF-8 texts, one sentence or paragraph per line"
    )
    vocab_size: int = cli.option(values.whole, "N", "how many pieces the model has", at_least(1))
    out: Path = cli.option(values.path, "FILE", "where the model is written")


def execute(options: Options) -> int:
    """Trains, saves, and reports fertility on each input."""
    read = {path: _read_lines(path) for path in options.input}
    texts = [line for lines in read.values() for line in lines]
    tokenizer = train_sentencepiece(texts, options.vocab_size)
    out = options.out
    report_file = out.with_name(f"{out.stem}.report.json")
    if not out.name or out == report_file:
        raise UserError(f"--out: not a name for a model: {str(out)!r}")
    tokenizer.save(out)
    report = {str(path): fertility(tokenizer, lines) for path, lines in read.items()}
    for path, numbers in report.items():
        print(
            f"{numbers['tokens_per_syllable']:.3f} tokens a syllable, "
            f"{numbers['characters_per_token']:.2f} characters a token · {path}"
        )
    files.write_json(report_file, report)
    print(f"{tokenizer.vocab_size} pieces -> {out}, {report_file}")
    return 0


COMMAND = cli.Command("vimoe_jax.data.tokenizer", Options, execute, __doc__)
main = COMMAND.main

if __name__ == "__main__":
    COMMAND.run()
