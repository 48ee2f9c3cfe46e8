"""Makes a dataset ready for training, and reports what is in it.

    python -m vimoe_jax.data.prepare --dataset=viscenes --data_dir=DIR [--variant=default]
    python -m vimoe_jax.data.prepare --dataset=jsonl --source=FILE [--max_bad=N]
    python -m vimoe_jax.data.prepare --dataset=vivqa --source=DIR --data_dir=DIR [--variant=NAME]
        [--annotations_only] [--drop_leaked]

The first draws ViScenes into DIR; the second checks a JSONL file and every picture it names; the
third makes a TFDS dataset of published files (docs/datasets.md names the datasets), with
--annotations_only without pictures, for training a tokenizer; with --drop_leaked without train
pictures that an evaluation split holds. Killed at any moment, the same command finishes the job;
where nothing has changed it rewrites nothing, and what other options or files ask for replaces
what was there once it is whole.

All write a report (report.json beside the prepared version, or FILE with .report.json): counts by
split, task and type, and what was left out. With --tokenizer=MODEL, also how many tokens the
prompts and rows have, for choosing config.data.prompt_length and config.data.text_length.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimoe_jax import datasets
from vimoe_jax.base import cli, files
from vimoe_jax.base.errors import UserError, exit_on_user_error
from vimoe_jax.datasets.records import Source

DATASETS = ("viscenes", "jsonl", *datasets.NAMES)
_FLAGS = ("annotations_only", "drop_leaked")
_OPTIONS = ("data_dir", "source", "variant", "max_bad")
_TAKEN = {"viscenes": ("data_dir", "variant"), "jsonl": ("source", "max_bad")}
_TAKEN |= dict.fromkeys(datasets.NAMES, ("source", "data_dir", "variant", *_FLAGS))


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    if not argv or "--help" in argv:
        print(__doc__)
        return 0
    # A flag alone is a flag set.
    words = [f"{word}=true" if word in [f"--{flag}" for flag in _FLAGS] else word for word in argv]
    options, overrides = cli.parse(words, ("dataset", *_OPTIONS, *_FLAGS, "tokenizer"))
    if overrides:
        raise UserError(f"--config.{overrides[0][0]}: this command has no configuration")
    dataset = options.pop("dataset", "")
    if dataset not in DATASETS:
        raise UserError(f"--dataset: must be one of {', '.join(DATASETS)}, not {dataset!r}")
    tokenizer = None
    if "tokenizer" in options:
        from vimoe_jax.text import tokenizers as tokenizer_lib

        tokenizer = tokenizer_lib.load(options.pop("tokenizer"))
    for name in options:
        if name not in _TAKEN[dataset]:
            raise UserError(f"--{name}: not an option of dataset {dataset}")
    if dataset in datasets.NAMES:
        from vimoe_jax.datasets.preparing import job

        choice = _choice(dataset, options)
        job.prepare(choice, _lengths(tokenizer))
        return 0
    out, sources, skipped = (_viscenes if dataset == "viscenes" else _jsonl)(options)
    _report(dataset, out, sources, skipped, tokenizer)
    return 0


def _choice(dataset: str, options: dict[str, str]) -> Any:
    from vimoe_jax.datasets.preparing.job import Choice

    for name, what in (("source", "published files"), ("data_dir", "prepared datasets")):
        if not options.get(name):
            raise UserError(f"--{name}: needed, the folder that {what} lie in")
    variants = datasets.get(dataset).variants
    variant = options.get("variant", variants[0])
    if variant not in variants:
        raise UserError(f"--variant: must be one of {', '.join(variants)}, not {variant!r}")
    source = Path(options["source"])
    if not source.is_dir():
        raise UserError(f"--source: {source} is not a folder")
    flags = {name: _flag(name, options.get(name, "false")) for name in _FLAGS}
    return Choice(dataset, source, Path(options["data_dir"]), variant, **flags)


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UserError(f"--{name}: must be true or false, not {value!r}")
    return value.lower() == "true"


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


def _viscenes(options: dict[str, str]) -> _Prepared:
    from vimoe_jax.datasets import viscenes
    from vimoe_jax.datasets.viscenes.builder import CONFIGS, SPLITS

    if "data_dir" not in options:
        raise UserError("--data_dir: needed, the folder that prepared datasets lie in")
    variant = options.get("variant", "default")
    if variant not in (names := [c.name for c in CONFIGS]):
        raise UserError(f"--variant: must be one of {', '.join(names)}, not {variant!r}")
    folder = Path(options["data_dir"])
    viscenes.prepare(folder, variant)
    splits = {s: viscenes.open_split(folder, s, variant) for s in SPLITS}
    return folder / "viscenes" / variant / "report.json", splits, []


def _jsonl(options: dict[str, str]) -> _Prepared:
    from vimoe_jax.data.rows import picture_error
    from vimoe_jax.datasets.jsonl import JsonlSource

    if "source" not in options:
        raise UserError("--source: needed, the JSONL file")
    path = Path(options["source"])
    limit = options.get("max_bad", "0")
    if not limit.isdecimal():
        raise UserError(f"--max_bad: must be a number, not {limit!r}")
    source = JsonlSource(path, max_bad=int(limit))
    errors = (picture_error(source, i) for i in range(len(source)))
    skipped = source.skipped + [e for e in errors if e]
    if len(skipped) > int(limit):
        raise UserError(f"{skipped[-1]} ({len(skipped)} bad records, --max_bad={limit})")
    names = sorted(source.splits)
    splits = {s: JsonlSource(path, s, max_bad=int(limit), quiet=True) for s in names}
    return path.with_suffix(".report.json"), splits, skipped


if __name__ == "__main__":
    with exit_on_user_error():
        try:
            sys.exit(main(sys.argv[1:]))
        except KeyboardInterrupt:
            print("\ninterrupted; the same command finishes the job", file=sys.stderr)
            sys.exit(130)
