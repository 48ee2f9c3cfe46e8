"""Tensors in files, read one at a time: safetensors (one file or shards), big_vision's `.npz`.

Nothing is unpickled, and nothing is mapped into memory: a reader holds no more than the tensor that
it reads.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import read_object
from vimoe_jax.hf import names

INDEX = "model.safetensors.index.json"
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_MAX_HEADER = 100_000_000  # the format's own limit
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@runtime_checkable
class Reader(Protocol):
    """Tensors by the table's name.

    Attributes:
      where: the file or folder, for messages.
      shapes: of all tensors.
    """

    where: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the file's dtype."""
        ...


class Safetensors:
    """A folder of safetensors; names in the table's spelling (`names.canonical`)."""

    def __init__(self, folder: Path):
        """Reads the files' headers.

        Raises:
          UserError: no safetensors, a shard that is missing or cut short, a quantised tensor.
        """
        self.where = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._at: dict[str, tuple[Path, Any, int]] = {}
        for path in _files(folder):
            for name, (dtype, shape, offset) in _header(path).items():
                name = names.canonical(name)
                if name in self.shapes:
                    raise UserError(f"{path}: {name} is there twice")
                self.shapes[name] = shape
                self._at[name] = path, dtype, offset

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the file's dtype."""
        path, dtype, offset = self._at[name]
        shape = self.shapes[name]
        try:
            with open(path, "rb") as f:
                f.seek(offset)
                # Not through a mapping of the file, whose pages would count as this process's.
                flat = np.fromfile(f, np.dtype(dtype), int(np.prod(shape, dtype=np.int64)))
            return flat.reshape(shape)
        except (OSError, ValueError) as e:
            raise UserError(f"{path}: {name}: cannot be read: {e}") from None


def _files(folder: Path) -> list[Path]:
    """The safetensors of a model; with an index, those that it lists."""
    index = folder / INDEX
    if index.exists():
        listed = read_object(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
            raise UserError(f"{index}: weight_map: must map tensors to files")
        files = sorted({folder / Path(name).name for name in listed.values()})
        if missing := [path.name for path in files if not path.exists()]:
            raise UserError(f"{index}: lists files that are not there: {', '.join(missing)}")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1 and folder / "model.safetensors" in files:
        return [folder / "model.safetensors"]
    if len(files) > 1:
        raise UserError(f"{folder}: several .safetensors and no {INDEX} that says which belong")
    if not files:
        pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{folder}: only pickled weights ({', '.join(pickles)}), which can run any code; "
                "save the model as safetensors first"
            )
        raise UserError(f"{folder}: no .safetensors file here")
    return files


def _header(path: Path) -> dict[str, tuple[Any, tuple[int, ...], int]]:
    """Dtype, shape and place of a file's tensors."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ValueError("its header does not fit in it; was it downloaded whole?")
            header = json.loads(f.read(length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            shape, (begin, end) = tuple(map(int, entry["shape"])), entry["data_offsets"]
            dtype = _DTYPES.get(entry["dtype"], entry["dtype"])
            if isinstance(dtype, str):
                raise ValueError(f"{name} is of dtype {dtype}; only {', '.join(_DTYPES)} are read")
            bytes_ = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            if min(shape, default=0) < 0 or end - begin != bytes_:
                raise ValueError(f"{name}: its size is not that of its shape")
            if not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"{name} lies beyond its end; was it downloaded whole?")
            found[name] = dtype, shape, 8 + length + begin
        return found
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: not a whole safetensors file: {e}") from None


class BigVision:
    """The image tower in an `.npz` of big_vision: a ViT, or the `img` part of a SigLIP.

    Names are those of `names.BIG_VISION`, also where the file stacks its layers for a scan.
    """

    def __init__(self, path: Path):
        """Reads the shapes.

        Raises:
          UserError: not an `.npz`, or one with pickled objects.
        """
        self.where = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._at: dict[str, tuple[str, int | None]] = {}
        self._last: tuple[str, np.ndarray] | None = None
        try:
            self._file = np.load(path, allow_pickle=False)
            shapes = _npz_shapes(path)
        except (OSError, ValueError, zipfile.BadZipFile) as e:
            raise UserError(f"{path}: not an .npz of plain arrays: {e}") from None
        for key, shape in shapes.items():
            self._add(key, shape)

    def _add(self, key: str, shape: tuple[int, ...]) -> None:
        name = key.removeprefix("params/")
        if name.startswith("txt/") or name in ("t", "b"):
            return  # the other tower, and the loss's temperature and bias
        name = name.removeprefix("img/")
        if name == "pos_embedding" and len(shape) == 3:
            shape = shape[1:]
        if "/encoderblock/" in name:
            for layer in range(shape[0]):
                one = name.replace("/encoderblock/", f"/encoderblock_{layer}/")
                self.shapes[one], self._at[one] = shape[1:], (key, layer)
        else:
            self.shapes[name], self._at[name] = shape, (key, None)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the file's dtype."""
        key, layer = self._at[name]
        if self._last is None or self._last[0] != key:  # layers in a stack come one after another
            try:
                self._last = key, self._file[key]
            except (OSError, ValueError, zipfile.BadZipFile) as e:
                raise UserError(f"{self.where}: {key}: cannot be read: {e}") from None
        array = self._last[1] if layer is None else self._last[1][layer]
        if array.dtype == np.dtype("V2"):  # how NumPy stores bfloat16
            array = array.view(ml_dtypes.bfloat16)
        return array.reshape(self.shapes[name])


def _npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of an `.npz`, from their headers alone."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as f:
                version = np.lib.format.read_magic(f)
                header = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    header = np.lib.format.read_array_header_2_0
                shape, _, dtype = header(f)
            if dtype.hasobject:
                raise ValueError(f"{entry} holds pickled objects")
            shapes[re.sub(r"\.npy$", "", entry)] = tuple(shape)
    return shapes
