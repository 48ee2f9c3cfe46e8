"""The command that writes a run's report: `vimoe_jax.report`, by the name it is known by."""

from __future__ import annotations

import sys

from vimoe_jax.base.errors import exit_on_user_error
from vimoe_jax.report.page import main

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
