"""What chips can do: the one table of capacities and speeds.

Figures are the makers' data sheets': dense bfloat16 products, no sparsity. A mesh axis that runs
along several axes of a torus has the links of all of them.
"""

from __future__ import annotations

import dataclasses
import difflib

from vimoe_jax.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as `--topology` writes it.
      platform: "tpu", "gpu" or "cpu".
      memory: bytes that a program may use: of TPUs, what their compiler says is available.
      flops: bfloat16 FLOP/s.
      hbm: bytes per second between memory and chip.
      link: bytes per second in one direction: of one torus link (TPU), of all NVLinks (GPU).
      network: bytes per second in one direction that one chip has beyond its node; 0 for TPUs.
      node: chips that `link` joins without the network; 0 for TPUs, whose links reach all of a pod.
      wraps: a torus axis of a multiple of this many chips is a ring; others are lines.
    """

    name: str
    platform: str
    memory: float
    flops: float
    hbm: float
    link: float = 0.0
    network: float = 0.0
    node: int = 0
    wraps: int = 0


_GB, _GIB, _TFLOPS = 1e9, 2**30, 1e12

CHIPS = {
    chip.name: chip
    for chip in (
        # cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB, 1.2 TB/s; links of "How to Scale Your
        # Model", jax-ml.github.io/scaling-book/tpus, in one direction.
        Chip("v4", "tpu", 30.75 * _GIB, 275 * _TFLOPS, 1228 * _GB, 45 * _GB, wraps=4),
        # cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GB, 2765 GB/s, 3-D torus
        Chip("v5p", "tpu", 95.74 * _GIB, 459 * _TFLOPS, 2765 * _GB, 90 * _GB, wraps=4),
        # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, 2-D torus of 16x16
        Chip("v5e", "tpu", 15.75 * _GIB, 197 * _TFLOPS, 819 * _GB, 45 * _GB, wraps=16),
        # cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1640 GB/s, 2-D torus of 16x16
        Chip("v6e", "tpu", 31.25 * _GIB, 918 * _TFLOPS, 1640 * _GB, 90 * _GB, wraps=16),
        # NVIDIA A100 80GB SXM data sheet: NVLink 600 GB/s in both directions; DGX A100: eight
        # 200 Gbit/s adapters for eight GPUs
        Chip("a100", "gpu", 80e9, 312 * _TFLOPS, 2039 * _GB, 300 * _GB, 25 * _GB, 8),
        # NVIDIA H100 SXM data sheet: NVLink 900 GB/s in both directions; DGX H100: eight
        # 400 Gbit/s adapters
        Chip("h100", "gpu", 80e9, 989.5 * _TFLOPS, 3350 * _GB, 450 * _GB, 50 * _GB, 8),
        # NVIDIA H200 SXM data sheet: H100 with 141 GB at 4.8 TB/s
        Chip("h200", "gpu", 141e9, 989.5 * _TFLOPS, 4800 * _GB, 450 * _GB, 50 * _GB, 8),
        # NVIDIA B200 SXM data sheet (DGX B200 / 8): NVLink 1.8 TB/s in both directions
        Chip("b200", "gpu", 180e9, 2250 * _TFLOPS, 8000 * _GB, 900 * _GB, 50 * _GB, 8),
    )
}
ALIASES = {"gpu": "h100", "v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "v6lite": "v6e"}


def chip(name: str) -> Chip:
    """The chip of that name.

    Raises:
      UserError: none is called so.
    """
    name = ALIASES.get(name.lower(), name.lower())
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(CHIPS)}"
        raise UserError(f"--topology: no chip {name!r} ({known})")
    return CHIPS[name]


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so ("TPU v5 lite", "NVIDIA H100 80GB HBM3"); None if unknown."""
    kind = device_kind.lower().replace("tpu ", "").replace(" ", "")
    for name in sorted((*CHIPS, *ALIASES), key=len, reverse=True):
        if name != "gpu" and name in kind:
            return chip(name)
    return None
