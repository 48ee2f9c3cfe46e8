"""Asks a trained model about a picture.

    python -m vimoe_jax.generate --workdir=DIR --image=FILE [--question="…"] [--step=N]

Without a question the model describes the picture. Prints the text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vimoe_jax.base import cli
from vimoe_jax.base.errors import UserError, exit_on_user_error
from vimoe_jax.datasets.records import QA, BadRecord, Record


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    if not argv or "--help" in argv:
        print(__doc__)
        return 0
    options, overrides = cli.parse(argv, ("workdir", "image", "question", "step"))
    for name in ("workdir", "image"):
        if name not in options:
            raise UserError(f"--{name}: needed")
    record = _record(options["image"], options.get("question", ""))

    from vimoe_jax.answer.answerer import Answerer
    from vimoe_jax.run.checkpoint import load_params
    from vimoe_jax.run.workdir import reopen

    # One row is enough, and compiles as fast as can be.
    overrides = [("eval.batch_size", "1"), *overrides]
    run = reopen(Path(options["workdir"]), overrides, one_device=True)
    step = options.get("step", "")
    if step and not step.isdigit():
        raise UserError(f"--step: must be a number, not {step!r}")
    params = load_params(run, int(step) if step else None)
    print(*Answerer(run, params).ask(record))
    return 0


def _record(image: str, question: str) -> Record:
    """The picture and the question, checked before anything slow starts."""
    from vimoe_jax.datasets import images

    path = Path(image)
    try:
        data = path.read_bytes()
        images.decode(data, 8, name=image)
    except OSError as e:
        raise UserError(f"--image: {image}: {e.strerror}") from None
    except BadRecord as e:
        raise UserError(f"--image: {e}") from None
    qa = (
        QA("0", "vqa", question, ("?",)) if question.strip("? ") else QA("0", "caption", "", ("?",))
    )
    return Record(image, (data,), (qa,))


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
