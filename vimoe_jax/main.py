"""Trains the model that a config file describes, then answers the test splits and reports.

    python -m vimoe_jax.main --config=configs/moe_small.py --config.train.steps=100
    python -m vimoe_jax.main --config=configs/moe_10b.py --plan --topology=v5p:8x8x4

The report is WORKDIR/report.html. Run again with the same workdir to resume; SIGTERM or Ctrl-C
saves and stops.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

from vimoe_jax.base import cli, values
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.schema import between
from vimoe_jax.config import Config, describe, load
from vimoe_jax.parallel import distributed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(distributed.Options):
    """The command's options."""

    config: Path = cli.option(
        values.path,
        "FILE",
        "a Python file with get_config(), for example --config=configs/moe_small.py",
    )
    workdir: Path | None = cli.option(
        values.path,
        "DIR",
        "where everything is written; runs/NAME-OF-THE-CONFIG if not given",
        default=None,
    )
    stopped_code: int = cli.option(
        values.whole,
        "N",
        "exit code after a signal, for whoever starts it again",
        between(0, 255),
        default=0,
    )
    plan: bool = cli.flag("only says what the run would need of memory, time and network")
    topology: str = cli.option(
        str,
        "NAME",
        "with --plan: the devices to plan for, v5p:8x8x4 or h100:8; if not given, this machine's",
        default="",
    )
    out: Path | None = cli.option(
        values.path, "FILE.json", "with --plan: where it is written as JSON too", default=None
    )


def execute(options: Options) -> int:
    """Trains, evaluates and reports, or plans."""
    config = load(options.config, options.overrides)
    if options.plan:
        from vimoe_jax import plan

        return plan.main(config, options.topology, str(options.out or ""))
    if options.topology:
        raise UserError("--topology: only with --plan; a run takes the devices that are there")
    if options.out:
        raise UserError("--out: only with --plan; a run writes into its --workdir")
    workdir = options.workdir or Path("runs") / options.config.stem
    command = f"python -m vimoe_jax.main {shlex.join(options.argv)}"
    return 0 if _run(config, workdir, command, options) else options.stopped_code


def _run(config, workdir: Path, command: str, options: Options) -> bool:
    """Trains and evaluates; False if a signal came meanwhile."""
    from vimoe_jax.train.guard import Interrupt

    with Interrupt() as interrupt:
        distributed.start(options)
        from vimoe_jax.run.lock import only_run

        with only_run(workdir):
            return _train(config, workdir, command, interrupt)


def _train(config, workdir: Path, command: str, interrupt) -> bool:
    import jax

    from vimoe_jax.base.files import write_text
    from vimoe_jax.run import overview
    from vimoe_jax.run.workdir import device_name, start_run
    from vimoe_jax.scores import captions
    from vimoe_jax.train.loop import Trainer

    if config.eval.at_end:  # a missing segmenter is found now, not after training
        captions.describe(config.eval.tokenization)
    jax.config.update("jax_debug_nans", config.train.debug_nans)
    run = start_run(config, workdir)
    sizes = run.blueprint.num_parameters(), run.blueprint.num_active_parameters()
    _say(f"{workdir}: {sizes[0]:,} parameters, {sizes[1]:,} active, on {device_name()}")
    if distributed.is_lead() and (table := overview.parameter_table(run.blueprint)):
        write_text(workdir / overview.FILE, table + "\n")
        _say(table)
    trainer = Trainer(run, interrupt)
    finished = trainer.train() and _evaluate(run, trainer, interrupt)
    trainer.checkpoints.close()
    distributed.wait("the end")
    if not finished:
        _say(f"stopped by {interrupt}; to resume: {command}")
    return finished


def _say(text: str) -> None:
    """A line on stderr, of one process."""
    if distributed.is_lead():
        print(text, file=sys.stderr, flush=True)


def _evaluate(run, trainer, interrupt) -> bool:
    """Scores the test splits and writes the report; False if a signal came meanwhile."""
    from vimoe_jax.answer.answerer import Interrupted
    from vimoe_jax.base.files import write_json
    from vimoe_jax.data import sources
    from vimoe_jax.evaluate.run import Evaluator
    from vimoe_jax.report import page
    from vimoe_jax.run.log import MetricWriter
    from vimoe_jax.run.workdir import device_name

    c, step = run.config, int(trainer.state.step)
    summary = {
        "parameters": run.blueprint.num_parameters(),
        "active_parameters": run.blueprint.num_active_parameters(),
        "steps": step,
        "train_seconds": round(trainer.position["seconds"], 1),
        "device": device_name(),
    }
    if distributed.is_lead():
        write_json(run.workdir / "summary.json", summary)
    if c.eval.at_end:
        metrics = {}
        evaluator = Evaluator(run, trainer.state.all_params())
        try:
            main = (c.data.test_splits[0] or "all") if c.data.test_splits else ""
            for entry in c.data.test_splits:
                for split in sources.eval_splits(c.data, entry, quiet=True):
                    named = f"eval_{split.name.removeprefix('test_')}"
                    prefix = "eval" if split.name == main else named
                    scores = evaluator.evaluate(split, stop=interrupt.agreed)
                    metrics |= {f"{prefix}/{name}": value for name, value in scores.items()}
        except Interrupted:
            return False
        writer = MetricWriter(run.workdir, step)
        writer.write(step, metrics)
        writer.close()
        _print_scores(metrics)
    if distributed.is_lead():
        print(f"report: {page.write_report(run.workdir)}")
    return True


def _print_scores(metrics: dict[str, float]) -> None:
    shown = ("vqa/accuracy", "vqa/floor_majority", "vqa/floor_per_type", "caption/cider")
    for name, value in metrics.items():
        if name.split("/", 1)[1] in shown:
            print(f"{name} = {value:.4f}")


def _fields() -> str:
    return "\n".join(["Fields of the configuration, with their defaults:", "", *describe()])


COMMAND = cli.Command(
    "vimoe_jax.main", Options, execute, __doc__, config=Config, more=_fields,
    ending=distributed.exit_as_one, bare_code=2,
)  # fmt: skip
main = COMMAND.main

if __name__ == "__main__":
    COMMAND.run()
