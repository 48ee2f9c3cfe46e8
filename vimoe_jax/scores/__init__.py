"""Predictions to scores."""

from __future__ import annotations

import importlib
from types import ModuleType

_MODULES = ("captions", "predictions", "vqa")


def __getattr__(name: str) -> ModuleType:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
