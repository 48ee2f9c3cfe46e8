"""All scores of one split: generated answers, their metrics and floors, the experts' load."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vimoe_jax.config import Data, Eval
from vimoe_jax.data import datasets, pipeline, prompts, sources
from vimoe_jax.data.images import decode as decode_image
from vimoe_jax.data.mixture import style_of
from vimoe_jax.data.records import QA
from vimoe_jax.data.sources import EvalSplit
from vimoe_jax.data.text import PROFILES
from vimoe_jax.errors import UserError
from vimoe_jax.evaluate import captions, vqa
from vimoe_jax.evaluate import predictions as predictions_lib
from vimoe_jax.evaluate.decode import make_greedy
from vimoe_jax.evaluate.predictions import Prediction
from vimoe_jax.model.blueprint import Params
from vimoe_jax.model.tokens import TokenKind
from vimoe_jax.parallel import distributed
from vimoe_jax.parallel.mesh import to_mesh
from vimoe_jax.parallel.rules import use_mesh
from vimoe_jax.progress import Progress
from vimoe_jax.train.guard import Interrupt
from vimoe_jax.train.loop import fixed_batches
from vimoe_jax.train.setup import Run, write_json

THUMBNAIL = 256  # pixels


class Interrupted(Exception):
    """A signal came; nothing of this split was written."""


def evaluate_split(
    run: Run,
    params: Params,
    split: EvalSplit,
    *,
    data: Data | None = None,
    interrupt: Interrupt | None = None,
) -> dict[str, float]:
    """Scores a split and leaves `DIR/eval/NAME/` (predictions, thumbnails, experts' load).

    Args:
      run: the model's.
      params: the model.
      split: of a dataset, trained on or not.
      data: where it lies; the run's own if not given.
      interrupt: looked at between batches.

    Returns:
      Metrics by name, without prefix: `vqa/accuracy`, `vqa/floor_per_type`, `caption/cider`, …
      Of several processes, the first has them, the others nothing.
      `metrics.json` has them beside `scoring`, which says how texts were compared.

    Raises:
      Interrupted: a signal came meanwhile.
      UserError: the split does not exist, or captions cannot be split into words.
    """
    data = data or run.config.data
    label = scoring(run.config.eval, split)
    source = sources.open_eval(data, split)
    predictions = predict(run, params, source, interrupt=interrupt, name=split.name)
    experts = expert_report(run, params, source)
    metrics = {}
    if distributed.is_lead():
        metrics = _score(run, data, split, source, predictions, label, experts)
    distributed.wait(f"the scores of {split.name}")
    return metrics


def _score(
    run: Run,
    data: Data,
    split: EvalSplit,
    source: Any,
    predictions: list[Prediction],
    label: dict[str, str],
    experts: dict[str, Any],
) -> dict[str, float]:
    """Metrics of a split's predictions; writes all that is kept of them."""
    profile = PROFILES[label["profile"]]
    out = run.workdir / "eval" / split.name
    (out / "images").mkdir(parents=True, exist_ok=True)
    predictions_lib.write(out / "predictions.jsonl", predictions)
    metrics = vqa.score(predictions, profile)
    metrics |= captions.score(predictions, profile, label["tokenization"])
    metrics |= vqa.floors(_training_questions(run, data, split), predictions, profile)
    if left_out := metrics.get("vqa/placeholders"):
        print(
            f"warning: {split.name}: {left_out:,} questions not scored: their answers are "
            "placeholders",
            file=sys.stderr,
        )
    _thumbnails(out / "images", source, predictions, run.config.eval.thumbnails)
    if experts["layers"]:
        write_json(out / "experts.json", experts)
    write_json(out / "metrics.json", {"scoring": label, **metrics})
    return metrics


def scoring(c: Eval, split: EvalSplit) -> dict[str, str]:
    """How texts are compared: names of profile and tokenisation, and both in words.

    Raises:
      UserError: captions are to be split into words, and nothing installed does so.
    """
    name = c.profile
    if name == "auto":
        published = split.part.name in datasets.NAMES
        name = datasets.get(split.part.name).profile if published else "plain"
    return {
        "profile": name,
        "comparison": str(PROFILES[name]),
        "tokenization": c.tokenization,
        "tokens": captions.describe(c.tokenization),
    }


def _training_questions(run: Run, data: Data, split: EvalSplit) -> list[QA]:
    """What floors are learnt from: that dataset's own training split, else what the run saw."""
    try:
        try:
            own = sources.open_part(data, split.part, data.train_split, quiet=True)
        except sources.NoSplit:
            own = run.train_source
        return list(sources.questions(own))
    except UserError as e:
        print(f"warning: no floors of {split.name}: {e}", file=sys.stderr)
        return []


def predict(
    run: Run,
    params: Params,
    source: Any,
    *,
    interrupt: Interrupt | None = None,
    name: str = "",
    quiet: bool = False,
) -> list[Prediction]:
    """Greedy answers to every question of a source, in order.

    Each of several processes answers its share of every batch and gets the answers of all.
    """
    c, tokenizer = run.config, run.tokenizer
    greedy = make_greedy(
        run.blueprint,
        run.mesh,
        max_new_tokens=c.eval.max_new_tokens,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    everywhere = NamedSharding(run.mesh, PartitionSpec())
    answer = jax.jit(lambda p, b: (greedy(p, b), b["valid"]), out_shardings=everywhere)
    batches = pipeline.eval_batches(
        source,
        tokenizer,
        image_size=c.model.image_size,
        prompt_length=c.data.prompt_length,
        batch_size=c.eval.batch_size,
        resize=c.data.resize,
        limit=c.eval.limit,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    pictures = min(len(source), c.eval.limit or len(source))
    progress, shown = (
        Progress(pictures, 0, f"evaluating {name or 'all'}: picture"),
        time.monotonic(),
    )
    record_id = functools.cache(lambda index: source[index].id)
    predictions = []
    keys = ("image", "tokens", "length", "valid")
    for batch, items in batches:
        if interrupt is not None and interrupt.agreed():
            raise Interrupted
        on_mesh = to_mesh({k: batch[k] for k in keys}, run.mesh)
        answers, valid = jax.device_get(answer(params, on_mesh))
        for ids, good, (index, qa) in zip(answers.tolist(), valid, items, strict=False):
            if not good:
                continue
            text = prompts.answer_in(tokenizer.decode(ids), qa, style_of(source, index))
            predictions.append(
                Prediction(
                    record_id=record_id(index),
                    record_index=index,
                    qa_id=qa.id,
                    task=qa.task,
                    type=qa.type,
                    question=qa.question,
                    answers=qa.answers,
                    prediction=text,
                )
            )
        waited = time.monotonic() - shown
        if not quiet and (waited > 10 or sys.stderr.isatty()) and items:
            shown = time.monotonic()
            progress.show(min(items[-1][0] + 1, pictures), f"{len(predictions)} questions")
    for message in getattr(batches, "skipped", []):
        progress.say(f"warning: skipped {message}", everywhere=True)
    return predictions


def expert_report(run: Run, params: Params, source: Any, batches: int = 4) -> dict[str, Any]:
    """Load, drops and entropy of each MoE layer over a few batches, with evaluation's routing.

    Kinds of token that a layer never sees are left out of what is listed by kind.
    """

    def forward(params: Params, batch: dict[str, jax.Array]) -> Any:
        with use_mesh(run.mesh):
            return run.blueprint.build(run.blueprint.cast(params))(batch).moe

    total = None
    parts = (getattr(run.blueprint.config, part) for part in ("vision", "connector", "decoder"))
    if any(part.moe.num_experts for part in parts):
        step = jax.jit(forward, out_shardings=NamedSharding(run.mesh, PartitionSpec()))
        for batch in fixed_batches(run, source, batches):
            report = jax.device_get(step(params, to_mesh(batch, run.mesh)))
            total = report if total is None else jax.tree.map(np.add, total, report)
    layers = []
    for name, report in run.blueprint.layers_of(total or {}).items():
        routed = np.asarray(report.routed)
        by_kind = routed / np.maximum(routed.sum(-1, keepdims=True), 1)
        drops = np.asarray(report.drop_fraction_by_kind())
        layers.append(
            {
                "name": name,
                "load": np.asarray(report.load()).tolist(),
                "max_load": float(report.max_load()),
                "drop_fraction": float(report.drop_fraction()),
                "drop_fraction_by_kind": {
                    kind.name.lower(): float(drops[kind])
                    for kind in TokenKind
                    if report.tokens[kind] > 0
                },
                "unserved_fraction": float(report.unserved_fraction()),
                "entropy": float(report.mean_entropy()),
                "by_kind": {
                    kind.name.lower(): by_kind[kind].tolist()
                    for kind in TokenKind
                    if routed[kind].sum()
                },
            }
        )
    return {"layers": layers}


def _thumbnails(directory: Path, source: Any, predictions: list[Prediction], count: int) -> None:
    """Saves pictures spread evenly over the split."""
    from PIL import Image

    for old in directory.glob("*.png"):
        old.unlink()
    indices = sorted({p.record_index for p in predictions})
    for index in indices[:: max(1, len(indices) // max(count, 1))][:count]:
        pixels = decode_image(source[index].image, THUMBNAIL, "pad", name=str(index))
        Image.fromarray(pixels).save(directory / f"{index}.png")
