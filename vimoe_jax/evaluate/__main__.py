"""Scores a trained model on a split.

    python -m vimoe_jax.evaluate --workdir=DIR [--split=test] [--step=N] [--dataset=NAME]
        [--source=FILE] [--config.FIELD=VALUE …]

The best checkpoint (lowest validation loss) is used unless --step names another. Leaves
DIR/eval/SPLIT/ and prints the metrics as one line of JSON, the last on stdout. Other experts per
token or capacity than in training, for example:
--config.model.decoder.moe.eval_experts_per_token=4
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vimoe_jax import cli
from vimoe_jax.errors import UserError, exit_on_user_error


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    if not argv or "--help" in argv:
        print(__doc__)
        return 0
    options, overrides = cli.parse(argv, ("workdir", "split", "step", "dataset", "source"))
    if "workdir" not in options:
        raise UserError("--workdir: needed, the workdir of a run")
    for name in ("dataset", "source"):
        if name in options:
            overrides.append((f"data.{name}", options[name]))
    step = options.get("step", "")
    if step and not step.isdigit():
        raise UserError(f"--step: must be a number, not {step!r}")

    from vimoe_jax.evaluate.run import evaluate_split
    from vimoe_jax.train import setup
    from vimoe_jax.train.checkpoint import load_params

    run = setup.reopen(Path(options["workdir"]), overrides)
    params = load_params(run, int(step) if step else None)
    split = options.get(
        "split", run.config.data.test_splits[0] if run.config.data.test_splits else ""
    )
    print(json.dumps(evaluate_split(run, params, split)))
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
