"""Questions to answers: compiled once per shape, asked as often as one likes."""

from __future__ import annotations

import functools
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vimoe_jax.answer.greedy import make_greedy
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.progress import Progress
from vimoe_jax.data import prompts, sources
from vimoe_jax.data.evaluation import eval_batches
from vimoe_jax.data.mixture import Mixture, style_of
from vimoe_jax.datasets.records import QA, Record, Source
from vimoe_jax.model.blueprint import Params
from vimoe_jax.parallel.mesh import to_mesh
from vimoe_jax.run.batches import picture_options
from vimoe_jax.run.workdir import Run
from vimoe_jax.scores.predictions import Prediction

if TYPE_CHECKING:
    from PIL.Image import Image

    # A file, its bytes, a PIL image, or (H, W, 3) uint8; a tuple of them is one question's.
    Picture = str | os.PathLike[str] | bytes | Image | np.ndarray
    Pictures = Picture | tuple[Picture, ...] | None


class Interrupted(Exception):
    """It was asked to stop between two batches; nothing of this split was written."""


class Answerer:
    """A run's model, ready to answer: the first question of a shape compiles, others do not.

    Args:
      run: whose model, tokenizer, prompts and mesh.
      params: of the model, on the run's mesh.
    """

    def __init__(self, run: Run, params: Params):
        self.run, self._params = run, params
        decode = make_greedy(
            run.blueprint,
            run.mesh,
            max_new_tokens=run.config.eval.max_new_tokens,
            eos_id=run.tokenizer.eos_id,
            pad_id=run.tokenizer.pad_id,
        )
        everywhere = NamedSharding(run.mesh, PartitionSpec())
        self._decode = jax.jit(lambda p, b: (decode(p, b), b.valid), out_shardings=everywhere)

    def answer(
        self, picture: Pictures | list[Pictures], question: str | Sequence[str]
    ) -> str | list[str]:
        """The answer to a question about a picture.

        Args:
          picture: a path, the bytes of a file, a PIL image or an array (H, W, 3) of uint8; a tuple
            of them where one question is about several; None where it is about none. A list is
            a batch.
          question: text, or a list of texts: a batch about one picture, or one per picture.

        Returns:
          A text; a list of them, in order, where picture or question is a list.

        Raises:
          UserError: a picture that cannot be read, or more pictures than the model takes.
          ValueError: lists of different lengths, or an empty question.
        """
        many = isinstance(picture, list) or not isinstance(question, str)
        questions = [question] if isinstance(question, str) else list(question)
        pictures = picture if isinstance(picture, list) else [picture]
        count = max(len(questions), len(pictures))
        pictures = pictures * count if len(pictures) == 1 else pictures
        questions = questions * count if len(questions) == 1 else questions
        if len(pictures) != len(questions):
            raise ValueError(f"{len(pictures)} pictures, but {len(questions)} questions")
        if not all(text.strip("?？ ") for text in questions):
            raise ValueError("an empty question; `caption` describes a picture without one")
        asked = [QA("0", "vqa", text, ("?",)) for text in questions]
        answers = self._ask(pictures, asked)
        return answers if many else answers[0]

    def caption(self, picture: Pictures | list[Pictures]) -> str | list[str]:
        """A description of a picture, or of each picture of a list; see `answer`."""
        pictures = picture if isinstance(picture, list) else [picture]
        answers = self._ask(pictures, [QA("0", "caption", "", ("?",))] * len(pictures))
        return answers if isinstance(picture, list) else answers[0]

    def _ask(self, pictures: list[Pictures], asked: list[QA]) -> list[str]:
        records = [
            Record(f"picture {i}", _encoded(one), (qa,))
            for i, (one, qa) in enumerate(zip(pictures, asked, strict=True))
        ]
        return self.ask(*records)

    def ask(self, *records: Record) -> list[str]:
        """The answers to all questions of some records, in the first dataset's style of prompts.

        Raises:
          UserError: a picture that cannot be read, or more pictures than the model takes.
        """
        if not records:
            return []
        style = sources.components(self.run.config.data)[:1]
        single = len(records) == 1 and len(records[0].qa) == 1
        batch_size = 1 if single else self.run.config.eval.batch_size
        source = Mixture(style, (list(records),))
        found = self.predict(source, quiet=True, limit=0, batch_size=batch_size, strict=True)
        return [p.prediction for p in found]

    def predict(
        self,
        source: Source,
        *,
        stop: Callable[[], bool] | None = None,
        name: str = "",
        quiet: bool = False,
        limit: int | None = None,
        batch_size: int | None = None,
        strict: bool = False,
    ) -> list[Prediction]:
        """Greedy answers to every question of a source, in order.

        Each of several processes answers its share of every batch and gets the answers of all.

        Args:
          source: records.
          stop: asked between batches; the same answer in every process.
          name: of the source, for the progress line.
          quiet: show no progress.
          limit: only so many records; `config.eval.limit` if not given.
          batch_size: questions decoded at once; `config.eval.batch_size` if not given.
          strict: raise where a picture cannot be read, rather than leave its questions out.

        Raises:
          Interrupted: `stop` said so.
          UserError: with `strict`, a picture cannot be read.
        """
        c, tokenizer = self.run.config, self.run.tokenizer
        limit = c.eval.limit if limit is None else limit
        batches = eval_batches(
            source,
            tokenizer,
            **picture_options(c),
            prompt_length=c.data.prompt_length,
            batch_size=batch_size or c.eval.batch_size,
            limit=limit,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        pictures = min(len(source), limit or len(source))
        progress = Progress(pictures, 0, f"evaluating {name or 'all'}: picture")
        shown = time.monotonic()
        record_id = functools.cache(lambda index: source[index].id)
        predictions = []
        for batch, items in batches:
            if stop is not None and stop():
                raise Interrupted
            on_mesh = to_mesh(batch, self.run.mesh)
            answers, valid = jax.device_get(self._decode(self._params, on_mesh))
            if strict and batches.skipped:
                raise UserError(batches.skipped[0])
            for ids, good, (index, qa) in zip(answers.tolist(), valid, items, strict=False):
                if good:
                    text = prompts.answer_in(tokenizer.decode(ids), qa, style_of(source, index))
                    predictions.append(_prediction(record_id(index), index, qa, text))
            waited = time.monotonic() - shown
            if not quiet and (waited > 10 or sys.stderr.isatty()) and items:
                shown = time.monotonic()
                progress.show(min(items[-1][0] + 1, pictures), f"{len(predictions)} questions")
        if strict and batches.skipped:
            raise UserError(batches.skipped[0])
        for message in batches.skipped:
            progress.say(f"warning: skipped {message}", everywhere=True)
        return predictions


def _prediction(record_id: str, index: int, qa: QA, text: str) -> Prediction:
    return Prediction(
        record_id=record_id,
        record_index=index,
        qa_id=qa.id,
        task=qa.task,
        type=qa.type,
        question=qa.question,
        answers=qa.answers,
        prediction=text,
    )


def _encoded(pictures: Pictures) -> tuple[bytes, ...]:
    """The bytes of a question's pictures, as files hold them."""
    if pictures is None:
        return ()
    every = pictures if isinstance(pictures, tuple) else (pictures,)
    return tuple(map(_encode, every))


def _encode(picture: Any) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        try:
            return Path(picture).read_bytes()
        except OSError as e:
            raise UserError(f"{picture}: {e.strerror}") from None
    from PIL import Image

    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"an array of a picture is (H, W, 3) of uint8, not {picture.shape} of "
                f"{picture.dtype}"
            )
        picture = Image.fromarray(picture)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
