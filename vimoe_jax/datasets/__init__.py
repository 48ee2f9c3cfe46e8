"""Published Vietnamese datasets, by name; `viscenes`, which is drawn, stands beside them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vimoe_jax.base.errors import UserError

if TYPE_CHECKING:
    from vimoe_jax.datasets.published import Dataset

NAMES = (
    "vivqa", "uit_viic", "ktvic", "openvivqa", "evjvqa", "viocrvqa", "vitextvqa", "vivqa_x",
    "viclevr", "xm3600", "coco35l",
)  # fmt: skip


def get(name: str) -> Dataset:
    """A published dataset; its reader is imported now.

    Raises:
      UserError: no such dataset.
    """
    if name not in NAMES:
        raise UserError(f"no published dataset is called {name!r}; there are {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.readers.{name}").DATASET
