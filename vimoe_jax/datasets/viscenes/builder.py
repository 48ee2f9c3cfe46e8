"""ViScenes as a TFDS dataset: rendered on the spot, no download, no TensorFlow."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vimoe_jax.datasets.preparing.ordered import OrderedWriter
from vimoe_jax.datasets.viscenes import asking, covers, draw, scenes

SPLITS = ("train", "validation", "test", "test_compositional")
_SCENES = 0.75  # share of pictures; the others are covers and signs
_DESCRIPTION = """\
Rendered pictures with Vietnamese captions and questions: scenes of coloured objects (questions on \
object, number, color, location) and book covers or shop signs (title, author, publisher, \
translator, genre, sign). In split `test_compositional` every scene shows a colour on an object \
that no other split shows it on. The same seed gives the same bytes."""


@dataclasses.dataclass
class ViScenesConfig(tfds.core.BuilderConfig):
    """How many pictures each split has, and the seed of all of them."""

    seed: int = 0
    train: int = 0
    validation: int = 0
    test: int = 0
    test_compositional: int = 0


CONFIGS = [
    ViScenesConfig(
        name="default", train=6000, validation=200, test=300, test_compositional=200,
        description="For training small models within minutes.",
    ),
    ViScenesConfig(
        name="tiny", train=24, validation=8, test=8, test_compositional=8,
        description="For tests.",
    ),
]  # fmt: skip


class ViScenes(tfds.core.GeneratorBasedBuilder):
    """The builder: `tfds.builder("viscenes", data_dir=...)` once this module is imported.

    An example is {"id": str, "image": uint8 [128, 128, 3], "qa": columns of str}. TFDS needs
    TensorFlow for ragged sequences inside sequences, so the columns of `qa` are flat: `id`,
    `task`, `type`, `question`, and `answers`, which holds all references of a question, joined by
    newlines.
    """

    name = "viscenes"
    builder_config: ViScenesConfig  # one of `CONFIGS`
    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.1.0": "Clearer drawings, more questions a picture, relations that cannot be mistaken.",
    }
    BUILDER_CONFIGS = CONFIGS

    on_example: Callable[[], None] | None = None  # called after each picture

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "id": text(),
                    "image": tfds.features.Image(
                        shape=(draw.SIZE, draw.SIZE, 3), encoding_format="png"
                    ),
                    "qa": tfds.features.Sequence(
                        {name: text() for name in ("id", "task", "type", "question", "answers")}
                    ),
                }
            ),
            license="Apache-2.0",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _example_writer(self) -> OrderedWriter:
        return OrderedWriter.of(self.info)

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(getattr(self.builder_config, split)):
            yield index, example(self.builder_config.seed, split, index)
            if self.on_example is not None:
                self.on_example()


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with what it shows and what is asked of it.

    Attributes:
      shows: the scene graph, or the words of the cover or sign.
      image: uint8 RGB `[draw.SIZE, draw.SIZE]`.
      captions: five.
      asked: the questions.
    """

    shows: scenes.Scene | covers.Cover | covers.Sign
    image: Image.Image
    captions: list[str]
    asked: list[asking.Asked]


def picture(seed: int, split: str, index: int) -> Picture:
    """One picture, a function of its arguments alone."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    compositional = split == "test_compositional"
    if not compositional and rng.random() >= _SCENES:
        item = covers.sample(rng)
        image = covers.render(item, rng)
        return Picture(item, image, covers.captions(item), covers.questions(item, rng))
    scene = scenes.sample(rng, held_out=compositional)
    image = scenes.render(scene, scenes.layout(scene, rng), rng)
    asked = asking.questions(scene, rng, only_held_out=compositional)
    return Picture(scene, image, asking.captions(scene, rng), asked)


def example(seed: int, split: str, index: int) -> dict[str, Any]:
    """One picture as the features of `ViScenes`, the image as a PNG file in memory."""
    made = picture(seed, split, index)
    task = "vqa" if isinstance(made.shows, scenes.Scene) else "ocr_vqa"
    rows = [("caption", "", "", "\n".join(made.captions))]
    rows += [(task, a.type, a.question, a.answer) for a in made.asked]
    png = io.BytesIO()
    made.image.save(png, "PNG", compress_level=6)
    png.seek(0)
    return {
        "id": f"{split}-{index}",
        "image": png,
        "qa": [
            {
                "id": f"{split}-{index}/{i}",
                "task": kind,
                "type": question_type,
                "question": question,
                "answers": answers,
            }
            for i, (kind, question_type, question, answers) in enumerate(rows)
        ],
    }
