"""A folder of published files to a prepared dataset and `report.json`; can be killed at any moment.

Everything but the pictures is read anew each time, in seconds; verdicts on pictures come from a
journal. The result has a fingerprint, and the dataset on disk has one. If they are the same, there
is nothing to write, whatever was killed or changed in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import json_text, write_bytes
from vimoe_jax.base.progress import Ticker
from vimoe_jax.datasets import prepared, published
from vimoe_jax.datasets.preparing import builder, report, sifting
from vimoe_jax.datasets.preparing.files import Files
from vimoe_jax.datasets.preparing.pictures import Checker
from vimoe_jax.datasets.records import Source

_JOURNAL = "checked_pictures.jsonl"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to prepare.

    Attributes:
      dataset: its name.
      source: the folder of published files.
      data_dir: the folder of prepared datasets.
      variant: one of the dataset's.
      annotations_only: leave pictures aside.
      drop_leaked: leave pictures out of train that an evaluation split holds.
    """

    dataset: str
    source: Path
    data_dir: Path
    variant: str = "default"
    annotations_only: bool = False
    drop_leaked: bool = False

    @property
    def config(self) -> str:
        """What TFDS calls it."""
        return builder.config_name(self.variant, not self.annotations_only)

    @property
    def folder(self) -> Path:
        """The folder of `report.json`; the dataset is below it."""
        return prepared.folder(self.data_dir, self.dataset, self.config).parent


def prepare(
    choice: Choice, lengths: Callable[[Source], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Prepares a dataset, reports on it, prints a summary.

    Args:
      choice: what to prepare.
      lengths: counts the tokens of a split's prompts and rows; None leaves them uncounted.

    Returns:
      The report.

    Raises:
      UserError: missing or broken annotations, nothing to keep, or a folder that cannot be written.
    """
    files = Files(choice.source)
    sifted = _sift(choice, files)
    if not any(split.records for split in sifted.splits.values()):
        raise UserError(f"{choice.source}: nothing to keep: {_why_nothing(sifted)}")
    written = _write(choice, sifted)
    facts = _facts(choice, files, sifted, lengths)
    outputs = {"report.json": json_text(facts)}
    if choice.annotations_only:
        train = sifted.splits.get(sifting.TRAIN, sifting.Split())
        outputs["texts.txt"] = "".join(f"{text}\n" for text in report.texts(train.records))
    changed = [name for name, text in outputs.items() if _replace(choice.folder / name, text)]
    for line in report.summary(facts):
        print(line)
    if not written and not changed:
        print(f"nothing has changed: {choice.folder} is complete")
    else:
        print("; ".join(f"{name.split('.')[0]}: {choice.folder / name}" for name in outputs))
    return facts


def _sift(choice: Choice, files: Files) -> sifting.Sifted:
    dataset = published.get(choice.dataset)
    annotations = sifting.read(dataset, files, choice.variant)
    find = check = None
    if not choice.annotations_only:
        find = files.picture
        check = Checker(choice.data_dir / choice.dataset / _JOURNAL)
    return sifting.sift(dataset, annotations, find, check, drop_leaked=choice.drop_leaked)


def _write(choice: Choice, sifted: sifting.Sifted) -> bool:
    """Writes the dataset unless the one that is there is the same."""
    where = choice.data_dir, choice.dataset, choice.config
    prepared.remove_unfinished(*where)
    wanted = builder.fingerprint(choice.dataset, choice.config, sifted)
    if prepared.fingerprint(*where) == wanted:
        return False

    def prime(made: builder.Published) -> None:
        total = sum(len(split.records) for split in sifted.splits.values())
        made.sifted = sifted
        made.on_example = Ticker(f"writing {choice.dataset}", total).tick

    prepared.write(*where, prime=prime, replace=True)
    return True


def _facts(
    choice: Choice,
    files: Files,
    sifted: sifting.Sifted,
    lengths: Callable[[Source], dict[str, Any]] | None,
) -> dict[str, Any]:
    facts = {
        "dataset": choice.dataset,
        "variant": choice.variant,
        "annotations_only": choice.annotations_only,
        "drop_leaked": choice.drop_leaked,
        "records": sum(len(split.records) for split in sifted.splits.values()),
        "not_used": dict(sorted(files.ignored.items())),
        **report.report(sifted),
    }
    if lengths:
        where = choice.data_dir, choice.dataset
        for name in prepared.splits(*where, choice.config):
            source = prepared.open_split(*where, name, choice.config)
            facts["splits"][name]["tokens"] = lengths(source)
    return facts


def _why_nothing(sifted: sifting.Sifted) -> str:
    """The reasons of all splits on one line."""
    reasons: dict[str, sifting.LeftOut] = {}
    total = sum(split.annotations for split in sifted.splits.values())
    for split in sifted.splits.values():
        for reason, left in split.left_out.items():
            total_left = reasons.setdefault(reason, sifting.LeftOut())
            total_left.count += left.count
            total_left.examples += left.examples
    told = [
        f"{reason} {left.count} ({left.examples[0]['where']}: {left.examples[0]['text']})"
        for reason, left in reasons.items()
    ]
    return f"{total} annotations; " + "; ".join(told) if told else "no annotations"


def _replace(path: Path, text: str) -> bool:
    """Writes a file whole or not at all, if it does not hold the text already."""
    data = text.encode("utf-8", "backslashreplace")  # half a surrogate pair, as JSON escapes it
    if path.is_file() and path.read_bytes() == data:
        return False
    write_bytes(path, data)
    return True
