"""One MoE feed-forward layer, forward and backward, beside a dense one and beside its peers.

    python -m benchmarks.moe_layer [--shapes=A,B,growth,decode] [--peers] [--out=FILE.json]

What is timed: values, and the gradients of the input and of every parameter for a given gradient of
the output, router included, SwiGLU, bfloat16 (router float32). 1.00 is a dense SwiGLU MLP of equal
active operations (hidden width K·F) in JAX. Every time is the median over rounds in which all
variants take turns, so that a drifting clock hits all alike. Peers in PyTorch run in processes of
their own, in the same call.

Columns: ms; × dense; on a CPU also × dense in time that cores were busy, which neighbours on the
machine change less; TFLOP/s of the choices kept (6·T·K·D·F·3 less the dropped); drop fraction;
temporaries, as XLA plans them (without arguments and results).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import profiling
from vimoe_jax.base import host
from vimoe_jax.moe.block import MoE
from vimoe_jax.moe.options import MoEOptions

SHAPES = {
    "A": dict(tokens=32768, width=1024, hidden=2048, experts=32, k=2, factors=(1.0, 1.25)),
    "B": dict(tokens=50176, width=768, hidden=3072, experts=32, k=2, factors=(1.05,)),
    "tiny": dict(tokens=512, width=128, hidden=128, experts=8, k=2, factors=(1.0, 1.25)),
    # configs/moe_small.py: 16 rows of 64 patches and 112 text tokens
    "small": dict(
        tokens=2816, width=128, hidden=192, experts=8, k=2, factors=(1.0, 1.25), group=704
    ),
}


def moe(
    shape: dict[str, Any], dtype: jnp.dtype, *, train: bool = True, **options: Any
) -> tuple[Callable, Any]:
    """A layer as `f(params, x) -> (y, drop fraction)`, and its parameters."""
    settings = dict(
        group_size=shape.get("group", 1024), noise_std=0.0, importance_weight=0.0, load_weight=0.0
    )
    o = MoEOptions(
        num_experts=shape["experts"], experts_per_token=shape["k"], **{**settings, **options}
    )
    width, hidden = shape["width"], shape["hidden"]
    layer = MoE(
        o, width, hidden, width, activation="swiglu", bias=False, dtype=dtype, rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(layer)
    experts = jax.tree.map(lambda a: a.astype(dtype), state["experts"])
    state = nnx.State({**state, "experts": experts})

    def f(state, x):
        valid = jnp.ones(x.shape[:1], bool)
        kind = jnp.zeros(x.shape[:1], jnp.int32)
        layer = nnx.merge(graph, state)
        y, report = layer(x, valid, kind, num_kinds=1, key=jax.random.key(0) if train else None)
        return y, report.drop_fraction()

    return f, state


def dense(shape: dict[str, Any], dtype: jnp.dtype) -> tuple[Callable, Any]:
    """A SwiGLU MLP of hidden width K·F."""
    width, hidden = shape["width"], shape["k"] * shape["hidden"]
    keys = jax.random.split(jax.random.key(1), 3)
    gate, up = (jax.random.normal(k, (width, hidden), dtype) / width**0.5 for k in keys[:2])
    down = jax.random.normal(keys[2], (hidden, width), dtype) / hidden**0.5

    def f(params, x):
        gate, up, down = params
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down, jnp.zeros(())

    return f, (gate, up, down)


class Variant:
    """A layer compiled with its gradients."""

    def __init__(self, name: str, f: Callable, params: Any, x: jax.Array, d_y: jax.Array):
        def both(params, x, d_y):
            y, vjp, drop = jax.vjp(f, params, x, has_aux=True)
            return y, vjp(d_y.astype(y.dtype)), drop

        self.name, self.args = name, (params, x, d_y)
        start = time.perf_counter()
        self.compiled = jax.jit(both).lower(*self.args).compile()
        self.compile_seconds = time.perf_counter() - start
        memory: Any = self.compiled.memory_analysis()
        self.temporaries = memory.temp_size_in_bytes
        self.drop = float(self.compiled(*self.args)[2])
        self.times: list[float] = []
        self.cpu_times: list[float] = []

    def run(self, calls: int) -> None:
        """Adds one time, in ms a call."""
        jax.block_until_ready(self.compiled(*self.args))
        start, cpu = time.perf_counter(), time.process_time()
        results = None
        for _ in range(calls):
            results = self.compiled(*self.args)
        jax.block_until_ready(results)
        self.times.append((time.perf_counter() - start) / calls * 1e3)
        self.cpu_times.append((time.process_time() - cpu) / calls * 1e3)

    def ms(self) -> float:
        """The median of the times."""
        return statistics.median(self.times)

    def cpu_ms(self) -> float:
        """The median of the time that all cores together were busy."""
        return statistics.median(self.cpu_times)


def layer_table(shape: dict[str, Any], dtype: jnp.dtype, args: argparse.Namespace) -> list[dict]:
    """Times all variants of a shape in turns; the first row is the dense one."""
    keys = jax.random.split(jax.random.key(2), 2)
    x, d_y = (jax.random.normal(k, (shape["tokens"], shape["width"]), dtype) for k in keys)
    makers = {"dense": lambda: dense(shape, dtype)}
    if not args.no_einsum:
        last = shape["factors"][-1]
        makers[f"einsum, cf {last}"] = lambda: moe(
            shape, dtype, dispatcher="einsum", capacity_factor=last
        )
    for cf in shape["factors"]:
        makers[f"gather, cf {cf}"] = lambda cf=cf: moe(
            shape, dtype, dispatcher="gather", capacity_factor=cf
        )
    makers["dropless"] = lambda: moe(shape, dtype, dispatcher="dropless")
    chosen = args.variants.split(",") if args.variants else list(makers)
    variants = [Variant(n, *makers[n](), x, d_y) for n in makers if n in chosen or n == "dense"]
    for _ in range(args.rounds):
        for v in variants:
            v.run(args.calls)
    flops = 6 * shape["tokens"] * shape["k"] * shape["width"] * shape["hidden"] * 3
    on_cpu = jax.default_backend() == "cpu"
    if args.profile:
        for v in variants:
            if v.name in args.profile.split(";"):
                profile(v.name, v.compiled, *v.args)
    return [
        dict(
            name=v.name,
            ms=v.ms(),
            ratio=v.ms() / variants[0].ms(),
            cpu_ratio=v.cpu_ms() / variants[0].cpu_ms() if on_cpu else None,
            tflops=flops * (1 - v.drop) / v.ms() / 1e9,
            drop=v.drop,
            temporaries_gib=v.temporaries / 2**30,
            temporaries_ratio=v.temporaries / max(variants[0].temporaries, 1),
            compile_seconds=v.compile_seconds,
        )
        for v in variants
    ]


def profile(name: str, call: Callable, *args: Any, calls: int = 5) -> None:
    """Prints where a call's time goes, by kernel."""
    found = profiling.kernels(profiling.events(lambda: call(*args), calls), calls)
    print(f"\n{name}: {sum(ms for *_, ms in found):.3f} ms on the device")
    for kernel, _, ms in found[:45]:
        print(f"  {ms:7.3f} ms  {kernel[:110]}")


