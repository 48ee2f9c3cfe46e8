"""Makes a mixture of experts from a dense run; `vimoe_jax.main` continues it.

    python -m vimoe_jax.upcycle --source=runs/dense --config=configs/moe_small.py --workdir=runs/moe

The configuration describes the new model: the source's, with experts in some layers of tower,
connector or decoder. Parameters, Adam's moments, the step and with it the schedule go over; the
position in the data too if the new run reads the same batches. Methods:

  copy        every expert is the dense MLP
  noise       copies, with noise
  drop        copies, of which each draws a share of its hidden units anew
  granular    the dense MLP in shards, each token's choices hitting all of them
  importance  the most important units in all experts, the others dealt out
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vimoe_jax.base import cli, values
from vimoe_jax.config import Config, load
from vimoe_jax.upcycle.methods import Upcycling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """The command's options."""

    source: Path = cli.option(values.path, "WORKDIR", "the dense run's workdir")
    config: Path = cli.option(values.path, "FILE", "the new run's config file")
    workdir: Path = cli.option(values.path, "DIR", "the new run's; must not exist, or be empty")
    step: int | None = cli.option(
        values.whole, "N", "which checkpoint of the source; the newest if not given", default=None
    )
    fresh_optimizer: bool = cli.flag(
        "starts at step 0 with empty moments and the schedule's beginning"
    )
    how: Upcycling = cli.group(Upcycling)


def execute(options: Options) -> int:
    """Upcycles, and reports what has moved."""
    config = load(options.config, options.overrides)

    from vimoe_jax.upcycle.run import upcycle

    report = upcycle(
        options.source, config, options.workdir, options.how, options.step, options.fresh_optimizer
    )
    sizes = f"{report['parameters']:,} parameters, {report['active_parameters']:,} active"
    print(f"{options.workdir}: {sizes},")
    print(f"  from {report['source_parameters']:,} of {report['source']} at step {report['step']}")
    for routing, found in report["logits"].items():
        why = f" ({'; '.join(found['because'])})" if found["because"] else ""
        print(f"  logits moved by {found['moved']:.1e} of their norm in {routing}{why}")
    return 0


COMMAND = cli.Command("vimoe_jax.upcycle", Options, execute, __doc__, config=Config)
main = COMMAND.main

if __name__ == "__main__":
    COMMAND.run()
