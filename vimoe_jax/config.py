"""The configuration's schema: every field, its default, its meaning, its check.

A config file in `configs/` has one function, `get_config()`, that starts from `defaults()` and sets
what differs. `load` reads such a file, applies `--config.FIELD=VALUE` overrides and gives the
checked, frozen `Config` that everything else takes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vimoe_jax import schema
from vimoe_jax.data import mixture
from vimoe_jax.data.text import PROFILES
from vimoe_jax.errors import UserError
from vimoe_jax.moe.options import MoEOptions, complaints
from vimoe_jax.schema import at_least, between, field, more_than, one_of


@dataclasses.dataclass(frozen=True)
class Vision:
    """The image tower: a ViT in SigLIP's form."""

    width: int = field(128, "D of the tower.", at_least(1))
    depth: int = field(4, "Layers.", at_least(1))
    num_heads: int = field(4, "Attention heads; must divide the width.", at_least(1))
    mlp_dim: int = field(512, "F, hidden width of a dense MLP.", at_least(1))
    moe: MoEOptions = field(MoEOptions(), "Experts in the tower.")


@dataclasses.dataclass(frozen=True)
class Connector:
    """The two-layer GELU MLP between tower and decoder."""

    moe: MoEOptions = field(MoEOptions(placement="all"), "Experts in the connector.")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The causal decoder, in Qwen3's form."""

    width: int = field(128, "D of the decoder.", at_least(1))
    depth: int = field(4, "Layers.", at_least(1))
    num_heads: int = field(4, "Query heads.", at_least(1))
    num_kv_heads: int = field(2, "Key and value heads; must divide the query heads.", at_least(1))
    head_dim: int = field(32, "N, width of a head; even, for rotary positions.", at_least(2))
    mlp_dim: int = field(384, "F, hidden width of a dense SwiGLU MLP.", at_least(1))
    vocab_size: int = field(0, "V; 0 takes the tokenizer's, rounded up to 64.", at_least(0))
    rope_theta: float = field(10000.0, "Base of the rotary frequencies.", more_than(0))
    norm_eps: float = field(1e-6, "Added to the variance in RMSNorm.", more_than(0))
    tie_embeddings: bool = field(True, "Use the token embedding as output head.")
    qk_norm: bool = field(True, "Norm queries and keys, as Qwen3 does; Llama does not.")
    moe: MoEOptions = field(MoEOptions(), "Experts in the decoder.")


