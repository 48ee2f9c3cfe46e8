"""Dense continued, MoE from scratch, MoE upcycled: validation loss for the same extra FLOPs.

python -m benchmarks.upcycling [--parent_steps=2000] [--extra=1.0] --out=o.json
python -m benchmarks.upcycling --seeds 2 --out=o2.json                 # one seed of three alone
python -m benchmarks.upcycling --report=docs/results --read o01.json o2.json
python -m benchmarks.upcycling --tiny --out=/tmp/o.json --report=/tmp        # a CPU, two minutes

For each seed a dense model is trained on ViScenes for `--parent_steps`. Then every arm gets
`--extra` times the parent's model FLOPs (counted as in `benchmarks.train_step`; K of E experts):

  dense        goes on
  scratch      the MoE of "copy" from random parameters
  copy         every expert is the dense MLP; E = 8, K = 2 in every second decoder layer
  drop         copies, half of each one's hidden units drawn anew
  granular     the same cost in quarters: 32 experts of F/4, 8 a token, in groups of 4 shards
  importance   8 experts of F/2, 2 a token: the dense MLP's own active width

so that arms that cost more a step take fewer steps. An arm's schedule is the cosine over all its
steps, the parent's included; the parent's ends with the dense arm's. Upcycled arms carry Adam's
moments, step and schedule over. Wall time is of training steps alone, their compilation left out,
so that arms can also be compared at equal time. Pictures are drawn in memory: no dataset, no input
pipeline.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.upcycling_report import ARMS, merged, report
from vimoe_jax.data.batch import Batch
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece

if TYPE_CHECKING:
    from vimoe_jax.config import Config
    from vimoe_jax.datasets.records import Record

POINTS = 10  # validations of an arm
TEXT = ("tokens", "targets", "weights", "segments", "positions")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is drawn and trained."""

    train: int = 96_000
    validation: int = 512
    draws: int = 4  # rows made of each picture: questions and wordings differ
    tokenizer: int = 2000  # pictures whose texts it is trained on
    vocab_size: int = 600
    text_length: int = 112
    batch_size: int = 128
    parent_steps: int = 2000
    extra: float = 1.0
    samples: int = 512
    width: int = 256
    depth: int = 6


TINY = Size(
    train=48, validation=16, draws=2, tokenizer=48, vocab_size=420, text_length=64, batch_size=8,
    parent_steps=40, samples=8, width=32, depth=2,
)  # fmt: skip


def drawn(split: str, numbers: Iterable[int]) -> list[Record]:
    """Pictures of a split of ViScenes by their numbers, as the dataset's builder draws them."""
    import io

    from vimoe_jax.datasets.records import QA, Record
    from vimoe_jax.datasets.viscenes import asking, covers, scenes

    records = []
    for index in numbers:
        rng = np.random.default_rng([0, ("train", "validation").index(split), index])
        if rng.random() >= 0.75:
            item, task = covers.sample(rng), "ocr_vqa"
            image, captions = covers.render(item, rng), covers.captions(item)
            asked = covers.questions(item, rng)
        else:
            scene, task = scenes.sample(rng, held_out=False), "vqa"
            image = scenes.render(scene, scenes.layout(scene, rng), rng)
            asked = asking.questions(scene, rng)
            captions = asking.captions(scene, rng)
        png, name = io.BytesIO(), f"{split}-{index}"
        image.save(png, "PNG")
        qa = [QA(f"{name}/0", "caption", "", tuple(captions))]
        qa += [
            QA(f"{name}/{i}", task, a.question, (a.answer,), a.type) for i, a in enumerate(asked, 1)
        ]
        records.append(Record(name, (png.getvalue(),), tuple(qa)))
    return records


