"""The command that asks a model about a picture: `vimoe_jax.answer`, by the name it is known by."""

from __future__ import annotations

from vimoe_jax.answer.__main__ import COMMAND

if __name__ == "__main__":
    COMMAND.run()
