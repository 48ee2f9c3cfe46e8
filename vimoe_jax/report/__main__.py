"""Writes WORKDIR/report.html from what a run left in its workdir.

    python -m vimoe_jax.evaluate.report --workdir=runs/moe_small --grid=answers.png

The page is one file that needs nothing else. `vimoe_jax.main` writes it at the end of a run; this
command writes it again, or for a run that was stopped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vimoe_jax.base import cli, values
from vimoe_jax.report import page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """The command's options."""

    workdir: Path = cli.option(values.path, "DIR", "the workdir of a run")
    grid: Path | None = cli.option(
        values.path, "FILE", "also draws some answered test pictures as a PNG", default=None
    )


def execute(options: Options) -> int:
    """Writes the page, and the pictures."""
    print(page.write_report(options.workdir))
    if options.grid is not None:
        from vimoe_jax.report.grid import save_grid_png

        save_grid_png(options.workdir, options.grid)
        print(options.grid)
    return 0


COMMAND = cli.Command("vimoe_jax.evaluate.report", Options, execute, __doc__, bare_code=2)
main = COMMAND.main

if __name__ == "__main__":
    COMMAND.run()