def rows(
    split: str, numbers: Iterable[int], tokenizer: Any, c: Config, draws: int
) -> dict[str, np.ndarray]:
    """Pictures and several draws of each one's questions, as training rows (pictures, draws, …)."""
    from vimoe_jax.data.rows import RowMaker

    records = drawn(split, numbers)
    make = RowMaker(
        records,
        tokenizer,
        c.model.image_size,
        c.data.text_length,
        c.model.num_patches,
        cache_images=True,
    )
    made = [[make(i, seed) for seed in range(draws)] for i in range(len(records))]
    text = {name: np.stack([[d[name] for d in row] for row in made]) for name in TEXT}
    return {"pictures": np.stack([row[0]["pictures"] for row in made])} | text


class Pool:
    """Rows of the first pictures of a split, in memory; made by a process a core."""

    def __init__(self, split: str, count: int, tokenizer: Any, c: Config, draws: int):
        chunks = [range(i, min(i + 500, count)) for i in range(0, count, 500)]
        same = [itertools.repeat(x) for x in (tokenizer, c, draws)]
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
            parts = list(processes.map(rows, itertools.repeat(split), chunks, *same))
        whole = {
            name: np.concatenate([part.pop(name) for part in parts]) for name in (*TEXT, "pictures")
        }
        self.images = whole.pop("pictures")
        self.text = whole

    def batch(self, number: int, size: int, seed: int) -> Batch:
        """A batch is a function of (number, seed); each epoch has its own order and draws."""
        count = len(self.images)
        places = np.arange(number * size, (number + 1) * size)
        order = {e: np.random.default_rng([seed, int(e)]) for e in set(places // count)}
        shuffled = {
            e: (r.permutation(count), r.integers(0, 1 << 30, count)) for e, r in order.items()
        }
        picked = [
            (shuffled[p // count][0][p % count], shuffled[p // count][1][p % count]) for p in places
        ]
        pictures, draws = (np.array(x) for x in zip(*picked, strict=True))
        draws = draws % next(iter(self.text.values())).shape[1]
        text = {n: t[pictures, draws] for n, t in self.text.items()}
        return Batch(pictures=self.images[pictures], **text)

    def whole(self, size: int) -> list[Batch]:
        """Every picture once, first draw, in whole batches."""
        starts = range(0, len(self.images) - size + 1, size)
        first = Batch(pictures=self.images, **{n: t[:, 0] for n, t in self.text.items()})
        return [first.rows(i, i + size) for i in starts]


def configuration(size: Size, arm: str, steps: int) -> Config:
    """The project's configuration of an arm."""
    from vimoe_jax import config

    width = size.width
    moe: dict[str, Any] = {}
    if arm not in ("dense", "parent"):
        moe = {"num_experts": 8, "experts_per_token": 2, "group_size": 1024}
        moe |= {
            "granular": {"granularity": 4, "noise_std": 0.0},
            "importance": {"mlp_dim": width},
        }.get(arm, {})
    heads = dict(num_heads=width // 32, num_kv_heads=width // 32, head_dim=32)
    return config.resolve(
        {
            "model": {
                "image_size": 64,
                "unroll": size.depth,
                "patch_size": 8,
                "vision": {
                    "width": width, "depth": size.depth, "num_heads": width // 32,
                    "mlp_dim": 4 * width,
                },
                "decoder": {
                    "width": width, "depth": size.depth, "mlp_dim": 2 * width, **heads, "moe": moe,
                },
            },
            "data": {"text_length": size.text_length},
            "optim": {"learning_rate": 1e-3, "warmup_steps": min(200, max(steps // 10, 1))},
            "train": {"steps": steps, "batch_size": size.batch_size},
        }
    )  # fmt: skip


class Trained:
    """A model in training."""

    def __init__(self, name: str, c: Config, vocab: int, seed: int):
        import jax

        from vimoe_jax.model.blueprint import Blueprint
        from vimoe_jax.model.flops import model_flops
        from vimoe_jax.parallel.mesh import make_mesh
        from vimoe_jax.train.program import Program
        from vimoe_jax.train.step import make_loss_step

        # Of parameters and pictures; the configuration's own would be a constant of the program,
        # which a compilation cache then could not know again.
        self.name, self.seed = name, seed
        self.config, self.blueprint = c, Blueprint.create(c.model, vocab)
        self.mesh = make_mesh({}, jax.devices()[:1])
        self.program = Program.create(c, self.blueprint, self.mesh)
        self._step = self.program.step()
        self._loss = jax.jit(make_loss_step(self.blueprint, self.mesh))
        self.flops = model_flops(c, self.blueprint)
        self.state: Any = None

    def start(self) -> None:
        """Random parameters."""
        import jax

        self.state = self.program.init(jax.random.key(self.seed))

    def run(self, pool: Pool, validation: Pool, first: int) -> list[dict[str, float]]:
        """Trains from its state's step to the configured last one; returns the curve.

        Args:
          pool: what is trained on.
          validation: what losses are taken of.
          first: number of the first batch.
        """
        import jax

        from vimoe_jax.parallel.mesh import to_mesh

        size, seed = self.config.train.batch_size, self.seed
        done = int(self.state.step)
        steps = self.config.train.steps - done
        every = max(1, steps // POINTS)
        batch = to_mesh(pool.batch(first, size, seed), self.mesh)
        begun = time.perf_counter()
        self._step = self._step.lower(self.state, batch).compile()
        self._say(f"compiled in {time.perf_counter() - begun:.0f} s")
        curve = [self._point(validation, 0, 0.0)]
        seconds, begun = 0.0, time.perf_counter()
        for step in range(1, steps + 1):
            batch = to_mesh(pool.batch(first + step - 1, size, seed), self.mesh)
            self.state, _ = self._step(self.state, batch)
            if step % every == 0 or step == steps:
                jax.block_until_ready(self.state)
                seconds += time.perf_counter() - begun
                curve.append(self._point(validation, step, seconds))
                left = (steps - step) * seconds / step
                self._say(
                    f"step {step} of {steps}, loss {curve[-1]['loss']:.4f}, "
                    f"{1e3 * seconds / step:.1f} ms a step, {left:.0f} s left"
                )
                begun = time.perf_counter()
        return curve

    def _say(self, what: str) -> None:
        print(f"seed {self.seed}, {self.name}: {what}", file=sys.stderr, flush=True)

    def _point(self, validation: Pool, step: int, seconds: float) -> dict[str, float]:
        import jax

        from vimoe_jax.parallel.mesh import to_mesh

        params = self.state.all_params()
        batches = validation.whole(self.config.train.batch_size)
        sums = jax.device_get([self._loss(params, to_mesh(b, self.mesh)) for b in batches])
        weight = sum(float(s.weight) for s in sums)
        return {
            "step": step,
            "flops": step * self.flops,
            "seconds": seconds,
            "loss": sum(float(s.loss) for s in sums) / weight,
            "accuracy": sum(float(s.correct) for s in sums) / weight,
        }


def upcycled(parent: Trained, state: Any, arm: Trained, method: str, batches: Any, samples: int):
    """The arm's state, from a copy of the parent's."""
    from vimoe_jax.upcycle import convert, weights
    from vimoe_jax.upcycle.methods import Upcycling
    from vimoe_jax.upcycle.migration import Migration

    how, migration = Upcycling(method, samples=samples), Migration(parent.blueprint, arm.blueprint)
    params, seed, mesh = state.all_params(), arm.seed, arm.mesh
    layouts = convert.plan(migration, how, seed, params, batches, mesh)
    made = weights.upcycle(migration, dict(params), layouts, how, mesh, seed)
    return convert.state(migration, state, made, layouts, arm.program)


def study(size: Size, seeds: Sequence[int], save: Callable[[dict[str, Any]], None]) -> None:
    """Trains all arms of all seeds.

    Args:
      size: of pictures, model and training.
      seeds: of parameters and of the order of pictures.
      save: gets all curves and sizes so far after each arm.
    """
    import jax

    from vimoe_jax.data import prompts

    begun = time.perf_counter()
    qa = [one for record in drawn("train", range(size.tokenizer)) for one in record.qa]
    texts = [
        t
        for one in qa
        for t in (*prompts.all_prompts(one, "plain"), *prompts.all_targets(one, "plain"))
    ]
    tokenizer = train_sentencepiece(texts, size.vocab_size)
    vocab = -(-tokenizer.vocab_size // 64) * 64
    shape = configuration(size, "dense", 2)
    train = Pool("train", size.train, tokenizer, shape, size.draws)
    validation = Pool("validation", size.validation, tokenizer, shape, 1)
    print(f"pictures and rows: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)

    costs = {arm: model_flops_of(size, arm, vocab) for arm in ARMS}
    budget = size.extra * size.parent_steps * costs["dense"]
    of = {"size": dataclasses.asdict(size), "jax": jax.__version__}
    of["device"] = jax.devices()[0].device_kind
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        whole = size.parent_steps + round(budget / costs["dense"])
        parent = Trained("parent", configuration(size, "parent", whole), vocab, seed)
        parent.start()
        short = dataclasses.replace(parent.config.train, steps=size.parent_steps)
        parent.config = dataclasses.replace(parent.config, train=short)
        before = parent.run(train, validation, 0)
        runs.append({"arm": "parent", "seed": seed, "curve": before})
        scoring = [
            train.batch(i, size.batch_size, seed)
            for i in range(-(-size.samples // size.batch_size))
        ]
        for name in ARMS:
            steps = round(budget / costs[name])
            own = steps if name == "scratch" else size.parent_steps + steps
            arm = Trained(name, configuration(size, name, own), vocab, seed)
            if name == "scratch":
                arm.start()
            elif name == "dense":
                arm.state = jax.tree.map(lambda x: x.copy(), parent.state)
            else:
                copy = jax.tree.map(lambda x: x.copy(), parent.state)
                arm.state = upcycled(parent, copy, arm, name, scoring, size.samples)
            first = 0 if name == "scratch" else size.parent_steps
            curve = arm.run(train, validation, first)
            sizes = arm.blueprint.num_parameters(), arm.blueprint.num_active_parameters()
            runs.append(
                {
                    "arm": name,
                    "seed": seed,
                    "curve": curve,
                    "parameters": sizes[0],
                    "active": sizes[1],
                }
            )
            save(of | {"runs": runs})


def model_flops_of(size: Size, arm: str, vocab: int) -> float:
    """FLOPs of an arm's step."""
    from vimoe_jax.model.blueprint import Blueprint
    from vimoe_jax.model.flops import model_flops

    c = configuration(size, arm, 2)
    return model_flops(c, Blueprint.create(c.model, vocab))


def main(argv: Sequence[str]) -> int:
    """Runs the study, or writes its report, or both."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a shape for testing on a CPU")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 1 2, with --tiny 0")
    parser.add_argument("--parent_steps", type=int, help="steps of the dense parent")
    parser.add_argument("--extra", type=float, help="each arm's FLOPs over the parent's")
    parser.add_argument("--out", type=Path, help="where the numbers go, as JSON")
    parser.add_argument(
        "--read", type=Path, nargs="+", help="numbers of earlier runs, in place of a new one"
    )
    parser.add_argument("--report", type=Path, help="folder for upcycling.md and upcycling.png")
    given = parser.parse_args(argv)
    if given.read:
        read = [json.loads(path.read_text(encoding="utf-8")) for path in given.read]
        results = merged(read)
    else:
        told = {n: v for n in ("parent_steps", "extra") if (v := getattr(given, n)) is not None}
        size = dataclasses.replace(TINY if given.tiny else Size(), **told)
        results = {}

        def save(new: dict[str, Any]) -> None:
            results.update(new)
            if given.out:  # after each arm: a machine may be taken away
                given.out.write_text(json.dumps(new) + "\n", encoding="utf-8")

        study(size, given.seeds or ((0,) if given.tiny else (0, 1, 2)), save)
    if given.report:
        print(report(results, given.report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