@dataclasses.dataclass(frozen=True)
class Model:
    """Image and tokens to logits."""

    image_size: int = field(64, "Pixels on a side; a multiple of the patch size.", at_least(1))
    patch_size: int = field(8, "Pixels on a side of a patch.", at_least(1))
    dtype: str = field(
        "auto",
        "Compute dtype; 'auto' is bfloat16 on accelerators, float32 on CPU.",
        one_of("auto", "float32", "bfloat16"),
    )
    attention: str = field(
        "auto",
        "Who computes attention: XLA, or cuDNN on NVIDIA GPUs; 'auto' takes cuDNN where it can.",
        one_of("auto", "xla", "cudnn"),
    )
    remat: str = field(
        "none",
        "What the backward pass computes again: nothing; all but costly operations (dots), or but "
        "matrix products without batch axes (dots_no_batch); all but what reached and left the "
        "experts (dispatch); each layer (full), its input waiting in the host's memory (offload).",
        one_of("none", "dots", "dots_no_batch", "dispatch", "full", "offload"),
    )
    unroll: int = field(
        1,
        "Repeats of a layer pattern compiled as one: more is faster to run, slower to compile.",
        at_least(1),
    )
    vision: Vision = field(Vision(), "The image tower.")
    connector: Connector = field(Connector(), "Between tower and decoder.")
    decoder: Decoder = field(Decoder(), "The language model.")


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read, and how it becomes rows."""

    dataset: str = field(
        "viscenes",
        "One dataset or several, NAME[@VARIANT][:WEIGHT],…; weights say how often their pictures "
        "are drawn, relative to each other.",
    )
    dir: str = field("data", "Where prepared datasets lie (ViScenes is generated there if absent).")
    source: str = field("", "The JSONL file of dataset 'jsonl'.")
    variant: str = field(
        "default", "ViScenes' size: 'default' or 'tiny'.", one_of("default", "tiny")
    )
    train_split: str = field("train", "Trained on; '' for the whole JSONL file.")
    val_split: str = field("validation", "Its loss picks the best checkpoint.")
    test_splits: tuple[str, ...] = field(
        ("test", "test_compositional"),
        "Scored at the end, SPLIT or NAME/SPLIT; the first one as eval/… if the dataset is one.",
    )
    tokenizer: str = field(
        "", "A SentencePiece model or tokenizer.json; '' trains one on the training split's texts."
    )
    vocab_size: int = field(1024, "Pieces of a tokenizer trained here.", at_least(270))
    text_length: int = field(
        160, "S, text tokens a row: one picture with several questions.", at_least(4)
    )
    prompt_length: int = field(48, "Question tokens a row at evaluation.", at_least(4))
    max_questions: int = field(0, "Questions a row at most; 0 for as many as fit.", at_least(0))
    style: str = field(
        "plain", "Of prompts: STYLE for all datasets, or PART=STYLE,… for some (docs/data.md)."
    )
    vary_prompts: bool = field(False, "Draw the prompt's wording in training.")
    resize: str = field("squash", "How a picture becomes square.", one_of("squash", "crop", "pad"))
    workers: int = field(0, "Worker processes that decode; 0 uses threads.", at_least(0))
    cache_images: bool = field(False, "Keep decoded pictures in memory (small datasets).")
    max_skipped: int = field(
        0,
        "Bad records (in a JSONL file, and of pictures met in training) before giving up.",
        at_least(0),
    )


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimizer, with warm-up and cosine decay."""

    name: str = field(
        "adamw",
        "AdamW, or Adafactor: second moments as products of rows and columns.",
        one_of("adamw", "adafactor"),
    )
    moments_dtype: str = field(
        "float32",
        "Of the moments as large as their parameter; bfloat16 rounds stochastically.",
        one_of("float32", "bfloat16"),
    )
    learning_rate: float = field(1e-3, "Peak learning rate.", more_than(0))
    warmup_steps: int = field(50, "Steps of linear warm-up.", at_least(0))
    final_fraction: float = field(0.05, "Last learning rate over the peak.", between(0, 1))
    weight_decay: float = field(0.05, "Decoupled decay, of matrices only.", at_least(0))
    b1: float = field(0.9, "First moment's decay.", between(0, 0.9999))
    b2: float = field(
        0.98, "Second moment's decay, which Adafactor's approaches.", between(0, 0.99999)
    )
    eps: float = field(1e-8, "Adam's epsilon.", more_than(0))
    clip_norm: float = field(1.0, "Largest global gradient norm; 0 for no clipping.", at_least(0))
    vision_rate: float = field(
        1.0, "Learning rate of the tower over the peak; 0 freezes.", at_least(0)
    )
    connector_rate: float = field(1.0, "The same for the connector.", at_least(0))
    decoder_rate: float = field(1.0, "The same for the decoder.", at_least(0))


