"""Asks a trained model about a picture.

    python -m vimoe_jax.generate --workdir=runs/moe_small --image=photo.jpg --question="…"

Without a question the model describes the picture; without a picture it answers from text alone,
where it has learned that. Prints the text.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vimoe_jax.base import cli, values
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.datasets.records import QA, BadRecord, Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """The command's options."""

    workdir: Path = cli.option(values.path, "DIR", "the workdir of a run")
    image: tuple[Path, ...] = cli.option(
        values.paths, "FILE[,FILE…]", "the picture; several for one question", default=()
    )
    question: str = cli.option(str, "TEXT", "the question about it", default="")
    step: int | None = cli.option(
        values.whole,
        "N",
        "which checkpoint; if not given, the best one (lowest validation loss)",
        default=None,
    )


def execute(options: Options) -> int:
    """Prints the answer."""
    record = _record(options.image, options.question)

    from vimoe_jax.answer.answerer import Answerer
    from vimoe_jax.run.checkpoint import load_params
    from vimoe_jax.run.workdir import reopen

    # One row is enough, and compiles as fast as can be.
    overrides = [("eval.batch_size", "1"), *options.overrides]
    run = reopen(options.workdir, overrides, one_device=True)
    params = load_params(run, options.step)
    print(*Answerer(run, params).ask(record))
    return 0


def _record(paths: tuple[Path, ...], question: str) -> Record:
    """The pictures and the question, checked before anything slow starts."""
    from vimoe_jax.datasets import images

    asks = bool(question.strip("?？ "))
    if not paths and not asks:
        raise UserError("--image: needed, the picture (or --question, about text alone)")
    pictures = []
    for path in paths:
        try:
            pictures.append(path.read_bytes())
            images.decode(pictures[-1], 8, name=str(path))
        except OSError as e:
            raise UserError(f"--image: {path}: {e.strerror}") from None
        except BadRecord as e:
            raise UserError(f"--image: {e}") from None
    qa = QA("0", "vqa" if asks else "caption", question if asks else "", ("?",))
    return Record(" + ".join(map(str, paths)) or "the question", tuple(pictures), (qa,))


COMMAND = cli.Command("vimoe_jax.generate", Options, execute, __doc__, config=Config)
main = COMMAND.main

if __name__ == "__main__":
    COMMAND.run()
