"""The training step of a configuration, compiled for devices that need not be there."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from vimoe_jax.config import Config
from vimoe_jax.data.batch import Batch
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel import rules
from vimoe_jax.parallel.rules import AnyMesh
from vimoe_jax.train.program import Program


class OutOfMemory(Exception):
    """The compiler found no place for the program; `needed` bytes per device, if known."""

    def __init__(self, message: str, needed: float | None):
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step that was compiled, never run.

    Attributes:
      text: of the program that one device runs.
      arguments: bytes per device of state and batch; the new state takes the old one's place.
      temporaries: bytes per device of what lives during the step only.
      outputs: bytes per device of results that take no argument's place.
      code: bytes of the program itself.
      trace_s: seconds from Python to the whole machine's program.
      compile_s: seconds from there to one device's.
    """

    text: str
    arguments: int
    temporaries: int
    outputs: int
    code: int
    trace_s: float
    compile_s: float

    @property
    def total(self) -> int:
        """Bytes that a device must have."""
        return self.arguments + self.temporaries + self.outputs + self.code


def abstract_batch(c: Config, mesh: AnyMesh, rows: int | None = None) -> Batch:
    """Shape, dtype and sharding of what a step reads, of `rows` rows if not the whole batch."""
    shapes = Batch.shapes(
        rows=rows or c.train.batch_size,
        image_size=c.model.image_size,
        patches=c.model.num_patches,
        text_length=c.data.text_length,
        max_pictures=c.data.max_pictures,
    )

    def abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        where = rules.sharding(("batch",) + (None,) * (len(shape) - 1), shape, mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    return Batch(*(None if entry is None else abstract(*entry) for entry in shapes))


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of arrays with shardings."""
    total = 0
    for x in jax.tree.leaves(tree):
        shard = x.sharding.shard_shape(x.shape)
        size = 1
        for n in shard:
            size *= n
        total += size * x.dtype.itemsize
    return total


def compile_step(c: Config, blueprint: Blueprint, mesh: Mesh) -> Compiled:
    """Compiles the step that `Trainer` runs, its state donated, for the mesh's devices.

    Raises:
      OutOfMemory: the compiler knows the devices' memory, and it is too small.
    """
    program = Program.create(c, blueprint, mesh)
    state = program.abstract()
    start = time.perf_counter()
    lowered = program.step().lower(state, abstract_batch(c, mesh))
    traced = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        temporaries = temporary_bytes(str(e))
        held = device_bytes(state) + device_bytes(abstract_batch(c, mesh))
        raise OutOfMemory(str(e), None if temporaries is None else held + temporaries) from None
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    return Compiled(
        text=compiled.as_text(),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        trace_s=traced - start,
        compile_s=done - traced,
    )


def temporary_bytes(message: str) -> float | None:
    """Bytes, of "the total memory required for HLO temporaries (50.13G) exceeds …"."""
    found = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds", message)
    return float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") if found else None
