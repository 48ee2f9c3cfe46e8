"""Do several devices train as one does? Losses over meshes, and of a run that loses a process.

`benchmarks.several_gpus` runs both, beside what it times. `python -m benchmarks.same_losses V`
prints the `numbers` of a variant; V is a `train_step.Variant` as JSON.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import train_step, turns
from benchmarks.train_step import ROOT, Variant

PARITY = 1e-5  # relative, of float32
AXES = ("data", "fsdp", "expert", "tensor")


def numbers(v: Variant) -> list[float]:
    """Loss and gradient norm of three steps of a small model in float32."""
    import jax

    from vimoe_jax.model.blueprint import Blueprint
    from vimoe_jax.parallel.mesh import make_mesh, to_mesh
    from vimoe_jax.train.program import Program

    jax.config.update("jax_default_matmul_precision", "highest")
    c = train_step.configuration(v)
    mesh = make_mesh(dict(v.mesh), jax.devices()[: v.devices()])
    blueprint = Blueprint.create(c.model, c.model.decoder.vocab_size)
    program = Program.create(c, blueprint, mesh)
    state = program.init(jax.random.key(0))
    batch = to_mesh(train_step.random_batch(c, blueprint.vocab_size), mesh)
    step, out = program.step(), []
    for _ in range(3):
        state, metrics = step(state, batch)
        out += [float(metrics.tokens.loss / metrics.tokens.weight), float(metrics.grad_norm)]
    return out


def parity(gpus: int, timeout: float) -> list[dict[str, Any]]:
    """Largest relative difference of `numbers` on each mesh to one device's."""
    of_model: dict[tuple[str, str], list[Variant]] = {}
    for key in (("dense", "gather"), ("moe", "gather"), ("moe", "dropless")):
        for sizes in [(1, 1, 1, 1), *_factorisations(gpus)]:
            mesh = tuple((a, n) for a, n in zip(AXES, sizes, strict=True) if n > 1)
            if key[0] == "dense" and "expert" in dict(mesh):
                continue
            rows = 16 // math.prod(sizes)
            v = Variant(*key, mesh=mesh, batch=rows, text=24, tiny=True)
            of_model.setdefault(key, []).append(v)
    until = time.monotonic() + timeout

    def apart(v: Variant) -> list[float] | None:
        command = [sys.executable, "-m", "benchmarks.same_losses"]
        env = turns.environment(v.devices(), 0)
        try:
            done = subprocess.run(
                [*command, json.dumps(dataclasses.asdict(v))], cwd=ROOT, env=env, text=True,
                stdout=subprocess.PIPE, timeout=max(0.1, until - time.monotonic()),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
        return None if done.returncode else json.loads(done.stdout.splitlines()[-1])

    records = []
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as threads:
        found = {key: threads.map(apart, vs) for key, vs in of_model.items()}
    for key, (alone, *others) in found.items():
        for v, got in zip(of_model[key][1:], others, strict=True):
            if got is None or alone is None:
                records.append({"name": v.name(), "error": "no numbers: see above, or no time"})
                continue
            far = max(abs(a - b) / abs(b) for a, b in zip(got, alone, strict=True))
            records.append({"name": v.name(), "difference": far})
            if far > PARITY:
                records[-1]["error"] = f"{far:.1e} apart, more than {PARITY:g}"
    return records


def _factorisations(n: int) -> Iterator[tuple[int, ...]]:
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    # Two heads of keys and values: no more parts than that.
    yield from (
        sizes
        for sizes in itertools.product(divisors, repeat=len(AXES))
        if math.prod(sizes) == n and sizes[AXES.index("tensor")] <= 2
    )


def killed(gpus: int, tiny: bool) -> list[dict[str, Any]]:
    """A run of one process a GPU, the last of which is killed; then the same run on half as many.

    Losses are compared with an undisturbed run's on one GPU, in float32.
    """
    from benchmarks.input_pipeline import make_source

    steps, every = (12, 4) if tiny else (60, 10)
    fewer = max(1, gpus // 2)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        make_source(data, 48)
        config = Path(folder) / "config.py"
        config.write_text(KILLED.format(data=data / "data.jsonl", steps=steps, every=every))

        def command(name: str, count: int) -> list[str]:
            of_each = "--devices=1" if tiny else "--gpus=1"
            launch = [sys.executable, "launch/local.py", f"--num_processes={count}", of_each]
            return [*launch, f"--workdir_root={folder}", f"--name={name}", "--max_restarts=0",
                    "--", f"--config={config}"]  # fmt: skip

        def losses(name: str) -> dict[int, float]:
            path = Path(folder) / name / "metrics.jsonl"
            if not path.exists():
                return {}
            read = [json.loads(line) for line in path.read_text().splitlines()]
            return {r["step"]: r["train/loss"] for r in read if "train/loss" in r}

        env = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
        env["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # as on a CPU, and not TF32
        nowhere = subprocess.DEVNULL
        quiet: dict[str, Any] = dict(cwd=ROOT, env=env, stdout=nowhere, stderr=nowhere)
        alone = subprocess.Popen(command("alone", 1), **quiet)
        run = subprocess.Popen(command("run", gpus), **quiet)
        at = None
        while run.poll() is None:
            time.sleep(0.02)
            path = Path(folder) / "run" / "metrics.jsonl"
            at = len(path.read_text().splitlines()) if path.exists() else 0
            if at > every + 2:
                _kill(gpus - 1, folder)
                break
        first = run.wait()
        names = [p.name for p in (Path(folder) / "run/checkpoints").iterdir()]
        saved = sorted(int(n) for n in names if n.isdigit())  # not one that was being written
        again = subprocess.run(
            command("run", fewer), **{**quiet, "stdout": subprocess.PIPE}, text=True
        )
        alone.wait()
        whole, resumed = losses("alone"), losses("run")
        same = whole.keys() == resumed.keys()
        apart = max((abs(resumed[s] - x) / x for s, x in whole.items() if s in resumed), default=1)
        record = {
            "name": f"killed on {gpus}, goes on on {fewer}", "killed_after": at, "exit_code": first,
            "resumed_at": saved[-1] if saved else None, "again": again.returncode,
            "same_steps": same, "difference": apart,
        }  # fmt: skip
    print(
        f"one of {gpus} killed after step {at}: the launcher ends with {first}; on {fewer} it "
        f"goes on at step {record['resumed_at']} and ends with {again.returncode}; losses of all "
        f"{len(whole)} steps at most {apart:.1e} from an undisturbed run's"
    )
    if not same or first == 0 or again.returncode or apart > 1e-4:
        record["error"] = f"the run did not go on as it should: {again.stdout[-2000:]}"
        print(record["error"])
    return [record]


def _kill(process: int, folder: str) -> None:
    """SIGKILL to one process of the launcher's, found by its command line."""
    import psutil

    for one in psutil.process_iter(["cmdline"]):
        line = " ".join(one.info["cmdline"] or [])
        if "vimoe_jax.main" in line and f"{folder}/run" in line:
            if f"--process_id={process}" in line:
                one.kill()


KILLED = """
from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.data.dataset, c.data.source = "jsonl", "{data}"
    c.data.train_split = c.data.val_split = ""
    c.data.test_splits, c.data.vocab_size, c.data.text_length = (), 330, 64
    c.model.image_size, c.model.patch_size, c.model.dtype = 32, 8, "float32"
    c.model.decoder.moe.num_experts, c.model.decoder.moe.dispatcher = 4, "dropless"
    c.eval.every, c.eval.at_end = 0, False
    c.train.steps, c.train.batch_size, c.train.log_every = {steps}, 16, 1
    c.checkpoint.every, c.checkpoint.keep_best = {every}, 0
    return c
"""


if __name__ == "__main__":
    print(json.dumps(numbers(Variant(**json.loads(sys.argv[1])))))
