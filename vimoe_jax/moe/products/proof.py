"""Whom to trust: kernels are checked against the portable path on the device that will run them."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vimoe_jax.moe.products import findings
from vimoe_jax.moe.products.findings import call_outside_traces
from vimoe_jax.moe.products.segments import Backend
from vimoe_jax.parallel import distributed


def passes_check(
    name: Backend, dtype: DTypeLike, check: Callable[[Backend, DTypeLike], str | None]
) -> bool:
    """Whether a kernel's values and gradients are the portable path's, on this device.

    Kernels have been published with wrong gradients for experts without rows: the check has some,
    one expert with most of the rows, one with a single row, and tiles that nobody owns. Who passed
    stands in a file (`findings`) and is not checked again before the kernels, JAX or the device's
    software change. Of several processes the first one checks.

    Args:
      name: of the implementation.
      dtype: of its operands.
      check: what is wrong with an implementation, None if nothing is (`products.check`).
    """

    def passes() -> bool:
        file, key = findings.path("proofs"), f"{name} {jnp.dtype(dtype)} {_versions()}"
        if findings.read(file).get(key) is True:
            return True
        try:
            complaint = call_outside_traces(check, name, dtype)
        except Exception as e:  # a compiler of another version may refuse in any way
            complaint = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
        if complaint:
            warnings.warn(
                f"grouped matmul: the {name} kernels fail their check on "
                f"{jax.devices()[0].device_kind} ({complaint}); taking the portable path",
                stacklevel=3,
            )
        else:
            findings.add(file, key, True)
        return not complaint

    return distributed.agree_on_first(f"proof {name} {jnp.dtype(dtype)}", passes)


@functools.cache
def _versions() -> str:
    """A digest of all that a verdict depends on: sources of this package, JAX, the platform."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update(f"{jax.__version__} {jax.devices()[0].client.platform_version}".encode())
    return digest.hexdigest()[:16]
