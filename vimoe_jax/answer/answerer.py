"""Questions to answers, batch by batch."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from vimoe_jax.answer.greedy import make_greedy
from vimoe_jax.base.progress import Progress
from vimoe_jax.data import pipeline, prompts
from vimoe_jax.data.mixture import style_of
from vimoe_jax.model.blueprint import Params
from vimoe_jax.parallel.mesh import to_mesh
from vimoe_jax.run.workdir import Run
from vimoe_jax.scores.predictions import Prediction


class Interrupted(Exception):
    """It was asked to stop between two batches; nothing of this split was written."""


def predict(
    run: Run,
    params: Params,
    source: Any,
    *,
    stop: Callable[[], bool] | None = None,
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
        if stop is not None and stop():
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
