"""Tensors of several sources onto the mesh, one parameter at a time, and from there to disk."""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding

from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.hf import names
from vimoe_jax.hf.names import Piece
from vimoe_jax.hf.readers import Reader
from vimoe_jax.hf.sources import Source
from vimoe_jax.model.blueprint import Blueprint, Params
from vimoe_jax.run import manifest
from vimoe_jax.run.checkpoint import load_params
from vimoe_jax.run.mesh import for_run
from vimoe_jax.run.workdir import reopen

_CHUNK = 1 << 26  # bytes compressed and written as one; so large that malloc gives them back


def read(c: Config, given: dict[str, Source], dtype: str) -> Params:
    """All parameters, each where the mesh wants it.

    The largest come first: what is held beside the parameters on the way is least then.

    Args:
      c: of the new run.
      given: the source of each part; a part without a source is drawn as for a new run.
      dtype: of the result.

    Raises:
      UserError: names or shapes that do not match, or NaN and infinities inside; all in one.
    """
    blueprint = Blueprint.create(c.model, c.model.decoder.vocab_size)
    mesh = for_run(c, blueprint)
    todo = _match(blueprint, given)
    params = _from_workdirs(blueprint, given, mesh, dtype)
    missing = [n for n in blueprint.shapes() if n not in todo and n not in params]
    params |= _drawn(blueprint, missing, c.seed, mesh, dtype)
    shapes, where = blueprint.shapes(), blueprint.shardings(mesh)
    bad: dict[str, None] = {}
    for name in sorted(todo, key=lambda n: -math.prod(shapes[n])):
        reader, pieces = todo[name]
        params[name] = _place(reader, pieces, shapes[name], jnp.dtype(dtype), where[name], bad)
    if bad:
        raise UserError(f"NaN or infinity inside: {', '.join(brief(list(bad)))}")
    return {name: params[name] for name in shapes}


def save(params: Params, workdir: Path) -> None:
    """Writes checkpoint 0: parameters alone, with which an optimizer starts afresh.

    In small pieces, little of which is in memory at once: `Checkpoints` copies everything first, so
    that training can go on, and needs half as much again.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax' own account of failures
    largest = max(p.nbytes for p in params.values())
    state = {"step": jnp.zeros((), jnp.int32), "params": params, "frozen": {}}
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), state)
    # Less than the largest parameter, and it would never begin. Orbax says `int`, and takes parts.
    gigabytes: Any = 1.01 * largest / 1e9 + 0.01
    handlers = {
        "state": ocp.StandardCheckpointHandler(save_concurrent_gb=gigabytes),
        "data": ocp.JsonCheckpointHandler(),
    }
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    folder = workdir.absolute() / "checkpoints"
    try:
        with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
            manager.save(
                0,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state, save_args=pieces),
                    data=ocp.args.JsonSave({"batches": 0, "seconds": 0.0}),
                ),
            )
        manifest.write(folder / "0")
    except OSError as e:
        raise UserError(f"{e.filename or folder}: {e.strerror or e}") from None
    except Exception as e:  # TensorStore wraps the file system's errors in ValueErrors
        raise UserError(f"{folder}: checkpoint not written: {' '.join(str(e).split())}") from None


def _refuse(complaints: list[str]) -> None:
    """Raises one error with all complaints, if there are any."""
    if complaints:
        raise UserError("; ".join(complaints))


def _match(blueprint: Blueprint, given: dict[str, Source]) -> dict[str, tuple[Reader, list[Piece]]]:
    """The tensors of each parameter that comes from a file, if all names and shapes fit."""
    todo: dict[str, tuple[Reader, list[Piece]]] = {}
    complaints = []
    read = {id(s): (s, s.reader) for s in given.values() if s.reader is not None}
    for source, reader in read.values():
        seen: set[str] = set()
        wrong: dict[str, list[str]] = defaultdict(list)
        wanted: dict[str, list[Piece]] = defaultdict(list)
        for piece in names.pieces(
            blueprint, table=source.table, fused_experts=source.fused_experts
        ):
            part = piece.ours.split(".")[0]
            if given.get(part) is source:
                wanted[piece.ours].append(piece)
        for name, pieces in wanted.items():
            todo[name] = reader, pieces
            for piece in pieces:
                seen.add(piece.hf)
                if complaint := _complaint(piece, reader.shapes.get(piece.hf)):
                    wrong[complaint].append(piece.hf)
        if unexpected := reader.shapes.keys() - seen - source.left_out:
            wrong["unexpected"] += sorted(unexpected)
        for complaint, tensors in wrong.items():
            listed = ", ".join(brief(tensors))
            complaints.append(f"{reader.where}: {complaint}: {listed}")
    _refuse(complaints)
    return todo


def _complaint(piece: Piece, shape: tuple[int, ...] | None) -> str | None:
    """What is wrong with a tensor's shape; vocabularies may grow and positions be resized."""
    if shape is None:
        return "missing"
    if shape == piece.shape:
        return None
    if len(shape) == len(piece.shape) and shape[1:] == piece.shape[1:]:
        if piece.axes[0] == "v" and shape[0] <= piece.shape[0]:
            return None
        if piece.axes[0] == "p" and math.isqrt(shape[0]) ** 2 == shape[0]:
            return None
    return f"of shape {shape}, not {piece.shape}"


