"""The model card: what was trained on what, how it scores, how to use it, where it differs."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.config.parts import Part, parts_of
from vimoe_jax.hf.processor import is_stock, templates
from vimoe_jax.hf.stock import needs_code
from vimoe_jax.run.workdir import Run

_FRONT = """\
---
language: vi
library_name: transformers
pipeline_tag: image-text-to-text
license: other
license_name: see-below
---
"""
_USE = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}"{code})
processor = AutoProcessor.from_pretrained("{name}"{code})
messages = [
    {{
        "role": "user",
        "content": [
            {{"type": "image", "path": "anh.jpg"}},
            {{"type": "text", "text": "Có mấy con mèo trong ảnh?"}},
        ],
    }}
]
inputs = processor.apply_chat_template(
    messages, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
```
"""
_LICENCE = """\
The licence of the weights follows from the data above and from the models that training began with,
whose terms hold for what is made from them. Whoever publishes this folder states it here and in the
lines at the top. The files of code, if any, are Apache-2.0."""


def text(run: Run, name: str, step: int, dtype: str) -> str:
    """The card of a run.

    Args:
      run: the card has its configuration and scores (`DIR/eval/*/metrics.json`).
      name: of the model.
      step: the checkpoint's.
      dtype: of the weights.

    Raises:
      UserError: a file of scores that cannot be read.
    """
    c = run.config
    question, caption = (t.replace("{q}", "<câu hỏi>") for t in templates(c))
    use = _USE.format(name=name, code=", trust_remote_code=True" if needs_code(c.model) else "")
    sections = {
        name: _summary(run, step, dtype),
        "Use": f"{use}\nThe chat template writes `{question}` after the picture, and `{caption}` "
        "where there is no question.",
        "Data": _data(c),
        "Scores": _scores(run),
        "Experts": _experts(c),
        "Limits": "\n".join(f"- {limit}" for limit in _limits(run, dtype)),
        "Licence": _LICENCE,
    }
    first, *rest = (
        f"{'#' if i == 0 else '##'} {title}\n\n{body}\n"
        for i, (title, body) in enumerate(sections.items())
        if body
    )
    return "\n".join([_FRONT, first, *rest])


def _summary(run: Run, step: int, dtype: str) -> str:
    b, m = run.blueprint, run.config.model
    total, active = b.num_parameters(), b.num_active_parameters()
    met = f", of which a token meets {active:,}" if active != total else ""
    return (
        "A Vietnamese vision-language model in LLaVA's form, trained with ViMoE (JAX): pictures "
        f"of {m.image_size}×{m.image_size} pixels, {total:,} parameters{met}; step {step:,} of "
        f"{run.config.train.steps:,}, weights in {dtype}."
    )


def _data(c: Config) -> str:
    return (
        f"Trained on `{c.data.dataset}` (split `{c.data.train_split or 'all'}`), prompts in the "
        f"style `{c.data.style}`, {c.train.steps:,} steps of {c.train.batch_size} pictures."
    )


def _scores(run: Run) -> str:
    """One table per split, with how its texts were compared."""
    tables = []
    for file in sorted((run.workdir / "eval").glob("*/metrics.json")):
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
            how = metrics.pop("scoring")
            title = f"**{file.parent.name}**, compared as: {how['comparison']}; {how['tokens']}"
            rows = [f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items())]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
            raise UserError(f"{file}: not a file of scores: {type(e).__name__}: {e}") from None
        tables.append("\n".join([f"{title}\n", "| metric | value |", "|---|---|", *rows]))
    if not tables:
        return "None were taken."
    note = (
        "Of greedy answers by the training program, before export. Floors are what one scores "
        "without looking at the picture."
    )
    return "\n\n".join([note, *tables])


def _experts(c: Config) -> str:
    """What the router does, by part."""
    rows = [_row(part) for part in parts_of(c.model).values() if part.has_experts]
    head = "| part | layers | experts | chosen | width | weights | capacity in training |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows]) if rows else ""


def _row(part: Part) -> str:
    moe = part.moe
    layers = [str(i) for i, is_moe in enumerate(part.moe_layers()) if is_moe]
    width = moe.width(part.mlp_dim)
    factor = moe.factor(train=True)
    capacity = "none" if factor == float("inf") else f"{factor:g} × an even share"
    weights = "probabilities over their sum" if moe.renormalize else "probabilities"
    return (
        f"| {part.name} | {', '.join(layers)} of {part.depth} | {moe.experts} | "
        f"{moe.k(train=False)} | {width} | {weights} | {capacity} |"
    )


def _limits(run: Run, dtype: str) -> Iterator[str]:
    c = run.config
    moes = [part.moe for part in parts_of(c.model).values() if part.has_experts]
    most = c.data.max_pictures
    pictures = {0: "No picture", 1: "One picture"}.get(most, f"At most {most} pictures")
    yield f"{pictures} and one question: nothing else was trained."
    if any(m.factor(train=True) != float("inf") for m in moes):
        yield (
            "Experts here take every token that is sent to them; in training they had the capacity "
            "above, and what found them full was dropped."
        )
    if any(m.factor(train=False) != float("inf") for m in moes):
        yield "The scores were taken with a capacity at evaluation, which is not exported."
    if any(m.k(train=True) != m.k(train=False) for m in moes):
        yield "Training chose another number of experts a token than evaluation, whose is exported."
    if moes:
        yield (
            "LLaVA returns no router logits: fine-tuning there has no loss that keeps the experts' "
            "load balanced."
        )
    if moes and dtype == "bfloat16":
        yield "Routers worked in float32 in training; stock ones work in the model's dtype."
    if not is_stock(run.tokenizer):
        yield (
            "Names of special tokens (`<image>`, `</s>`) that a question spells are taken for the "
            "tokens."
        )
    yield (
        "transformers turns transparency black or drops it, where training laid it over white; "
        "16-bit greys are clipped. Photographs are the same."
    )
    yield (
        "With torchvision, the default image processor rounds otherwise than Pillow; "
        '`AutoProcessor.from_pretrained(…, backend="pil")` has the pixels of training.'
    )
