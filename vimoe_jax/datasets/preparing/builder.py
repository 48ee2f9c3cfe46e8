"""Published datasets as TFDS builders, for use outside this project too; no TensorFlow needed.

import tensorflow_datasets as tfds
import vimoe_jax.datasets.preparing.builder

builder = tfds.builder("vivqa", data_dir="data")
config = tfds.download.DownloadConfig(manual_dir="downloads/vivqa")
builder.download_and_prepare(file_format="array_record", download_config=config)
source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets import published
from vimoe_jax.datasets.preparing.files import Files
from vimoe_jax.datasets.preparing.kept import Kept
from vimoe_jax.datasets.preparing.ordered import OrderedWriter
from vimoe_jax.datasets.preparing.pictures import Checker
from vimoe_jax.datasets.preparing.sifting import Sifted, read, sift
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.records import QA

_SHARD = 2048  # pictures per shard: a few hundred megabytes of photographs


@dataclasses.dataclass
class PublishedConfig(tfds.core.BuilderConfig):
    """Which form of a dataset.

    Attributes:
      variant: one of the dataset's.
      pictures: whether examples have their picture; without, annotations alone are needed.
      drop_leaked: leave pictures out of train that an evaluation split holds.
    """

    variant: str = "default"
    pictures: bool = True
    drop_leaked: bool = False


class Published(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The base of all: an example is one picture with everything asked of it.

    Written shard by shard, as TFDS's `ShardBasedBuilder` does: its generator-based way holds a
    whole split in memory, and needs TensorFlow above a gigabyte.

    Pictures are the published files, byte for byte. TFDS needs TensorFlow for ragged sequences
    inside sequences, so the columns of `qa` are flat: `answers` and `explanations` hold all of a
    question's, joined by newlines.

    Attributes:
      dataset: what is published.
      sifted: what to write, where the files were read before; None to read them here.
      on_example: called after each picture.
    """

    VERSION = tfds.core.Version("1.0.0")
    dataset: ClassVar[Dataset]
    builder_config: PublishedConfig  # `BUILDER_CONFIGS` has one at least
    sifted: Sifted | None = None
    on_example: Callable[[], None] | None = None

    def __init_subclass__(cls, **kwargs: Any):
        d = cls.dataset
        cls.name = d.name
        cls.BUILDER_CONFIGS = [
            PublishedConfig(
                name=config_name(variant, pictures), variant=variant, pictures=pictures,
                description="As published." if pictures else "Without pictures.",
            )
            for pictures in (True, False)
            for variant in d.variants
        ]  # fmt: skip
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = (
            f"{d.title}, from {d.homepage}: put the annotations ({', '.join(d.expected)}) and, in "
            "any folder beside or below them, the pictures into manual_dir."
        )
        super().__init_subclass__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        def text(doc: str) -> tfds.features.Text:
            return tfds.features.Text(doc=doc)

        columns = {
            "id": text("unique within the split"),
            "task": text("caption, vqa or ocr_vqa"),
            "type": text("the dataset's own question type, or empty"),
            "question": text("as published; empty for captions"),
            "answers": text("all references, one a line"),
            "explanations": text("why, one a line"),
        }
        features = {"id": text("of the picture"), "qa": tfds.features.Sequence(columns)}
        if self.builder_config.pictures:
            doc = "the published file, unchanged"
            features["image"] = tfds.features.Image(shape=(None, None, 3), doc=doc)
        return self.dataset_info_from_configs(
            description=self.dataset.description,
            features=tfds.features.FeaturesDict(features),
            homepage=self.dataset.homepage,
            citation=self.dataset.citation,
            license=self.dataset.licence,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    # It asks of its class what `_shard_iterators_per_split` and `_example_writer` are, no more.
    _download_and_prepare: Any = tfds.core.ShardBasedBuilder._download_and_prepare

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {name: self._generate_examples(r) for name, r in self._kept(dl_manager).items()}

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable]]:
        kept = self._kept(dl_manager)
        for name, records in kept.items():
            self._write_questions(name, records)
        return {
            name: [
                functools.partial(self._generate_examples, records[start : start + _SHARD], start)
                for start in range(0, len(records), _SHARD)
            ]
            for name, records in kept.items()
        }

    def _kept(self, dl_manager: Any) -> dict[str, list[Kept]]:
        """The records to write, by split."""
        sifted, config = self.sifted, self.builder_config
        if sifted is None:
            files = Files(dl_manager.manual_dir)
            annotations = read(self.dataset, files, config.variant)
            find = files.picture if config.pictures else None
            checker = Checker(progress=False)
            drop = config.drop_leaked
            sifted = sift(self.dataset, annotations, find, checker, drop_leaked=drop)
        kept = {name: split.records for name, split in sifted.splits.items() if split.records}
        if not kept:
            raise UserError(f"{self.dataset.title}: nothing is left of the annotations")
        metadata: Any = self.info.metadata  # `_info` gives one
        metadata["fingerprint"] = fingerprint(self.name, config.name, sifted)
        return kept

    def _example_writer(self) -> OrderedWriter:
        return OrderedWriter.of(self.info)

    def _write_questions(self, split: str, records: list[Kept]) -> None:
        """All questions once more, to be read without the pictures between them."""
        path = self.data_path / questions_file(split)
        with path.open("w", encoding="utf-8") as file:
            for record in records:
                for qa in record.qa:
                    row = {"picture": record.id, **dataclasses.asdict(qa)}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _generate_examples(self, records: list[Kept], start: int = 0) -> Iterator[tuple[int, dict]]:
        for index, record in enumerate(records, start):
            example: dict[str, Any] = {"id": record.id, "qa": [_columns(qa) for qa in record.qa]}
            if self.builder_config.pictures:
                example["image"] = _Unchanged(record)
            yield index, example
            if self.on_example is not None:
                self.on_example()


