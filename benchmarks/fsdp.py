"""The model of benchmarks.peers over several GPUs of one host, as torchtitan does it: FSDP2.

Weights, gradients and moments are sharded over all GPUs, one process a GPU: each transformer block
is gathered before it runs and freed after it. `peers.main` calls this for `--gpus` above 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import threading
import traceback
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from typing import TYPE_CHECKING, Any

from benchmarks import peer_model

if TYPE_CHECKING:
    import torch

# A rank that waits longer for another one gives up, and `measure` then ends them all. The longest
# honest wait is for a rank that compiles more slowly.
TIMEOUT = timedelta(minutes=5)


def shard(a: argparse.Namespace, model: torch.nn.Module, device: torch.device) -> None:
    """Compiles (if asked) and shards every block of decoder and tower, then the rest, in place.

    Under float32 the weights, gradients and moments are float32; blocks are gathered and multiply
    in bf16, and gradients are summed in float32. Under bfloat16 everything is bf16.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    blocks = peer_model.blocks(model)
    if a.compile:
        peer_model.compile_blocks(a, model)
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = mixed if a.precision == "float32" else MixedPrecisionPolicy()
    mesh = init_device_mesh(device.type, (a.gpus,))
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)  # embeddings (tied to the head), norms, ...


def measure_rank(rank: int, a: argparse.Namespace, kind: str, port: int) -> dict[str, Any]:
    """The record of all ranks, measured together: ms and peak GiB are the greatest of any."""
    import torch
    import torch.distributed as dist

    torch.set_float32_matmul_precision("high")  # as in `peers.main`
    device = torch.device("cpu") if kind == "cpu" else torch.device(kind, rank)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=a.gpus,
        timeout=TIMEOUT,
        device_id=device if kind == "cuda" else None,
    )
    torch.manual_seed(0)  # the same weights on every rank, of which each keeps its shard
    model = peer_model.make_model(a, device)
    torch.manual_seed(1 + rank)  # rows of its own
    inputs = peer_model.make_inputs(a, model, device)
    shard(a, model, device)
    measured = peer_model.measure_steps(a, model, model, inputs, device, autocast=False)
    greatest = torch.tensor(list(measured.values()), dtype=torch.float64, device=device)
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    record = peer_model.model_record(a, model, dict(zip(measured, greatest.tolist(), strict=True)))
    dist.destroy_process_group()
    return record | {"gpus": a.gpus}


def worker(rank: int, a: argparse.Namespace, kind: str, port: int, results: SimpleQueue) -> None:
    """One process: rank 0 puts the record into `results`, a rank that fails the error's text."""

    def end_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()  # no orphan holds a GPU
    try:
        record = measure_rank(rank, a, kind, port)
        if rank == 0:
            results.put(record)
        code = 0
    except Exception as error:
        traceback.print_exc()
        text = (str(error).strip().splitlines() or [""])[0]
        results.put(f"rank {rank}: {type(error).__name__}: {text}")
        code = 1
    sys.stderr.flush()
    # Not by way of destructors: NCCL's may wait for collectives that a rank which failed does not
    # join, and threads that torch leaves behind sometimes abort while Python shuts down.
    os._exit(code)


def measure(a: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The record of a training step on `a.gpus` GPUs with `a.batch` rows each, by new processes.

    `kind` is "cuda", or "cpu" for a test. They inherit the environment (NCCL's settings) and the
    process group. Raises RuntimeError when one fails, after ending the others.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, spawn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        spawn(worker, (a, kind, port, results), nprocs=a.gpus)
    except ProcessExitedException as error:
        why = "" if results.empty() else f": {results.get()}"
        raise RuntimeError(f"{error}{why}") from error
    return results.get()
