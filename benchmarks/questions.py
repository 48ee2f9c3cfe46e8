"""What sharing a picture buys: question-answer pairs a second of whole training steps.

python -m benchmarks.questions [--questions=4] [--tokens=24] [--rows=16] [--rounds=9] [--out=o.json]

Two ways to train on the same pairs, with the model of configs/moe_small.py and the project's own
step (forward, backward, update): `--rows` rows of `--questions` segments of `--tokens` text tokens
each, and as many rows as pairs, one segment each. Rows are as long as they need to be. 24 tokens
are the median of a ViScenes question with its answer under moe_small's tokenizer. Batches are
random; both compiled steps take turns, and the medians of their rounds are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vimoe_jax.config import Model
from vimoe_jax.data.batch import Batch

CONFIG = "configs/moe_small.py"
VOCAB = 640  # what moe_small's tokenizer is rounded up to
STEPS = 3  # a round


def batch(rows: int, questions: int, tokens: int, c: Model) -> Batch:
    """Random rows of `questions` segments of `tokens` tokens; half of each is the answer."""
    rng, length = np.random.default_rng(0), questions * tokens
    place = np.tile(np.arange(tokens, dtype=np.int32), questions)
    number = np.repeat(np.arange(1, questions + 1, dtype=np.int32), tokens)
    return Batch.picture_first(
        rng.integers(0, 256, (rows, c.image_size, c.image_size, 3), dtype=np.uint8),
        c.num_patches,
        tokens=rng.integers(0, VOCAB, (rows, length), dtype=np.int32),
        targets=rng.integers(0, VOCAB, (rows, length), dtype=np.int32),
        weights=np.tile((place >= tokens // 2).astype(np.float32), (rows, 1)),
        segments=np.tile(number, (rows, 1)),
        positions=np.tile(place, (rows, 1)),
    )


def stepper(rows: int, questions: int, tokens: int) -> Callable[[], Any]:
    """A function that takes one training step, compiled and warm; it returns the step's metrics."""
    import jax

    from vimoe_jax import config
    from vimoe_jax.model.blueprint import Blueprint
    from vimoe_jax.parallel.mesh import make_mesh, to_mesh
    from vimoe_jax.train.program import Program

    c = config.load(CONFIG)
    c = dataclasses.replace(c, train=dataclasses.replace(c.train, batch_size=rows))
    mesh, blueprint = make_mesh({}, jax.devices()[:1]), Blueprint.create(c.model, VOCAB)
    program = Program.create(c, blueprint, mesh)
    state, step = program.init(jax.random.key(0)), program.step()
    inputs = to_mesh(batch(rows, questions, tokens, c.model), mesh)

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, inputs)
        return jax.block_until_ready(metrics)

    for _ in range(2):
        call()
    return call


def compare(rows: int, questions: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Times both ways in alternating rounds.

    Returns:
      Pairs a second of each round and their median for "together" and "apart", their ratio, and
      what was measured on what.
    """
    import jax

    ways = {
        "together": stepper(rows, questions, tokens),
        "apart": stepper(rows * questions, 1, tokens),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                call()
            seconds = (time.perf_counter() - start) / STEPS
            rates[name].append(rows * questions / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "device": jax.devices()[0].device_kind,
        "rows": rows,
        "questions": questions,
        "tokens": tokens,
        "pairs_per_second": medians,
        "rounds": rates,
        "ratio": medians["together"] / medians["apart"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Prints both rates and their ratio."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--questions", type=int, default=4, help="that share a picture")
    parser.add_argument("--tokens", type=int, default=24, help="of a question and its answer")
    parser.add_argument("--rows", type=int, default=16, help="of several questions, a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    options = parser.parse_args(argv)
    record = compare(options.rows, options.questions, options.tokens, options.rounds)
    for name, rate in record["pairs_per_second"].items():
        low, high = min(record["rounds"][name]), max(record["rounds"][name])
        print(f"{name}: {rate:.1f} pairs/s (rounds {low:.1f} to {high:.1f})")
    print(f"{options.questions} questions a picture: {record['ratio']:.2f} ×")
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
