"""Makes a dataset ready for training, and reports what is in it.

    python -m vimoe_jax.data.prepare --dataset=viscenes --data_dir=data
    python -m vimoe_jax.data.prepare --dataset=jsonl --source=pairs.jsonl [--max_bad=N]
    python -m vimoe_jax.data.prepare --dataset=vivqa --source=DIR --data_dir=data
        [--annotations_only] [--drop_leaked]

The first draws ViScenes into data; the second checks a JSONL file and every picture it names; the
third makes a TFDS dataset of published files (docs/datasets.md names the datasets). Killed at any
moment, the same command finishes the job; where nothing has changed it rewrites nothing, and what
other options or files ask for replaces what was there once it is whole.

All write a report (report.json beside the prepared version, or FILE with .report.json): counts by
split, task and type, and what was left out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimoe_jax import datasets
from vimoe_jax.base import cli, files, values
from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.records import Source

DATASETS = ("viscenes", "jsonl", *datasets.NAMES)
_FLAGS = ("annotations_only", "drop_leaked")
_OPTIONS = ("data_dir", "source", "variant", "max_bad", *_FLAGS)
_TAKEN = {"viscenes": ("data_dir", "variant"), "jsonl": ("source", "max_bad")}
_TAKEN |= dict.fromkeys(datasets.NAMES, ("source", "data_dir", "variant", *_FLAGS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.Options):
    """The command's options; those of other datasets than `dataset` are None or False."""

    dataset: str = cli.option(
        values.one_of(*DATASETS), "NAME", f"which one; one of {', '.join(DATASETS)}"
    )
    data_dir: Path | None = cli.option(
        values.path, "DIR", "the folder that prepared datasets lie in", default=None
    )
    source: Path | None = cli.option(
        values.path,
        "PATH",
        "the folder that published files lie in, or the JSONL file",
        default=None,
    )
    variant: str | None = cli.option(
        str, "NAME", "of the dataset; the first of its variants if not given", default=None
    )
    max_bad: int | None = cli.option(
        values.whole,
        "N",
        "bad records of a JSONL file to leave out; none if not given",
        default=None,
    )
    annotations_only: bool = cli.flag("without pictures, for training a tokenizer")
    drop_leaked: bool = cli.flag("without train pictures that an evaluation split holds")
    tokenizer: str | None = cli.option(
        str,
        "MODEL",
        "also reports how many tokens the prompts and rows have, for choosing "
        "config.data.prompt_length and config.data.text_length",
        default=None,
    )


def execute(options: Options) -> int:
    """Prepares the dataset and reports."""
    tokenizer = None
    if options.tokenizer is not None:
        from vimoe_jax.text import tokenizers as tokenizer_lib

        tokenizer = tokenizer_lib.load(options.tokenizer)
    for name in _OPTIONS:
        value = getattr(options, name)
        if value is not None and value is not False and name not in _TAKEN[options.dataset]:
            raise UserError(f"--{name}: not an option of dataset {options.dataset}")
    if options.dataset in datasets.NAMES:
        from vimoe_jax.datasets.preparing import job

        choice = _choice(options)
        job.prepare(choice, _lengths(tokenizer))
        return 0
    prepare = _viscenes if options.dataset == "viscenes" else _jsonl
    out, sources, skipped = prepare(options)
    _report(options.dataset, out, sources, skipped, tokenizer)
    return 0


def _choice(options: Options) -> Any:
    from vimoe_jax.datasets.preparing.job import Choice

    if options.source is None:
        raise UserError("--source: needed, the folder that published files lie in")
    if options.data_dir is None:
        raise UserError("--data_dir: needed, the folder that prepared datasets lie in")
    variant = _variant(options, datasets.get(options.dataset).variants)
    if not options.source.is_dir():
        raise UserError(f"--source: {options.source} is not a folder")
    flags = {name: getattr(options, name) for name in _FLAGS}
    return Choice(options.dataset, options.source, options.data_dir, variant, **flags)


def _variant(options: Options, names: Sequence[str]) -> str:
    """The variant of the dataset; the first if none is given."""
    given = names[0] if options.variant is None else options.variant
    return values.parse("--variant", values.one_of(*names), given)


def _report(
    dataset: str, out: Path, sources: dict[str, Source], skipped: list[str], tokenizer: Any
) -> None:
    from vimoe_jax.datasets.preparing.report import counts
    from vimoe_jax.datasets.records import questions

    report: dict[str, Any] = {
        "dataset": dataset,
        "splits": {s: counts(len(source), questions(source)) for s, source in sources.items()},
        "skipped": skipped,
    }
    if tokenizer:
        for split, source in sources.items():
            report["splits"][split]["tokens"] = _lengths(tokenizer)(source)
    files.write_json(out, report)
    for split, counted in report["splits"].items():
        print(f"{split or 'all'}: {counted['pictures']} pictures, {counted['questions']} questions")
        for name, tokens in counted.get("tokens", {}).items():
            print(f"  tokens a {name}: " + ", ".join(f"{p} {n}" for p, n in tokens.items()))
    print(f"{len(report['skipped'])} skipped; report: {out}")


def _lengths(tokenizer: Any) -> Any:
    """Counts tokens of prompts and rows; None without a tokenizer."""
    from vimoe_jax.data.lengths import suggest_lengths

    return tokenizer and functools.partial(suggest_lengths, tokenizer=tokenizer)


# Where the report goes, the splits, and what was skipped.
_Prepared = tuple[Path, dict[str, Any], list[str]]


def _viscenes(options: Options) -> _Prepared:
    from vimoe_jax.datasets import viscenes
    from vimoe_jax.datasets.viscenes.builder import CONFIGS, SPLITS

    folder = options.data_dir
    if folder is None:
        raise UserError("--data_dir: needed, the folder that prepared datasets lie in")
    variant = _variant(options, [c.name for c in CONFIGS])
    viscenes.prepare(folder, variant)
    splits = {s: viscenes.open_split(folder, s, variant) for s in SPLITS}
    return folder / "viscenes" / variant / "report.json", splits, []


def _jsonl(options: Options) -> _Prepared:
    from vimoe_jax.data.rows import picture_error
    from vimoe_jax.datasets.jsonl import JsonlSource

    path, limit = options.source, options.max_bad or 0
    if path is None:
        raise UserError("--source: needed, the JSONL file")
    source = JsonlSource(path, max_bad=limit)
    errors = (picture_error(source, i) for i in range(len(source)))
    skipped = source.skipped + [e for e in errors if e]
    if len(skipped) > limit:
        raise UserError(f"{skipped[-1]} ({len(skipped)} bad records, --max_bad={limit})")
    names = sorted(source.splits)
    splits = {s: JsonlSource(path, s, max_bad=limit, quiet=True) for s in names}
    return path.with_suffix(".report.json"), splits, skipped


COMMAND = cli.Command(
    "vimoe_jax.data.prepare", Options, execute, __doc__,
    interrupted="interrupted; the same command finishes the job",
)  # fmt: skip
main = COMMAND.main

if __name__ == "__main__":
    COMMAND.run()
