"""The machine a plan is for: `--topology` to devices that a program can be compiled for."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from vimoe_jax.base.errors import UserError
from vimoe_jax.parallel import hardware
from vimoe_jax.parallel.hardware import Chip

INSTALL = "pip install -r requirements-plan.txt"
# The compiler queries a real TPU's metadata server, unless these variables are set.
_NOT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is claimed: plans may run side by side
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine.

    Attributes:
      name: as `--topology` names it, "v5p:8x8x4"; of this machine's devices, their type.
      chip: what it is made of; None if the table does not know it.
      shape: chips along each axis of the torus; one number for GPUs.
      devices: to compile for.
      exact: whether `devices` are of the machine's own type; else the program is compiled for as
        many CPU devices: what is split and sent is the same, but not the code.
    """

    name: str
    chip: Chip | None
    shape: tuple[int, ...]
    devices: list[Any]
    exact: bool = True


def parse(text: str) -> tuple[Chip, tuple[int, ...]]:
    """`v5p:8x8x16` or `h100:64` to a chip and the machine's shape.

    >>> parse("v5e:4x4")[1]
    (4, 4)

    Raises:
      UserError: not of that form, or of a chip that is not known.
    """
    form = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text.strip())
    if not form:
        raise UserError(f"--topology: {text!r} is not CHIP:SHAPE, such as v5p:8x8x4 or h100:8")
    chip, shape = hardware.chip(form[1]), tuple(int(n) for n in form[2].split("x"))
    if min(shape) < 1:
        raise UserError(f"--topology: {text!r} has an axis of no chips")
    if chip.platform == "gpu" and len(shape) > 1:
        raise UserError(f"--topology: GPUs are counted, {chip.name}:{math.prod(shape)}")
    return chip, shape


def target(text: str = "") -> Target:
    """The machine of that name; of no name, the devices at hand.

    Raises:
      UserError: the name is not understood, or what compiles for it is not installed.
    """
    if not text:
        devices = jax.devices()
        kind = devices[0].device_kind
        return Target(f"{len(devices)} × {kind}", hardware.chip_of(kind), (len(devices),), devices)
    chip, shape = parse(text)
    if chip.platform == "tpu":
        return Target(text, chip, shape, _tpu_devices(text, chip, shape))
    return Target(text, chip, shape, _gpu_devices(math.prod(shape), text), _has_gpu(chip))


def _tpu_devices(text: str, chip: Chip, shape: tuple[int, ...]) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise UserError(f"--topology: compiling for {text} needs libtpu: {INSTALL}")
    for name, value in _NOT_A_TPU.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    name = f"{chip.name}:{'x'.join(map(str, shape))}"
    # A v4 chip's two cores work as one, which is the default.
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    try:
        devices = list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except Exception as e:
        raise UserError(f"--topology: {text}: {str(e).splitlines()[0][:200]}") from None
    if len(devices) != math.prod(shape):
        raise UserError(
            f"--topology: {text} has {len(devices)} devices, not {math.prod(shape)} chips"
        )
    return devices


def _has_gpu(chip: Chip) -> bool:
    """Whether this process's own devices are such GPUs."""
    kind = jax.devices()[0].device_kind
    return jax.default_backend() == "gpu" and hardware.chip_of(kind) == chip


def _gpu_devices(count: int, text: str) -> list[Any]:
    """GPUs if there are enough, else as many CPU devices, made if JAX has not started."""
    with contextlib.suppress(RuntimeError):  # too late: JAX has counted its devices
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if len(devices) < count:
        devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--topology: {text} needs {count} simulated devices and this process has "
            f"{len(devices)}: XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]
