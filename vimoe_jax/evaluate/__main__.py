"""Scores a trained model on a split.

    python -m vimoe_jax.evaluate --workdir=DIR [--split=test] [--step=N] [--dataset=NAME]
        [--source=FILE] [--config.FIELD=VALUE …]

The best checkpoint (lowest validation loss) is used unless --step names another. --dataset may name
one that was not trained on; without it, every dataset of the run that has the split is scored.
--source gives another JSONL file. Leaves DIR/eval/SPLIT/, or DIR/eval/NAME_SPLIT/ where the run has
several datasets or another one, and prints the metrics as one line of JSON, the last on stdout,
names beginning with NAME_SPLIT/ if there are several; `scoring` says how texts were compared.
Other experts per token or capacity than in training, for example:
--config.model.decoder.moe.eval_experts_per_token=4
Several processes share the questions; how they find each other is main's: --coordinator,
--num_processes, --process_id, or the platform (docs/launch.md).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vimoe_jax.base import cli
from vimoe_jax.base.errors import UserError
from vimoe_jax.parallel import distributed

if TYPE_CHECKING:
    from vimoe_jax.config.data import Data
    from vimoe_jax.data.sources import EvalSplit


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    if not argv or "--help" in argv:
        print(__doc__)
        return 0
    names = ("workdir", "split", "step", "dataset", "source", *distributed.OPTIONS)
    options, overrides = cli.parse(argv, names)
    if "workdir" not in options:
        raise UserError("--workdir: needed, the workdir of a run")
    step = options.get("step", "")
    if step and not step.isdigit():
        raise UserError(f"--step: must be a number, not {step!r}")
    distributed.start(options)

    from vimoe_jax.evaluate.run import Evaluator, scoring
    from vimoe_jax.run.checkpoint import load_params
    from vimoe_jax.run.workdir import reopen

    run = reopen(Path(options["workdir"]), overrides)
    data, splits = _asked(run.config.data, options)
    params = load_params(run, int(step) if step else None)
    labels = {s.name: scoring(run.config.eval, s) for s in splits}
    evaluator = Evaluator(run, params)
    scores = {s.name: evaluator.evaluate(s, data=data) for s in splits}
    distributed.wait("the end")
    if not distributed.is_lead():
        return 0
    scores = {name: {**own, "scoring": labels[name]} for name, own in scores.items()}
    if len(splits) > 1:
        merged = {f"{name}/{n}": v for name, own in scores.items() for n, v in own.items()}
    else:
        merged = scores[splits[0].name]
    print(json.dumps(merged))
    return 0


def _asked(data: Data, options: dict[str, str]) -> tuple[Data, list[EvalSplit]]:
    """Where the splits lie that the options name, and which they are."""
    from vimoe_jax.config import mixture
    from vimoe_jax.data.sources import eval_splits

    data = dataclasses.replace(data, source=options.get("source", data.source))
    dataset = options.get("dataset", "jsonl" if "source" in options else "")
    split = options.get("split", data.test_splits[0] if data.test_splits else "test")
    if not dataset:
        return data, eval_splits(data, split)
    try:
        (component,) = mixture.parse(dataset)
    except ValueError as e:
        reason = str(e).removeprefix("dataset: ")
        raise UserError(f"--dataset: one dataset to score, please: {reason}") from None
    if component.name == "jsonl" and not data.source:
        raise UserError("--source: dataset 'jsonl' needs the path of a JSONL file")
    if "split" not in options:
        split = split.rpartition("/")[2]  # the configured one, of whichever dataset
    return data, eval_splits(data, f"{dataset}/{split}")


if __name__ == "__main__":
    with distributed.exit_as_one():
        sys.exit(main(sys.argv[1:]))
