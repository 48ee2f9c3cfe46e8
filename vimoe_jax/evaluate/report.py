"""The command that writes a run's report: `vimoe_jax.report`, by the name it is known by."""

from __future__ import annotations

from vimoe_jax.report.__main__ import COMMAND

if __name__ == "__main__":
    COMMAND.run()
