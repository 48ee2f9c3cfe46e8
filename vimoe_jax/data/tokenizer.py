"""The command that trains a tokenizer: `vimoe_jax.text.tokenizers`, by the name it is known by."""

from __future__ import annotations

from vimoe_jax.text.tokenizers.__main__ import COMMAND

if __name__ == "__main__":
    COMMAND.run()
