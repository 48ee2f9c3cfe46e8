"""All scores of one split: generated answers, their metrics and floors, the experts' load."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vimoe_jax import datasets
from vimoe_jax.answer.answerer import Answerer
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import write_json
from vimoe_jax.config.data import Data
from vimoe_jax.config.evaluate import Eval
from vimoe_jax.data import sources
from vimoe_jax.data.sources import EvalSplit
from vimoe_jax.datasets.images import decode as decode_image
from vimoe_jax.datasets.records import QA, questions
from vimoe_jax.evaluate.experts import ExpertProbe
from vimoe_jax.model.blueprint import Params
from vimoe_jax.parallel import distributed
from vimoe_jax.run.workdir import Run
from vimoe_jax.scores import captions, vqa
from vimoe_jax.scores import predictions as predictions_lib
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import PROFILES

THUMBNAIL = 256  # pixels


class Evaluator:
    """Scores splits with one model: what is compiled for the first serves all of them.

    Args:
      run: the model's.
      params: the model, on the run's mesh.
    """

    def __init__(self, run: Run, params: Params):
        self.run = run
        self.answerer, self.experts = Answerer(run, params), ExpertProbe(run, params)

    def evaluate(
        self,
        split: EvalSplit,
        *,
        data: Data | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> dict[str, float]:
        """Scores a split and leaves `DIR/eval/NAME/` (predictions, thumbnails, experts' load).

        Args:
          split: of a dataset, trained on or not.
          data: where it lies; the run's own if not given.
          stop: asked between batches; the same answer in every process.

        Returns:
          Metrics by name, without prefix: `vqa/accuracy`, `vqa/floor_per_type`, `caption/cider`, …
          Of several processes, the first has them, the others nothing.
          `metrics.json` has them beside `scoring`, which says how texts were compared.

        Raises:
          Interrupted: `stop` said so.
          UserError: the split does not exist, or captions cannot be split into words.
        """
        data = data or self.run.config.data
        label = scoring(self.run.config.eval, split)
        source = sources.open_eval(data, split)
        predictions = self.answerer.predict(source, stop=stop, name=split.name)
        experts = self.experts.report(source)
        metrics = {}
        if distributed.is_lead():
            metrics = _score(self.run, data, split, source, predictions, label, experts)
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
        published = split.component.name in datasets.NAMES
        name = datasets.get(split.component.name).profile if published else "plain"
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
            own = sources.open_component(data, split.component, data.train_split, quiet=True)
        except sources.NoSplit:
            own = run.train_source
        return list(questions(own))
    except UserError as e:
        print(f"warning: no floors of {split.name}: {e}", file=sys.stderr)
        return []


def _thumbnails(directory: Path, source: Any, predictions: list[Prediction], count: int) -> None:
    """Saves pictures spread evenly over the split; the first of a record that has several."""
    from PIL import Image

    for old in directory.glob("*.png"):
        old.unlink()
    indices = sorted({p.record_index for p in predictions})
    for index in indices[:: max(1, len(indices) // max(count, 1))][:count]:
        pictures = source[index].pictures
        if not pictures:
            continue
        pixels = decode_image(pictures[0], THUMBNAIL, "pad", name=str(index))
        Image.fromarray(pixels).save(directory / f"{index}.png")