def growth(args: argparse.Namespace, dtype: jnp.dtype) -> list[dict]:
    """Time at equal active operations as the number of experts grows."""
    rows = []
    for experts in (8, 32, 128):
        shape = {**SHAPES["A"], "experts": experts, "factors": (1.0,)}
        for row in layer_table(shape, dtype, args)[1:]:
            rows.append({**row, "name": f"E {experts}, {row['name']}"})
    return rows


def decode(args: argparse.Namespace, dtype: jnp.dtype, layers: int = 4) -> list[dict]:
    """One token of each of 64 sequences, against reading the chosen experts' weights once.

    The time is that of a layer among four in a row, each with weights of its own, compiled as one
    as a decoder is. The weights (0.4 GB a layer) are larger than any cache.
    """
    shape = {**SHAPES["A"], "tokens": 64}
    f, params = moe(shape, dtype, train=False)
    stack = [jax.tree.map(lambda a, i=i: a * (1 + i / 8), params) for i in range(layers)]
    x = jax.random.normal(jax.random.key(3), (64, shape["width"]), dtype)

    @jax.jit
    def call(stack, x):
        inputs = []
        for params in stack:
            inputs.append(x)
            x = x + f(params, x)[0]
        return x, inputs

    met = []
    for params, a in zip(stack, call(stack, x)[1], strict=True):
        router = params["router"][...].astype(jnp.float32)
        chosen = jax.lax.top_k(a.astype(jnp.float32) @ router, shape["k"])[1]
        met.append(len(np.unique(np.asarray(chosen))))
    size = sum(met) * 3 * shape["width"] * shape["hidden"] * jnp.dtype(dtype).itemsize / layers
    source = jax.random.normal(jax.random.key(4), (int(size) // 2,), jnp.float32)
    if "decode" in args.profile.split(";"):
        profile("decode", call, stack, x)
    seconds = _seconds(call, stack, x) / layers
    rate = 2 * source.nbytes / _seconds(jax.jit(lambda a: a + 1), source)
    return [
        dict(
            name=f"decode, T 64, {sum(met) / layers:g} of {shape['experts']} experts met",
            ms=seconds * 1e3,
            weights_mib=size / 2**20,
            bandwidth_gb=rate / 1e9,
            reading_ms=size / rate * 1e3,
            ratio=seconds / (size / rate),
        )
    ]


def _seconds(f: Callable, *args: Any, calls: int = 20, rounds: int = 5) -> float:
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = [f(*args) for _ in range(calls)][-1]
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def correct(dtype: jnp.dtype) -> list[dict]:
    """Largest relative differences of each dispatcher to `einsum`, over values and gradients."""
    shape = dict(tokens=1536, width=256, hidden=384, experts=16, k=2)
    keys = jax.random.split(jax.random.key(5), 2)
    # A common direction makes the experts unequally popular: some overflow, some stay empty.
    x = jax.random.normal(keys[0], (shape["tokens"], 256), dtype) + 2
    d_y = jax.random.normal(keys[1], x.shape, dtype)
    rows = []
    for name in ("einsum", "gather", "dropless"):
        capacity = 0.75 if name != "dropless" else 100.0
        f, params = moe(shape, dtype, dispatcher=name, capacity_factor=capacity)
        reference, _ = moe(shape, dtype, dispatcher="einsum", capacity_factor=capacity)

        def both(f, params=params):
            y, vjp, _ = jax.vjp(f, params, x, has_aux=True)
            return [np.asarray(a, np.float32) for a in jax.tree.leaves((y, vjp(d_y)))]

        pairs = zip(both(jax.jit(f)), both(jax.jit(reference)), strict=True)
        errors = [np.linalg.norm(got - want) / np.linalg.norm(want) for got, want in pairs]
        rows.append(dict(name=f"{name} against einsum", error=float(max(errors))))
    return rows


def show(title: str, rows: list[dict]) -> None:
    """Prints a table."""
    print(f"\n{title}")
    for row in rows:
        facts = [f"{row['name']:44s}"]
        for key, form in (
            ("ms", "{:9.3f} ms"),
            ("ratio", "{:6.2f} ×"),
            ("cpu_ratio", "{:6.2f} × CPU time"),
            ("tflops", "{:5.0f} TFLOP/s"),
            ("drop", "{:6.1%} dropped"),
            ("temporaries_gib", "{:6.2f} GiB"),
            ("temporaries_ratio", "{:5.2f} ×"),
            ("reading_ms", "reading takes {:.3f} ms"),
            ("error", "{:.2g}"),
        ):
            if row.get(key) is not None:
                facts.append(form.format(row[key]))
        print("  ".join(facts) + (f"  {row['error']}" if isinstance(row.get("error"), str) else ""))
    sys.stdout.flush()


def main() -> None:
    """Runs what was asked for and prints a table each."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--shapes", default="A,B,growth,decode")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--variants", default="", help="names, separated by commas; all if empty")
    parser.add_argument("--no-einsum", action="store_true")
    parser.add_argument("--no-check", action="store_true", help="skip the comparison of values")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--profile", default="", help="variants whose kernels are listed (a;b)")
    parser.add_argument("--peers", action="store_true", help="also PyTorch's, at shape A and B")
    parser.add_argument("--out", type=Path, help="write all rows there, as JSON")
    args = parser.parse_args()
    dtype = jnp.dtype(args.dtype)
    if jax.default_backend() == "cpu":
        host.keep_memory()  # as training does
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {dtype}")
    tables = {}
    if not args.no_check:
        tables["differences"] = correct(dtype)
        show("differences", tables["differences"])
    for name in filter(None, args.shapes.split(",")):
        if name in ("growth", "decode"):
            tables[name] = {"growth": growth, "decode": decode}[name](args, dtype)
        else:
            shape = SHAPES[name]
            tables[name] = layer_table(shape, dtype, args)
            if args.peers:
                tables[name] += peers(shape, tables[name][0]["ms"])
        show(f"shape {name}" if name in SHAPES else name, tables[name])
    if args.out:
        args.out.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


def peers(shape: dict[str, Any], dense_ms: float) -> list[dict]:
    """The same layer in PyTorch and transformers."""
    from benchmarks.peers import run

    arguments = ["layer", "--variants", "dense,grouped_mm,grouped_mm_eager"]
    for name in ("tokens", "width", "hidden", "experts", "k"):
        arguments += [f"--{name}", str(shape[name])]
    rows = run(arguments, timeout=240)
    return [
        {
            **r,
            "name": f"PyTorch: {r['name']}",
            **({"ratio": r["ms"] / dense_ms} if "ms" in r else {}),
        }
        for r in rows
    ]


if __name__ == "__main__":
    main()