def brief(tensors: list[str]) -> list[str]:
    """Names that differ in their numbers only as one that lists the numbers.

    >>> brief(["layers.0.q", "layers.1.q", "layers.3.q", "norm"])
    ['layers.{0-1,3}.q', 'norm']
    """
    alike: dict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)
    for name in tensors:
        words = re.split(r"(?<=\.)(\d+)(?=\.)", name)
        alike[tuple(words[::2])].append(tuple(map(int, words[1::2])))
    told = []
    for words, numbers in alike.items():
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        whole = math.prod(map(len, columns)) == len(set(numbers))
        for row in [columns] if whole else [[[n] for n in each] for each in numbers]:
            ranges = [*map(_ranges, row), ""]
            told.append("".join(w + r for w, r in zip(words, ranges, strict=True)))
    return told


def _ranges(numbers: list[int]) -> str:
    """3, 4, 5 and 8 as "{3-5,8}"; one number as itself."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return "{" + ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs) + "}"


def _place(
    reader: Reader,
    pieces: list[Piece],
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: NamedSharding,
    bad: dict[str, None],
) -> jax.Array:
    """One parameter on its devices; each device's piece is put together by itself."""
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = (s.indices(size)[:2] for s, size in zip(index or (), shape, strict=True))
        devices[tuple(bounds)].append(device)
    arrays = []
    for bounds, where in devices.items():
        local = np.empty([stop - start for start, stop in bounds], dtype)
        for piece in pieces:
            if (at := _within(piece.index, bounds)) is None:
                continue
            target, part = at
            local[target] = _tensor(reader, piece, bad)[part]
        arrays += [jax.device_put(local, device) for device in where]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _within(
    index: tuple[int | slice, ...], bounds: tuple[tuple[int, int], ...]
) -> tuple[tuple[int | slice, ...], tuple[slice, ...]] | None:
    """Where a tensor lies in a device's piece, and which of its rows; None if outside."""
    target: list[int | slice] = []
    part: list[slice] = []
    for i, (start, stop) in zip(index, bounds, strict=True):
        if isinstance(i, slice):
            target.append(slice(None))
            part.append(slice(start, stop))
        elif start <= i < stop:
            target.append(i - start)
        else:
            return None
    return tuple(target), tuple(part)


def _tensor(reader: Reader, piece: Piece, bad: dict[str, None]) -> np.ndarray:
    """A file's tensor as part of our parameter, fitted to the model's sizes."""
    tensor = reader.read(piece.hf)
    if not np.isfinite(tensor).all():
        bad[f"{reader.where}: {piece.hf}"] = None
    return piece.to_ours(_fitted(tensor, piece.axes, piece.shape))


def _fitted(tensor: np.ndarray, axes: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    if tensor.shape == shape:
        return tensor
    return (extended if axes[0] == "v" else resized)(tensor, shape[0])


def extended(table: np.ndarray, rows: int) -> np.ndarray:
    """An embedding or head with more rows, each the mean of the others.

    As a head, such a row's logit is the mean of all logits: it never is the largest.
    """
    count, width = table.shape
    total = np.zeros(width, np.float64)
    for start in range(0, count, 4096):  # a copy of all in float32 would be large
        total += table[start : start + 4096].astype(np.float32).sum(0)
    out = np.empty((rows, width), table.dtype)
    out[:count], out[count:] = table, total / count
    return out


def resized(positions: np.ndarray, places: int) -> np.ndarray:
    """Position embeddings (P, D) for another number of patches, both square.

    Bicubic (a = -0.75), edges repeated, corners not aligned, without antialiasing: what
    transformers' `interpolate_pos_encoding` does.
    """
    old, new = math.isqrt(len(positions)), math.isqrt(places)
    weights = _bicubic(old, new)
    grid = positions.astype(np.float32).reshape(old, old, -1)
    return np.einsum("yi,xj,ijd->yxd", weights, weights, grid, optimize=True).reshape(places, -1)


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of a cubic convolution along one axis."""
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        x = np.abs(centre - (first + offset))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        at = np.clip(first + offset, 0, old - 1)
        np.add.at(weights, (np.arange(new), at), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


def _from_workdirs(
    blueprint: Blueprint, given: dict[str, Source], mesh: Mesh, dtype: str
) -> Params:
    """The parameters of the parts that come from other runs."""
    params: Params = {}
    shapes, where, complaints = blueprint.shapes(), blueprint.shardings(mesh), []
    for source in {id(s): s for s in given.values() if s.reader is None}.values():
        found: dict[str, Any] = load_params(reopen(source.where, []))
        for name in list(found):
            value = found.pop(name)
            if given.get(name.split(".")[0]) is not source or name not in shapes:
                continue
            axes = {"decoder.embedding": "v", "decoder.head": "v", "vision.positions": "p"}
            if value.shape != shapes[name] and name in axes:
                value = _fitted(np.asarray(value), (axes[name],), shapes[name])
            if value.shape != shapes[name]:
                complaints.append(
                    f"{source.where}: {name}: is of shape {value.shape}, not {shapes[name]}"
                )
                continue
            params[name] = jax.device_put(value.astype(dtype), where[name])
        lost = [n for n in shapes if given.get(n.split(".")[0]) is source and n not in params]
        complaints += [f"{source.where}: {n}: missing" for n in lost if not complaints]
    _refuse(complaints)
    return params


def _drawn(blueprint: Blueprint, wanted: list[str], seed: int, mesh: Mesh, dtype: str) -> Params:
    """The parameters that no source has, as a new run would draw them."""
    if not wanted:
        return {}
    where = blueprint.shardings(mesh)

    def draw(key: jax.Array) -> Params:
        params = blueprint.init(key)
        return {name: params[name].astype(dtype) for name in wanted}

    return jax.jit(draw, out_shardings={n: where[n] for n in wanted})(jax.random.key(seed))
