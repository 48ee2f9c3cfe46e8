"""Makes a dataset ready for training, and reports what is in it.

    python -m vimoe_jax.data.prepare --dataset=viscenes --data_dir=DIR [--variant=default]
    python -m vimoe_jax.data.prepare --dataset=jsonl --source=FILE [--max_bad=N]

The first draws ViScenes into DIR; the second checks a JSONL file and every picture it names. Both
write a report (DIR/viscenes/default/report.json, or FILE with .report.json): counts by split, task
and type, and what was skipped. With --tokenizer=MODEL, also how many tokens the prompts and rows
have, for choosing config.data.prompt_length and config.data.text_length.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimoe_jax import cli
from vimoe_jax.errors import UserError, exit_on_user_error

DATASETS = ("viscenes", "jsonl")


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    if not argv or "--help" in argv:
        print(__doc__)
        return 0
    options, overrides = cli.parse(
        argv, ("dataset", "data_dir", "source", "variant", "max_bad", "tokenizer")
    )
    if overrides:
        raise UserError(f"--config.{overrides[0][0]}: this command has no configuration")
    dataset = options.get("dataset", "")
    if dataset not in DATASETS:
        raise UserError(f"--dataset: must be one of {', '.join(DATASETS)}, not {dataset!r}")
    tokenizer = None
    if "tokenizer" in options:
        from vimoe_jax.data.tokenizer import SentencePieceTokenizer

        tokenizer = SentencePieceTokenizer.load(options["tokenizer"])
    out, sources, skipped = (_viscenes if dataset == "viscenes" else _jsonl)(options)
    report: dict[str, Any] = {
        "dataset": dataset,
        "splits": {split: _counts(source) for split, source in sources.items()},
        "skipped": skipped,
    }
    if tokenizer:
        from vimoe_jax.data.pipeline import suggest_lengths

        for split, source in sources.items():
            report["splits"][split]["tokens"] = suggest_lengths(source, tokenizer)
    try:
        out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as e:
        raise UserError(f"{out}: {e.strerror}") from None
    for split, counts in report["splits"].items():
        print(f"{split or 'all'}: {counts['pictures']} pictures, {counts['questions']} questions")
        for name, tokens in counts.get("tokens", {}).items():
            print(f"  tokens a {name}: " + ", ".join(f"{p} {n}" for p, n in tokens.items()))
    print(f"{len(report['skipped'])} skipped; report: {out}")
    return 0


# Where the report goes, the splits, and what was skipped.
_Prepared = tuple[Path, dict[str, Any], list[str]]


def _viscenes(options: dict[str, str]) -> _Prepared:
    from vimoe_jax.data.datasets import viscenes
    from vimoe_jax.data.datasets.viscenes.builder import CONFIGS, SPLITS

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
    from vimoe_jax.data.jsonl import JsonlSource
    from vimoe_jax.data.rows import picture_error

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


def _counts(source: Any) -> dict[str, Any]:
    from vimoe_jax.data.sources import questions

    tasks: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for qa in questions(source):
        tasks[qa.task] += 1
        if qa.type:
            types[qa.type] += 1
    return {
        "pictures": len(source),
        "questions": tasks.total(),
        "tasks": dict(sorted(tasks.items())),
        "types": dict(sorted(types.items())),
    }


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