@dataclasses.dataclass(frozen=True)
class Distill:
    """Layer-wise distillation from a dense parent (MoEBERT's loss)."""

    parent: str = field("", "Workdir of the dense parent; '' for none.")
    weight: float = field(
        1.0, "λ of the hidden states' and the distributions' distance; 1 to 5.", more_than(0)
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop."""

    steps: int = field(1000, "Optimizer steps.", at_least(1))
    batch_size: int = field(32, "B, pictures a step, over all devices.", at_least(1))
    accumulate: int = field(1, "Microbatches whose gradients make one step.", at_least(1))
    log_every: int = field(20, "Steps between lines of metrics.jsonl.", at_least(1))
    max_bad_steps: int = field(
        10, "Skipped updates in a row (not finite, or spikes) before giving up.", at_least(1)
    )
    skip_spikes: float = field(
        0.0,
        "Skip updates whose loss is this many standard deviations above the mean of the last 128; "
        "6 is usual, 0 for never.",
        at_least(0),
    )
    hang_seconds: float = field(
        1800.0,
        "Without a finished step for so long (the first: ten times as long), write all stacks and "
        "exit; 0 for never.",
        at_least(0),
    )
    guard_transfers: bool = field(
        False, "Fail where the loop copies between host and device unasked (for debugging)."
    )
    debug_nans: bool = field(False, "Stop where a NaN arises (slow).")
    distill: Distill = field(Distill(), "Learning from a dense parent.")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is saved when."""

    every: int = field(200, "Steps between checkpoints.", at_least(1))
    keep_last: int = field(2, "Newest checkpoints kept.", at_least(1))
    keep_best: int = field(1, "Checkpoints of lowest validation loss kept.", at_least(0))


@dataclasses.dataclass(frozen=True)
class Eval:
    """Scores: the validation loss while training, generated answers at the end."""

    every: int = field(200, "Steps between validation losses; 0 for never.", at_least(0))
    val_batches: int = field(8, "Batches a validation loss is taken over.", at_least(1))
    at_end: bool = field(True, "Generate answers for the test splits after training.")
    batch_size: int = field(64, "Questions decoded at once.", at_least(1))
    max_new_tokens: int = field(32, "Tokens an answer or caption may have.", at_least(1))
    limit: int = field(0, "Pictures of a split that are scored; 0 for all.", at_least(0))
    thumbnails: int = field(24, "Pictures kept for the report.", at_least(0))
    profile: str = field(
        "auto",
        "How answers and references are rewritten before they are compared (docs/text.md); 'auto' "
        "takes the dataset's own.",
        one_of("auto", *PROFILES),
    )
    tokenization: str = field(
        "syllable",
        "Of captions for their scores; 'word' needs pyvi or underthesea.",
        one_of("syllable", "word"),
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; at most one -1 takes all that are left."""

    rule: str = field(
        "sizes",
        "Who says the sizes: the four fields below, or a rule by devices, model and batch "
        "(docs/parallelism.md), which does not look at them.",
        one_of("sizes", "auto"),
    )
    data: int = field(-1, "Ways that rows are split; weights gathered once a step.", at_least(-1))
    fsdp: int = field(1, "Ways that weights are split, gathered layer by layer.", at_least(-1))
    expert: int = field(1, "Ways that experts are split; tokens travel.", at_least(-1))
    tensor: int = field(1, "Ways that heads, MLPs and vocabulary are split.", at_least(-1))


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    seed: int = field(0, "Of initialisation, shuffling and router noise.", at_least(0))
    model: Model = field(Model(), "Image and tokens to logits.")
    data: Data = field(Data(), "What is read, and how it becomes rows.")
    optim: Optim = field(Optim(), "The optimizer.")
    train: Train = field(Train(), "The loop.")
    checkpoint: Checkpoint = field(Checkpoint(), "What is saved when.")
    eval: Eval = field(Eval(), "Scores.")
    mesh: Mesh = field(Mesh(), "Devices.")


def defaults() -> Any:
    """A locked `ml_collections.ConfigDict` of all fields, for config files to start from."""
    return schema.defaults(Config)


def load(path: str | os.PathLike[str], overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Reads a config file, applies (dotted field, text) overrides, checks everything.

    Raises:
      UserError: one line that names the field, or the file and line.
    """
    if not Path(path).is_file():
        raise UserError(f"--config: no such file: {path}")
    try:
        config = runpy.run_path(str(path))["get_config"]()
    except UserError:
        raise
    except KeyError as e:
        if e.args == ("get_config",):
            raise UserError(f"{path}: has no function get_config()") from None
        raise UserError(f"{_where(path, e)}: {_unknown_field(e)}") from None
    except SyntaxError as e:
        raise UserError(f"{path}:{e.lineno}: {e.msg}") from None
    except Exception as e:
        raise UserError(f"{_where(path, e)}: {_unknown_field(e)}") from None
    for name, text in overrides:
        schema.apply_override(config, name, text)
    return resolve(config.to_dict())


def _where(path: str | os.PathLike[str], error: Exception) -> str:
    """`file:line` of the config file's own frame in a traceback."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _unknown_field(error: Exception) -> str:
    """The error's message; ml_collections' page about an unknown key becomes a short line."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if key := re.search(r'Key "(\w+)" does not exist', text):
        near = re.search(r'Did you mean "(\w+)"', text)
        return f"no field {key[1]!r}" + (f" (did you mean {near[1]!r}?)" if near else "")
    return text


def from_json(path: Path) -> Config:
    """The configuration that a run saved in its workdir.

    Raises:
      UserError: the file is missing or broken.
    """
    try:
        return resolve(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is this the workdir of a run?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not a configuration: {e}") from None


def resolve(values: dict[str, Any]) -> Config:
    """Nested dicts to a `Config`, with the checks that involve several fields.

    Raises:
      UserError: one line that names the field.
    """
    config = schema.resolve(Config, values)
    for complaint in _complaints(config):
        raise UserError(f"config.{complaint}")
    return config


def _complaints(c: Config) -> Iterator[str]:
    m, v, d = c.model, c.model.vision, c.model.decoder
    if m.image_size % m.patch_size:
        yield (
            f"model.image_size: {m.image_size} is no multiple of model.patch_size = {m.patch_size}"
        )
    if v.width % v.num_heads:
        yield f"model.vision.num_heads: {v.num_heads} does not divide width = {v.width}"
    if d.num_heads % d.num_kv_heads:
        yield (
            f"model.decoder.num_kv_heads: {d.num_kv_heads} does not divide "
            f"num_heads = {d.num_heads}"
        )
    if d.head_dim % 2:
        yield f"model.decoder.head_dim: must be even, not {d.head_dim}"
    parts = (
        ("vision", v.depth, v.mlp_dim),
        ("connector", 1, d.width),
        ("decoder", d.depth, d.mlp_dim),
    )
    for part, depth, mlp_dim in parts:
        causal = part == "decoder"
        for complaint in complaints(getattr(m, part).moe, depth, mlp_dim, causal=causal):
            yield f"model.{part}.moe.{complaint}"
    if c.train.batch_size % c.train.accumulate:
        yield (
            f"train.accumulate: {c.train.accumulate} does not divide "
            f"train.batch_size = {c.train.batch_size}"
        )
    yield from _data_complaints(c.data)
    if not max(c.optim.vision_rate, c.optim.connector_rate, c.optim.decoder_rate):
        yield "optim.decoder_rate: every part is frozen (all rates are 0); nothing would be trained"


def _data_complaints(c: Data) -> Iterator[str]:
    try:
        names = {part.name for part in mixture.parse(c.dataset, c.style)}
    except ValueError as e:
        yield f"data.{e}"
        return
    names |= {split.partition("/")[0] for split in c.test_splits if "/" in split}
    if "jsonl" in names and not c.source:
        yield "data.source: dataset 'jsonl' needs the path of a JSONL file"


def describe(cls: type = Config, path: str = "") -> Iterator[str]:
    """One line a field, for `--help`: name, default, meaning."""
    for f in dataclasses.fields(cls):
        default = getattr(cls(), f.name)
        if dataclasses.is_dataclass(default):
            yield from describe(type(default), f"{path}{f.name}.")
        else:
            yield f"  {path + f.name} = {default!r}\n      {f.metadata['meaning']}"
