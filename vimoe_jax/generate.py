"""The command that asks a model about a picture: `vimoe_jax.answer`, by the name it is known by."""

from __future__ import annotations

import sys

from vimoe_jax.answer.__main__ import main
from vimoe_jax.base.errors import exit_on_user_error

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
