"""Safetensors written tensor by tensor: memory holds one tensor at a time.

The format's own library takes all tensors of a file at once. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from vimoe_jax.base import files

DTYPES = {"float32": "F32", "bfloat16": "BF16"}
_SIZES = {"F32": 4, "BF16": 2}
INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Name and shape of a tensor that is not made yet."""

    name: str
    shape: tuple[int, ...]

    def num_bytes(self, dtype: str) -> int:
        """In a file of dtype "F32" or "BF16"."""
        return math.prod(self.shape) * _SIZES[dtype]


def shards(tensors: Iterable[Tensor], dtype: str, limit: int) -> dict[str, list[Tensor]]:
    """Cuts tensors, in order, into files of at most `limit` bytes (a larger tensor is alone)."""
    cut: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        size = tensor.num_bytes(dtype)
        if not cut or size > room:
            cut.append([])
            room = limit
        cut[-1].append(tensor)
        room -= size
    if len(cut) == 1:
        return {"model.safetensors": cut[0]}
    return {f"model-{i:05d}-of-{len(cut):05d}.safetensors": part for i, part in enumerate(cut, 1)}


def write(
    path: Path, tensors: Sequence[Tensor], dtype: str, value: Callable[[Tensor], np.ndarray]
) -> None:
    """Writes a file, whole or not at all.

    Args:
      path: the file.
      tensors: what it holds, in the order of their bytes.
      dtype: "F32" or "BF16".
      value: makes a tensor's array, already in that dtype; called in order.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.num_bytes(dtype)
        header[tensor.name] = {
            "dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.replacing(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = np.ascontiguousarray(value(tensor))
            if array.shape != tensor.shape or array.itemsize != _SIZES[dtype]:
                raise ValueError(f"{tensor.name}: {array.dtype}{array.shape} is not as announced")
            f.write(array.reshape(-1).view(np.uint8).data)


def write_index(folder: Path, shards: dict[str, list[Tensor]], dtype: str) -> None:
    """Says which file holds which tensor; nothing where there is one file only."""
    if len(shards) == 1:
        return
    total = sum(t.num_bytes(dtype) for part in shards.values() for t in part)
    where = {t.name: file for file, part in shards.items() for t in part}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    files.write_json(folder / INDEX, index)
