"""Makes a mixture of experts from a dense run; `vimoe_jax.main` continues it.

    python -m vimoe_jax.upcycle --source=WORKDIR --config=CONFIG --workdir=DIR [--method=copy]
        [--step=N] [--fresh_optimizer] [--OPTION=VALUE …] [--config.FIELD=VALUE …]

CONFIG describes the new model: the source's, with experts in some layers of tower, connector or
decoder. Parameters, Adam's moments, the step and with it the schedule go over from the source's
newest checkpoint, or from --step; the position in the data too if the new run reads the same
batches. --fresh_optimizer starts at step 0 with empty moments and the schedule's beginning.

  --method      copy: every expert is the dense MLP
                noise: copies, with noise
                drop: copies, of which each draws a share of its hidden units anew
                granular: the dense MLP in shards, each token's choices hitting all of them
                importance: the most important units in all experts, the others dealt out
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimoe_jax.base import cli, schema
from vimoe_jax.base.errors import UserError, exit_on_user_error
from vimoe_jax.config import load
from vimoe_jax.upcycle.methods import Upcycling

_FLAG = "--fresh_optimizer"


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    if not argv or "--help" in argv:
        print(__doc__ + "".join(_described()))
        return 0
    fresh = _FLAG in argv
    own = [f.name for f in dataclasses.fields(Upcycling)]
    options, overrides = cli.parse(
        [word for word in argv if word != _FLAG], ("source", "config", "workdir", "step", *own)
    )
    for name in ("source", "config", "workdir"):
        if name not in options:
            raise UserError(f"--{name}: needed (--help says more)")
    step = options.get("step", "")
    if step and not step.isdigit():
        raise UserError(f"--step: must be a number, not {step!r}")
    how = _how({name: options[name] for name in own if name in options})
    config = load(options["config"], overrides)

    from vimoe_jax.upcycle.run import upcycle

    workdir = Path(options["workdir"])
    report = upcycle(
        Path(options["source"]), config, workdir, how, int(step) if step else None, fresh
    )
    print(
        f"{workdir}: {report['parameters']:,} parameters, {report['active_parameters']:,} active,"
    )
    print(f"  from {report['source_parameters']:,} of {report['source']} at step {report['step']}")
    for routing, found in report["logits"].items():
        why = f" ({'; '.join(found['because'])})" if found["because"] else ""
        print(f"  logits moved by {found['moved']:.1e} of their norm in {routing}{why}")
    return 0


def _how(texts: dict[str, str]) -> Upcycling:
    """The method's options, checked."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    try:
        return schema.resolve(Upcycling, values)
    except UserError as e:
        raise UserError(str(e).replace("config.", "--", 1)) from None


def _described() -> list[str]:
    fields = [f for f in dataclasses.fields(Upcycling) if f.name != "method"]
    return [f"  --{f.name}={f.default}\n      {f.metadata['meaning']}\n" for f in fields]


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
