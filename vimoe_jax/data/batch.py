"""Batches."""

from __future__ import annotations

import numpy as np

Batch = dict[str, np.ndarray]

# What of a batch the compiled step reads; the rest is for the host.
STEP_KEYS = ("image", "tokens", "targets", "weights", "segments", "positions")
