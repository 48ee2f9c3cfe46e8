"""What turns a picture and a question into a stock model's inputs: processor and tokenizer files.

The chat template makes the prompts of `vimoe_jax.data.prompts`; the image processor is SigLIP's, at
our size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vimoe_jax.base import files
from vimoe_jax.config import Config
from vimoe_jax.config.mixture import parse
from vimoe_jax.data import prompts
from vimoe_jax.datasets.records import QA
from vimoe_jax.hf import fast_tokenizer
from vimoe_jax.hf.fast_tokenizer import invisible_characters
from vimoe_jax.text.tokenizers import Tokenizer
from vimoe_jax.text.tokenizers.huggingface import IMAGE, HFTokenizer
from vimoe_jax.text.tokenizers.sentencepiece import BOS, EOS, PAD, UNK, SentencePieceTokenizer

# Beside a stock model's files, for `vimoe_jax.load`: how the model was asked in training.
ASKING_FILE = "vimoe.json"


def write(folder: Path, c: Config, tokenizer: Tokenizer) -> None:
    """Writes the files that `AutoProcessor.from_pretrained` reads, and `ASKING_FILE`.

    Raises:
      UserError: a SentencePiece model that has no fast form.
    """
    roles = _write_tokenizer(folder, tokenizer)
    files.write_json(folder / "preprocessor_config.json", _image_processor(c))
    files.write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": roles["image"],
            "num_additional_image_tokens": 0,
            "patch_size": c.model.patch_size,
            "vision_feature_select_strategy": "full",
        },
    )
    asking = {
        "data.style": parse(c.data.dataset, c.data.style)[0].style,
        "data.prompt_length": c.data.prompt_length,
        "data.max_pictures": c.data.max_pictures,
        "eval.max_new_tokens": c.eval.max_new_tokens,
    }
    files.write_json(folder / ASKING_FILE, asking)
    template = chat_template(c, roles["image"], None if is_stock(tokenizer) else roles["eos"])
    files.write_text(folder / "chat_template.jinja", template)


def is_stock(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is a `tokenizer.json` of somebody else's."""
    return isinstance(tokenizer, HFTokenizer)


def _image_processor(c: Config) -> dict[str, Any]:
    return {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": c.model.image_size, "width": c.model.image_size},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Writes `tokenizer.json` and its configuration; gives the token of each role that has one."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        text = fast_tokenizer.convert(tokenizer).to_str(pretty=True)
        files.write_text(folder / "tokenizer.json", text)
        roles = {"pad": PAD, "eos": EOS, "unk": UNK, "bos": BOS, "image": IMAGE}
    else:
        tokenizer.save(folder)
        saved = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        roles = {k.removesuffix("_token"): token for k, token in saved.items() if token is not None}
    files.write_json(
        folder / "tokenizer_config.json",
        {
            # Which uses the file as it is; classes named after models rebuild parts of it.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "LlavaProcessor",
            **{f"{name}_token": token for name, token in roles.items()},
            "extra_special_tokens": {"image_token": roles["image"]},
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "left",  # so that new tokens follow their prompts
            "clean_up_tokenization_spaces": False,
        },
    )
    return roles


def templates(c: Config) -> tuple[str, str]:
    """The wordings of a question ("{q}" stands for it) and of a request for a caption.

    Those of the `generate` command: in the style of the first dataset.
    """
    style = parse(c.data.dataset, c.data.style)[0].style
    style = prompts.suited(QA("0", "vqa", "?", ("?",)), style)
    return prompts.wordings("vqa", style)[0], prompts.wordings("caption", style)[0]


def chat_template(c: Config, image: str, end: str | None) -> str:
    """Jinja that makes our prompts: `<image>` for each picture, then the question's wording.

    A picture without text asks for a caption. It takes as many pictures as the rows of training
    could hold.

    Args:
      c: says which wordings.
      image: the token of a picture.
      end: the end token, where an answer may follow in the same string (for training): pieces of
        our tokenizer never join across the space before it. Byte-level tokenizers would join the
        prompt's colon and the answer's first letters, where we begin the answer afresh.
    """
    before, after = templates(c)[0].split("{q}")
    invisible = "".join(f"\\U{ord(ch):08x}" for ch in invisible_characters())
    answer = _ANSWER.replace("END", _quoted(end)) if end else _NO_ANSWER
    most = c.data.max_pictures
    exact = "exactly one picture" if most == 1 else f"at most {most} pictures"
    values = {
        "PICTURES": f"ns.pictures {'!=' if most == 1 else '>'} {most}",
        "COUNT": exact if most else "no picture",
        "IMAGE": _quoted(image), "BEFORE": _quoted(before), "AFTER": _quoted(after),
        "CAPTION": _quoted(templates(c)[1]), "INVISIBLE": f"'{invisible}'",
    }  # fmt: skip
    text = _TEMPLATE + answer
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_TEMPLATE = """\
{%- if not messages or messages[0].role != 'user' or messages | length > 2 -%}
{{- raise_exception('this model takes one user message: pictures and at most one question') -}}
{%- endif -%}
{%- set ns = namespace(pictures=0, text='') -%}
{%- set content = messages[0].content -%}
{%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}
{%- if part.type in ('image', 'image_url') -%}
{%- set ns.pictures = ns.pictures + 1 -%}
{%- elif part.type == 'text' -%}
{%- set ns.pictures = ns.pictures + part.text.count(IMAGE) -%}
{%- set ns.text = ns.text + ' ' + part.text.replace(IMAGE, ' ') -%}
{%- endif -%}
{%- endfor -%}
{%- if PICTURES -%}
{{- raise_exception('this model takes COUNT') -}}
{%- endif -%}
{%- for character in INVISIBLE -%}
{%- set ns.text = ns.text.replace(character, '') -%}
{%- endfor -%}
{%- set question = (ns.text.split() | join(' ')).rstrip('?？ ') -%}
{{- IMAGE * ns.pictures -}}
{%- if question -%}
{{- BEFORE + question + '?' + AFTER -}}
{%- else -%}
{{- CAPTION -}}
{%- endif -%}
"""
_ANSWER = """\
{%- if messages | length == 2 -%}
{%- set answer = messages[1].content -%}
{{- ' ' + (answer if answer is string else answer | map(attribute='text') | join) + END -}}
{%- endif -%}
"""
_NO_ANSWER = """\
{%- if messages | length == 2 -%}
{{- raise_exception('append the ids of the answer, tokenized alone, to those of the prompt') -}}
{%- endif -%}
"""