def config_name(variant: str, pictures: bool) -> str:
    """What TFDS calls a variant with or without its pictures."""
    if pictures:
        return variant
    return "annotations" if variant == "default" else f"{variant}_annotations"


def questions_file(split: str) -> str:
    """The file, beside the examples, that repeats a split's questions."""
    return f"questions-{split}.jsonl"


def fingerprint(name: str, config: str, sifted: Sifted) -> str:
    """What was written, in 64 digits: the same for the same pictures, questions and order."""
    digest = hashlib.sha256(f"{name} {config} {Published.VERSION}\n".encode())
    for split, found in sifted.splits.items():
        for record in found.records:
            row = [split, record.id, record.digest, *map(dataclasses.astuple, record.qa)]
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _columns(qa: QA) -> dict[str, str]:
    row = {name: getattr(qa, name) for name in ("id", "task", "type", "question")}
    return row | {
        "answers": "\n".join(qa.answers), "explanations": "\n".join(qa.explanations),
    }  # fmt: skip


class _Unchanged:
    """A picture whose bytes must be those that were checked.

    TFDS keeps the examples of a shard until it is written, so that this is not the bytes yet.
    """

    def __init__(self, record: Kept):
        if record.path is None:
            raise ValueError(f"{record.id}: a record without a picture")
        self._path, self._digest = record.path, record.digest

    def read(self) -> bytes:
        """The bytes."""
        try:
            data = self._path.read_bytes()
        except OSError as e:
            raise UserError(f"{self._path}: {e.strerror}") from None
        if hashlib.sha256(data).hexdigest() != self._digest:
            raise UserError(f"{self._path}: changed while the dataset was made; run it again")
        return data


class ViVQA(Published):
    """Questions on object, number, colour and location in COCO's photographs."""

    dataset = published.get("vivqa")


class UITViIC(Published):
    """Captions of COCO's photographs of sports played with a ball."""

    dataset = published.get("uit_viic")


class KTVIC(Published):
    """Captions of everyday life in Vietnam."""

    dataset = published.get("ktvic")


class OpenViVQA(Published):
    """Open-ended questions about photographs taken in Vietnam."""

    dataset = published.get("openvivqa")


class EVJVQA(Published):
    """Questions in three languages about photographs taken in Vietnam."""

    dataset = published.get("evjvqa")


class ViOCRVQA(Published):
    """Questions on what book covers say."""

    dataset = published.get("viocrvqa")


class ViTextVQA(Published):
    """Questions on text in photographs."""

    dataset = published.get("vitextvqa")


class ViVQAX(Published):
    """Questions with answers explained, on COCO's photographs."""

    dataset = published.get("vivqa_x")


class ViCLEVR(Published):
    """Questions on rendered scenes."""

    dataset = published.get("viclevr")


class XM3600(Published):
    """Captions of photographs from all over the world, for evaluation."""

    dataset = published.get("xm3600")


class COCO35L(Published):
    """COCO's captions, machine-translated."""

    dataset = published.get("coco35l")


BUILDERS: dict[str, type[Published]] = {
    b.name: b
    for b in (
        ViVQA, UITViIC, KTVIC, OpenViVQA, EVJVQA, ViOCRVQA, ViTextVQA, ViVQAX, ViCLEVR, XM3600,
        COCO35L,
    )
}  # fmt: skip
