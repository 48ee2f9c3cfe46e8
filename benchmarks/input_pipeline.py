"""The input pipeline beside what it cannot beat: pictures a second, resuming, memory, steps.

    python -m benchmarks.input_pipeline [--out=FILE.json]
    python -m benchmarks.input_pipeline --parts=train --model=siglip_qwen      # on a GPU

It draws its own JPEGs from a seed, in COCO's sizes, quality and bytes a picture, each with four
questions, as a JSONL source in a temporary folder. Parts:

  speed    pictures a second of `train_batches` (read, decode, tokenise, batch) by threads and by
           worker processes, over those of a bare loop of Pillow's (read, decode, resize; nothing
           else) by as many threads or processes. Goal: at least 0.85. Also CPU time a picture by
           threads over the bare loop's, which neighbours on the machine do not change
  pairs    question-answer pairs a second, a picture's questions in one row over one a row
  resume   seconds to the first batch at record 1,000,000. Goal: at most 2
  memory   of this process and its workers over an epoch. Goal: flat
  train    seconds a step on the pipeline over those on one constant batch that is already on the
           device. Goal: at most 1.03 where there are cores to spare

Variants take turns in every round, so that a drifting clock hits all alike; medians.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vimoe_jax.data import pipeline
from vimoe_jax.data.prompts import prompt_of
from vimoe_jax.datasets.jsonl import JsonlSource
from vimoe_jax.datasets.records import QA, Record
from vimoe_jax.text.tokenizers import Tokenizer
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece

# JAX is loaded by the part that trains only: worker processes import this module.
if TYPE_CHECKING:
    from vimoe_jax.config import Config

SIZES = ((640, 480), (640, 427), (480, 640), (640, 426), (500, 375), (427, 640))
NOUNS = ("con mèo", "chiếc xe đạp", "người đàn ông", "cái bàn", "quả bóng", "toà nhà", "con chó")
COLOURS = ("đỏ", "xanh lá", "trắng", "đen", "vàng", "nâu")
TEXT_LENGTH, PATCH = 96, 16
MIB = 2**20
MODELS = {
    "small": dict(
        vision=dict(width=192, depth=4, num_heads=3, mlp_dim=768),
        decoder=dict(width=192, depth=4, num_heads=4, num_kv_heads=2, head_dim=48, mlp_dim=768),
        dtype="float32",
        batch=16,
    ),
    "siglip_qwen": dict(
        vision=dict(width=768, depth=12, num_heads=12, mlp_dim=3072),
        decoder=dict(
            width=1024, depth=28, num_heads=16, num_kv_heads=8, head_dim=128, mlp_dim=3072,
            vocab_size=151936, rope_theta=1e6,
        ),
        dtype="bfloat16",
        batch=32,
    ),
}  # fmt: skip


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Gradients and noise at several scales, which compress like a photograph."""
    total = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 90), (12, 45), (48, 22), (160, 14)):
        coarse = rng.normal(0, 1, (cells * height // width + 1, cells, 3))
        coarse = (coarse.mean(-1, keepdims=True) + coarse * 0.4).clip(-2, 2) * 60 + 128
        layer = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
        layer = np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        total += (layer - 128) * (strength / 60)
    total += rng.normal(128, 5, (height, width, 1))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def questions(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Four lines of a JSONL, without the picture."""
    noun, other = rng.choice(NOUNS, 2, replace=False)
    colour, number = rng.choice(COLOURS), int(rng.integers(1, 9))
    return [
        dict(task="vqa", question=f"{noun} màu gì", answers=[f"màu {colour}"]),
        dict(task="vqa", question=f"có bao nhiêu {noun} trong ảnh", answers=[str(number)]),
        dict(task="vqa", question=f"{noun} đang ở đâu", answers=[f"ở bên cạnh {other}"]),
        dict(task="caption", answers=[f"Có {number} {noun} màu {colour} ở bên cạnh {other}."]),
    ]


def make_source(folder: Path, pictures: int, seed: int = 0) -> JsonlSource:
    """Draws the pictures and writes the JSONL."""
    with open(folder / "data.jsonl", "w", encoding="utf-8") as file:
        for i in range(pictures):
            rng = np.random.default_rng([seed, i])
            photograph(rng, *SIZES[i % len(SIZES)]).save(folder / f"{i:06}.jpg", quality=90)
            for line in questions(rng):
                row = {"image": f"{i:06}.jpg", **line}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return JsonlSource(folder / "data.jsonl")


@dataclasses.dataclass(frozen=True)
class ManyRecords:
    """Claims any number of records over one small picture."""

    picture: bytes
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        qa = QA(f"q{index}", "vqa", "con mèo màu gì", ("màu đen",))
        return Record(f"{index}.jpg", (self.picture,), (qa,))


def bare(paths: list[str], size: int) -> int:
    """What no pipeline can do without; returns how many pictures."""
    for path in paths:
        with Image.open(path) as image:
            square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        np.asarray(square)
    return len(paths)


class Bench:
    """The source, the tokenizer and the settings that all parts share."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args = args
        self.source = make_source(folder, args.pictures)
        asked = list(self.source.questions())
        texts = itertools.chain(map(prompt_of, asked), *(qa.answers for qa in asked))
        self.tokenizer: Tokenizer = train_sentencepiece(texts, 325)

    @contextlib.contextmanager
    def batches(self, workers: int, source: Any = None, **options: Any) -> Iterator[Any]:
        """`train_batches`, closed in the end."""
        settings = dict(
            image_size=self.args.size,
            patches=(self.args.size // PATCH) ** 2,
            text_length=TEXT_LENGTH,
            batch_size=self.args.batch,
            seed=0,
        )
        opened = pipeline.train_batches(
            source or self.source, self.tokenizer, workers=workers, **(settings | options)
        )
        try:
            yield opened
        finally:
            opened.close()

    def drain(self, workers: int) -> int:
        """Batches that may lie ready: after so many, what comes is made while one waits."""
        # A worker holds some in its queue, some before it, and one under way; threads hold less.
        return 4 + 10 * max(workers, pipeline.NUM_THREADS)

    def timed(self, batches: Any, workers: int) -> tuple[float, float, float]:
        """Rows and pairs a second and rows a CPU second, once nothing made before is left."""
        for _ in range(self.drain(workers)):
            next(batches)
        count = -(-self.args.pictures // self.args.batch)
        pairs, start, cpu = 0, time.perf_counter(), time.process_time()
        for _ in range(count):
            pairs += int(next(batches).segments.max(1).sum())
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        rows = count * self.args.batch
        # Until the buffers are full again: what runs next should have the cores to itself.
        time.sleep(2 * self.drain(workers) * self.args.batch * seconds / rows)
        return rows / seconds, pairs / seconds, rows / max(cpu, 1e-9)

    def speed(self) -> dict[str, Any]:
        """Pictures a second, pipeline and bare loop, threads and processes."""
        paths = [self.source.name(i) for i in range(len(self.source))]
        rates: dict[str, list[float]] = collections.defaultdict(list)

        def run_bare(name: str, pool: concurrent.futures.Executor, parts: int) -> None:
            # Small chunks, twice over: the last one to finish should not be waited for long.
            chunks = [paths[i :: parts * 8] for i in range(parts * 8)] * 2
            start, cpu = time.perf_counter(), time.process_time()
            count = sum(pool.map(bare, chunks, itertools.repeat(self.args.size)))
            rates[name].append(count / (time.perf_counter() - start))
            rates[f"{name}_cpu"].append(count / (time.process_time() - cpu))

        threads, workers = pipeline.NUM_THREADS, self.args.workers
        spawn = multiprocessing.get_context("spawn")
        with (
            concurrent.futures.ThreadPoolExecutor(threads) as thread_pool,
            concurrent.futures.ProcessPoolExecutor(workers, spawn) as process_pool,
            self.batches(0) as by_threads,
            self.batches(workers) as by_workers,
        ):
            for turn in range(self.args.rounds + 1):  # the first one warms up
                run_bare("bare_threads", thread_pool, threads)
                rate, _, by_cpu = self.timed(by_threads, 0)
                rates["threads"].append(rate)
                rates["threads_cpu"].append(by_cpu)
                run_bare("bare_workers", process_pool, workers)
                rates["workers"].append(self.timed(by_workers, workers)[0])
                if not turn:
                    rates.clear()
        del rates["bare_workers_cpu"]  # this process only waits for them
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, parts in (("threads", threads), ("workers", workers)):
            pairs = zip(rates[name], rates[f"bare_{name}"], strict=True)
            ratio = statistics.median(rate / limit for rate, limit in pairs)
            medians[f"{name}_ratio"] = ratio
            print(
                f"speed, {parts} {name}: {medians[name]:.0f} pictures/s, "
                f"bare loop {medians[f'bare_{name}']:.0f}: {ratio:.2f} ×"
            )
        medians["cpu_ratio"] = medians["bare_threads_cpu"] / medians["threads_cpu"]
        print(f"speed, CPU time a picture: {medians['cpu_ratio']:.2f} × the bare loop's")
        return medians

    def pairs(self) -> dict[str, float]:
        """Question-answer pairs a second: all of a picture in one row, and one a row."""
        rates: dict[str, list[float]] = {"shared": [], "single": []}
        with self.batches(0) as shared, self.batches(0, max_questions=1) as single:
            for _ in range(self.args.rounds):
                for name, batches in (("shared", shared), ("single", single)):
                    rates[name].append(self.timed(batches, 0)[1])
        result = {name: statistics.median(values) for name, values in rates.items()}
        ratios = (a / b for a, b in zip(rates["shared"], rates["single"], strict=True))
        result["ratio"] = statistics.median(ratios)
        print(
            f"pairs: {result['shared']:.0f}/s with a picture's questions in one row, "
            f"{result['single']:.0f}/s with one a row: {result['ratio']:.2f} ×"
        )
        return result

    def resume(self) -> dict[str, float]:
        """Seconds from `train_batches` to the first batch at record 1,000,000."""
        picture = io.BytesIO()
        photograph(np.random.default_rng(0), 640, 480).save(picture, "JPEG", quality=90)
        many = ManyRecords(picture.getvalue(), 4_000_000)
        result = {}
        for name, workers in (("threads", 0), ("workers", self.args.workers)):
            times: dict[int, list[float]] = {0: [], 1_000_000 // self.args.batch: []}
            for _, first in itertools.product(range(self.args.rounds), times):
                start = time.perf_counter()
                with self.batches(workers, many, start=first) as batches:
                    next(batches)
                    times[first].append(time.perf_counter() - start)
            fresh, resumed = map(statistics.median, times.values())
            result |= {f"{name}_fresh": fresh, f"{name}_resumed": resumed}
            print(f"resume, {name}: {resumed:.2f} s at record 1,000,000, {fresh:.2f} s at 0")
        return result

    def memory(self) -> dict[str, Any]:
        """MiB of this process and its workers over an epoch of at least 100 batches."""
        result = {}
        for name, workers in (("threads", 0), ("workers", self.args.workers)):
            with self.batches(workers) as batches:
                for _ in range(2 * self.drain(workers)):
                    next(batches)
                used = []
                for _ in range(max(100, self.args.pictures // self.args.batch)):
                    next(batches)
                    used.append(resident_mib())
            rise = float(np.polyfit(np.arange(len(used)) * self.args.batch / 1000, used, 1)[0])
            result[name] = dict(
                start=used[0], middle=used[len(used) // 2], end=used[-1], per_thousand=rise
            )
            print(
                f"memory, {name}: {used[0]:.0f} MiB at the start, {used[len(used) // 2]:.0f} in "
                f"the middle, {used[-1]:.0f} at the end; {rise:+.2f} MiB a thousand pictures"
            )
        return result

    def train(self) -> dict[str, Any]:
        """Seconds a step on the pipeline's batches and on a constant one."""
        import jax

        from vimoe_jax.parallel.mesh import make_mesh, to_mesh

        c = configuration(self.args, self.tokenizer.vocab_size)
        mesh = make_mesh({}, jax.devices()[:1])
        step = make_step(c, mesh)
        times: dict[str, list[float]] = {"constant": [], "pipeline": []}
        options = dict(batch_size=c.train.batch_size, workers=self.args.train_workers)
        with self.batches(**options) as batches:

            def fetch() -> Any:
                return to_mesh(next(batches).for_step(), mesh)

            constant = fetch()
            for turn in range(self.args.rounds + 1):  # the first one compiles
                for name, get in (("constant", lambda: constant), ("pipeline", fetch)):
                    for _ in range(self.drain(self.args.train_workers) if get is fetch else 0):
                        next(batches)  # what was made while the constant batch was trained on
                    jax.block_until_ready(step(get()))
                    start = time.perf_counter()
                    for _ in range(self.args.steps):
                        metrics = step(get())
                    jax.block_until_ready(metrics)
                    times[name].append((time.perf_counter() - start) / self.args.steps)
                    time.sleep(2)  # buffers fill: not at the cost of the constant batch's turn
                if not turn:
                    times = {name: [] for name in times}
        result: dict[str, Any] = {name: statistics.median(t) for name, t in times.items()}
        pairs = zip(times["pipeline"], times["constant"], strict=True)
        result["ratio"] = statistics.median(a / b for a, b in pairs)
        result["device"] = jax.devices()[0].device_kind
        print(
            f"train, {self.args.model}, {c.train.batch_size} rows a step, {result['device']}: "
            f"{result['pipeline'] * 1e3:.1f} ms a step, "
            f"{result['constant'] * 1e3:.1f} on a constant batch: {result['ratio']:.3f} ×"
        )
        return result


def configuration(args: argparse.Namespace, vocab_size: int) -> Config:
    """The configuration of one of `MODELS`."""
    from vimoe_jax import config

    model, c = MODELS[args.model], config.defaults()
    c.model.image_size, c.model.patch_size, c.model.dtype = args.size, PATCH, model["dtype"]
    c.model.vision.update(model["vision"])
    c.model.decoder.update({"vocab_size": vocab_size} | model["decoder"])
    c.train.batch_size, c.data.text_length = model["batch"], TEXT_LENGTH
    return config.resolve(c.to_dict())


def make_step(c: Config, mesh: Any) -> Callable[[Any], Any]:
    """The project's own training step, as a function of the batch alone that keeps its state."""
    import jax

    from vimoe_jax.model.blueprint import Blueprint
    from vimoe_jax.train.program import Program

    program = Program.create(c, Blueprint.create(c.model, c.model.decoder.vocab_size), mesh)
    # A generator that compiles fast: which random weights these are does not matter.
    state = program.init(jax.random.key(c.seed, impl="unsafe_rbg"))
    compiled = program.step()

    def step(batch: Any) -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    return step


def resident_mib() -> float:
    """Of this process and its children."""
    import psutil

    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / MIB


def main() -> None:
    """Runs the parts asked for and prints a line or two for each."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--parts", default="speed,pairs,resume,memory")
    parser.add_argument("--train", action="store_true", help="also the part `train`")
    parser.add_argument("--model", default="small", choices=list(MODELS))
    parser.add_argument("--pictures", type=int, default=320)
    parser.add_argument("--size", type=int, default=224, help="pixels on a side")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=cores, help="worker processes")
    parser.add_argument("--train_workers", type=int, default=0, help="of `train`; 0 for threads")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="of each round of `train`")
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    args = parser.parse_args()
    print(f"{cores} cores, {args.size} pixels, {args.batch} rows a batch, {args.pictures} pictures")
    parts = [*filter(None, args.parts.split(",")), *(["train"] if args.train else [])]
    results: dict[str, Any] = {"cores": cores, "settings": vars(args) | {"out": str(args.out)}}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        for part in dict.fromkeys(parts):
            results[part] = getattr(bench, part)()
            sys.stdout.flush()
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
