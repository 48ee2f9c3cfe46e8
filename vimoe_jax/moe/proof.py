"""Whom to trust: kernels are checked against the portable path on the device that will run them."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vimoe_jax.moe import findings
from vimoe_jax.moe.segments import Segments
from vimoe_jax.parallel import distributed

T = TypeVar("T")


def proven(name: str, dtype: jnp.dtype) -> bool:
    """Whether a kernel's values and gradients are the portable path's, on this device.

    Kernels have been published with wrong gradients for experts without rows: the check has some,
    one expert with most of the rows, one with a single row, and tiles that nobody owns. Who passed
    stands in a file (`vimoe_jax.moe.findings`) and is not checked again before the kernels, JAX or
    the device's software change. Of several processes the first one checks.
    """

    def passes() -> bool:
        file, key = findings.path("proofs"), f"{name} {jnp.dtype(dtype)} {_versions()}"
        if findings.read(file).get(key) is True:
            return True
        try:
            complaint = outside_traces(check, name, dtype)
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

    return distributed.of_the_first(f"proof {name} {jnp.dtype(dtype)}", passes)


@functools.cache
def _versions() -> str:
    """A digest of all that a verdict depends on: sources of this package, JAX, the platform."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update(f"{jax.__version__} {jax.devices()[0].client.platform_version}".encode())
    return digest.hexdigest()[:16]


def outside_traces(f: Callable[..., T], *args: Any) -> T:
    """Calls `f` where nothing is being traced: traces belong to threads, so in a thread of its own.

    Kernels cannot be built under `jax.ensure_compile_time_eval`: it hides their axis names.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(f, *args).result()


def check(name: str, dtype: jnp.dtype) -> str | None:
    """What is wrong with a backend on this device, or None: values and every gradient."""
    from vimoe_jax.moe import grouped

    counts = np.array([0, 1, 700, 0, 128, 129, 0], np.int32)
    num_experts, width, hidden = len(counts), 256, 384
    rows = (int(np.ceil(counts / 128).sum()) + 3) * 128
    segments = Segments.create(jnp.asarray(counts), rows, 128)
    owned = np.zeros((rows, 1), bool)
    for start, count in zip(np.asarray(segments.starts), counts, strict=True):
        owned[start : start + count] = True
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / 4, dtype)

    x, d_out = draw(rows, width) * owned, draw(rows, width) * owned
    w_in, w_out = draw(num_experts, width, 2, hidden), draw(num_experts, hidden, width)
    flat = w_in.reshape(num_experts, width, -1)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def both_ways(name: str, fused: bool, x, w_in, w_out, d_out):
        def f(x, w_in, w_out):
            if fused:
                return grouped.fused_swiglu(x, w_in, w_out, segments)
            h = grouped.matmul(x, w_in.reshape(flat.shape), segments, name)
            return grouped.matmul(jax.nn.silu(h[:, :hidden]) * h[:, hidden:], w_out, segments, name)

        y, vjp = jax.vjp(f, x, w_in, w_out)
        d_x, *d_w = vjp(d_out.astype(y.dtype))
        return [jnp.where(owned, y, 0), jnp.where(owned, d_x, 0), *d_w]

    def mlp(name: str, fused: bool) -> list[np.ndarray]:
        found = both_ways(name, fused, x, w_in, w_out, d_out)
        return [np.asarray(a, np.float32) for a in found]

    truth = mlp("portable", False)
    for fused in (False, True) if name == "hopper" else (False,):
        for what, got, want in zip(
            ("y", "dx", "dw_in", "dw_out"), mlp(name, fused), truth, strict=True
        ):
            error = np.linalg.norm(got - want) / np.linalg.norm(want)
            if not error < 0.02:
                return f"{what} off by {error:.3g}{' (fused)' if fused else ''}"
            if what.startswith("dw") and np.any(got[counts == 0]):
                return f"{what} of an expert without rows is not zero"
    return None
