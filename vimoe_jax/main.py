"""The main job: trains from a config, resumes, evaluates, reports.

python -m vimoe_jax.main --config=configs/moe_small.py [--workdir=DIR] [--config.FIELD=VALUE …]

With --coordinator, --num_processes and --process_id, or where the platform says as much, this is
one of several processes of one run (docs/launch.md).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vimoe_jax.base import cli
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import describe, load
from vimoe_jax.parallel import distributed

_HELP = """\
usage: python -m vimoe_jax.main --config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]
       python -m vimoe_jax.main --config=FILE --plan [--topology=NAME] [--out=FILE.json]

Trains the model that FILE describes, then answers the test splits and writes DIR/report.html.
Run again with the same DIR to resume; SIGTERM or Ctrl-C saves and stops.

  --config=FILE           a Python file with get_config(), such as configs/moe_small.py
  --workdir=DIR           where everything is written; runs/NAME-OF-THE-CONFIG if not given
  --config.FIELD=VALUE    overrides a field, for example --config.train.steps=100
  --stopped_code=N        exit code after a signal, 0 if not given: for whoever starts it again
  --plan                  only says what the run would need of memory, time and network
  --topology=NAME         the devices to plan for, v5p:8x8x4 or h100:8; if not given, this machine's
  --out=FILE.json         where the plan is written as JSON too

Several processes as one run (docs/launch.md); Slurm, Cloud TPU and GKE need none of these:

  --coordinator=HOST:PORT where process 0 listens; or the variable JAX_COORDINATOR_ADDRESS
  --num_processes=N       how many there are; or JAX_NUM_PROCESSES
  --process_id=I          which one this is, from 0; or JAX_PROCESS_ID
  --initialization_timeout=SECONDS  to wait for the others at the start, 300 if not given

Fields, with their defaults:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "--help" in argv or "-h" in argv:
        print(_HELP + "\n".join(describe()))
        return 0 if argv else 2
    words = ["--plan=true" if word == "--plan" else word for word in argv]
    names = ("config", "workdir", "stopped_code", "plan", "topology", "out", *distributed.OPTIONS)
    options, overrides = cli.parse(words, names)
    if "config" not in options:
        raise UserError("--config: which config file? (for example --config=configs/moe_small.py)")
    config = load(options["config"], overrides)
    if options.get("plan", "false") not in ("true", "false"):
        raise UserError(f"--plan: must be true or false, not {options['plan']!r}")
    if options.get("plan") == "true":
        from vimoe_jax import plan

        return plan.main(config, options.get("topology", ""), options.get("out", ""))
    if "topology" in options:
        raise UserError("--topology: only with --plan; a run takes the devices that are there")
    if "out" in options:
        raise UserError("--out: only with --plan; a run writes into its --workdir")
    stopped_code = options.get("stopped_code", "0")
    if not stopped_code.isdecimal() or int(stopped_code) > 255:
        raise UserError(f"--stopped_code: must be a number up to 255, not {stopped_code!r}")
    workdir = Path(options.get("workdir") or f"runs/{Path(options['config']).stem}")
    command = f"python -m vimoe_jax.main {shlex.join(argv)}"
    return 0 if _run(config, workdir, command, options) else int(stopped_code)


def _run(config, workdir: Path, command: str, options: dict[str, str]) -> bool:
    """Trains and evaluates; False if a signal came meanwhile."""
    from vimoe_jax.train.guard import Interrupt

    with Interrupt() as interrupt:
        distributed.start(options)
        from vimoe_jax.run.lock import only_run

        with only_run(workdir):
            return _train(config, workdir, command, interrupt)


def _train(config, workdir: Path, command: str, interrupt) -> bool:
    import jax

    from vimoe_jax.run.workdir import device_name, start_run
    from vimoe_jax.scores import captions
    from vimoe_jax.train.loop import Trainer

    if config.eval.at_end:  # a missing segmenter is found now, not after training
        captions.describe(config.eval.tokenization)
    jax.config.update("jax_debug_nans", config.train.debug_nans)
    run = start_run(config, workdir)
    sizes = run.blueprint.num_parameters(), run.blueprint.num_active_parameters()
    _say(f"{workdir}: {sizes[0]:,} parameters, {sizes[1]:,} active, on {device_name()}")
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


if __name__ == "__main__":
    with distributed.exit_as_one():
        sys.exit(main())
