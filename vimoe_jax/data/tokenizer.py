"""The command that trains a tokenizer: `vimoe_jax.text.tokenizers`, by the name it is known by."""

from __future__ import annotations

import sys

from vimoe_jax.base.errors import exit_on_user_error
from vimoe_jax.text.tokenizers.__main__ import main

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
