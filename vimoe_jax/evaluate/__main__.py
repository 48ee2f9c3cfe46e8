"""Scores a trained model on a split.

    python -m vimoe_jax.evaluate --workdir=runs/moe_small --split=test

Without --dataset, every dataset of the run that has the split is scored. Leaves DIR/eval/SPLIT/,
or DIR/eval/NAME_SPLIT/ where the run has several datasets or another one, and prints the metrics as
one line of JSON, the last on stdout, names beginning with NAME_SPLIT/ if there are several;
`scoring` says how texts were compared. Other experts per token or capacity than in training, for
example: --config.model.decoder.moe.eval_experts_per_token=4. Several processes share the questions.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vimoe_jax.base import cli, values
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.parallel import distributed

if TYPE_CHECKING:
    from vimoe_jax.config.data import Data
    from vimoe_jax.data.sources import EvalSplit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(distributed.Options):
    """The command's options."""

    workdir: Path = cli.option(values.path, "DIR", "the workdir of a run")
    split: str | None = cli.option(
        str,
        "NAME",
        "which one; if not given, the first of the run's data.test_splits",
        default=None,
    )
    step: int | None = cli.option(
        values.whole,
        "N",
        "which checkpoint; if not given, the best one (lowest validation loss)",
        default=None,
    )
    dataset: str | None = cli.option(
        str, "NAME", "one dataset to score, which need not have been trained on", default=None
    )
    source: str | None = cli.option(str, "FILE", "another JSONL file", default=None)


def execute(options: Options) -> int:
    """Scores the splits and prints the metrics."""
    distributed.start(options)

    from vimoe_jax.evaluate.run import Evaluator, scoring
    from vimoe_jax.run.checkpoint import load_params
    from vimoe_jax.run.workdir import reopen

    run = reopen(options.workdir, options.overrides)
    data, splits = _asked(run.config.data, options)
    params = load_params(run, options.step)
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


def _asked(data: Data, options: Options) -> tuple[Data, list[EvalSplit]]:
    """Where the splits lie that the options name, and which they are."""
    from vimoe_jax.config import mixture
    from vimoe_jax.data.sources import eval_splits

    dataset, split = options.dataset or "", options.split
    if options.source is not None:
        data = dataclasses.replace(data, source=options.source)
        dataset = dataset or "jsonl"
    if split is None:
        split = data.test_splits[0] if data.test_splits else "test"
    if not dataset:
        return data, eval_splits(data, split)
    try:
        (component,) = mixture.parse(dataset)
    except ValueError as e:
        reason = str(e).removeprefix("dataset: ")
        raise UserError(f"--dataset: one dataset to score, please: {reason}") from None
    if component.name == "jsonl" and not data.source:
        raise UserError("--source: dataset 'jsonl' needs the path of a JSONL file")
    if options.split is None:
        split = split.rpartition("/")[2]  # the configured one, of whichever dataset
    return data, eval_splits(data, f"{dataset}/{split}")


COMMAND = cli.Command(
    "vimoe_jax.evaluate", Options, execute, __doc__, config=Config, ending=distributed.exit_as_one
)
main = COMMAND.main

if __name__ == "__main__":
    COMMAND.run()
