"""ViScenes, the embedded dataset: drawn from a seed, so that the main job runs anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vimoe_jax.datasets import prepared


def prepare(data_dir: str | Path, config: str = "default", *, progress: bool = True) -> None:
    """Generates the dataset under `data_dir` if it is not there, whole or not at all.

    Raises:
      UserError: no such configuration, or the folder cannot be written.
    """

    def show_progress(builder: Any) -> None:
        from vimoe_jax.base.progress import Ticker

        sizes = builder.builder_config
        total = sizes.train + sizes.validation + sizes.test + sizes.test_compositional
        builder.on_example = Ticker(f"drawing ViScenes into {data_dir}", total).tick

    prime = show_progress if progress else None
    prepared.write(data_dir, "viscenes", config, prime=prime)


def open_split(data_dir: str | Path, split: str, config: str = "default") -> prepared.TfdsSource:
    """One split, in the order of generation.

    Raises:
      UserError: no such configuration, not prepared, no such split, or damaged files.
    """
    return prepared.open_split(data_dir, "viscenes", split, config)
