"""Published datasets as TFDS builders, as others use them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.datasets import folders
from vimoe_jax import datasets
from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.preparing import builder as builders
from vimoe_jax.datasets.preparing import sifting
from vimoe_jax.datasets.preparing.kept import Kept
from vimoe_jax.datasets.records import QA

SKIP = {"image": tfds.decode.SkipDecoding()}


def make(builder, source):
    config = tfds.download.DownloadConfig(manual_dir=source)
    builder.download_and_prepare(
        file_format="array_record", download_config=config, download_dir=source.parent / "downloads"
    )
    return builder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folders.vivqa(tmp_path_factory.mktemp("published") / "vivqa")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return make(tfds.builder("vivqa", data_dir=tmp_path_factory.mktemp("data")), source)


@pytest.mark.parametrize("name", datasets.NAMES)
def test_every_dataset_has_a_documented_builder(name, tmp_path):
    published = datasets.get(name)
    builder = tfds.builder(name, data_dir=tmp_path)
    assert published.name == builder.name == name
    info = builder.info
    assert info.description and info.homepage.startswith("https://") and "@" in info.citation
    assert info.redistribution_info.license
    assert published.title in builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert builder.builder_config.variant == published.variants[0]
    assert type(builder).__doc__ and set(info.features) == {"id", "image", "qa"}
    assert all(feature.doc.desc for feature in info.features["qa"].feature.values())


def test_names_are_those_of_the_builders():
    assert tuple(builders.BUILDERS) == datasets.NAMES
    with pytest.raises(UserError, match=r"'vivq'; there are vivqa, uit_viic"):
        datasets.get("vivq")


def test_each_variant_comes_with_and_without_pictures(tmp_path):
    names = [c.name for c in builders.EVJVQA.BUILDER_CONFIGS]
    variants = datasets.get("evjvqa").variants
    assert names == [*variants, *(f"{v}_annotations" for v in variants)]
    assert [c.name for c in builders.ViVQA.BUILDER_CONFIGS] == ["default", "annotations"]
    features = tfds.builder("vivqa/annotations", data_dir=tmp_path).info.features
    assert set(features) == {"id", "qa"}


def test_examples_hold_the_published_files_unchanged(made, source):
    data = made.as_data_source("train", decoders=SKIP)
    assert len(data) == 4
    for row in data:
        name = f"COCO_train2014_{int(row['id']):012}.jpg"
        assert row["image"] == (source / "images" / name).read_bytes()
    columns = data[0]["qa"]
    assert [q.decode() for q in columns["question"]] == ["xe màu gì", "có mấy con chó"]
    assert [q.decode() for q in columns["answers"]] == ["đỏ", "hai"]
    assert [q.decode() for q in columns["type"]] == ["color", "number"]
    assert list(columns["task"]) == [b"vqa"] * 2 and list(columns["explanations"]) == [b""] * 2


def test_several_answers_are_lines(made):
    rows = list(made.as_data_source("test", decoders=SKIP))
    answers = [a.decode() for row in rows for a in row["qa"]["answers"]]
    assert answers == ["đỏ", "biển", "vàng\ncam"]


def test_tfds_decodes_pictures_of_any_kind(tmp_path):
    source = folders.vivqa(tmp_path / "published", pictures=())
    (source / "images").mkdir()
    for number, mode in ((11, "L"), (12, "RGBA"), (13, "RGB")):
        Image.new(mode, (6, 4)).save(source / "images" / f"{number:012}.png")
    data = make(tfds.builder("vivqa", data_dir=tmp_path / "data"), source).as_data_source("train")
    assert [row["image"].shape for row in data] == [(4, 6, 3), (4, 6, 4), (4, 6, 3)]


def test_questions_are_repeated_beside_the_examples(made):
    lines = (made.data_path / "questions-train.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["question"] for row in rows[:2]] == ["xe màu gì", "có mấy con chó"]
    assert rows[0]["picture"] == rows[1]["picture"] and rows[0]["answers"] == ["đỏ"]
    assert len(rows) == 5


def test_leaked_pictures_can_be_dropped(source, tmp_path):
    config = builders.PublishedConfig(name="clean", drop_leaked=True)
    built = make(builders.ViVQA(data_dir=tmp_path, config=config), source)
    assert [row["id"] for row in built.as_data_source("train", decoders=SKIP)] == [
        b"12", b"13", b"15",
    ]  # fmt: skip


def test_annotations_need_no_pictures(tmp_path):
    source = folders.vivqa(tmp_path / "published", pictures=())
    built = make(tfds.builder("vivqa/annotations", data_dir=tmp_path / "data"), source)
    rows = list(built.as_data_source("train"))
    assert len(rows) == 5 and set(rows[0]) == {"id", "qa"}


def test_nothing_left_is_an_error_and_leaves_no_dataset(tmp_path):
    source = folders.vivqa(tmp_path / "published", pictures=())
    built = tfds.builder("vivqa", data_dir=tmp_path / "data")
    with pytest.raises(UserError, match="ViVQA: nothing is left"):
        make(built, source)
    assert not built.data_path.exists()


def sifted(*answers, split="train", digest=""):
    qa = tuple(QA(str(i), "vqa", "gì", (a,)) for i, a in enumerate(answers))
    record = Kept("a", "a.jpg", None, None, digest, qa)
    return sifting.Sifted({split: sifting.Split([record])}, [])


def test_the_fingerprint_tells_contents_apart():
    def of(*args, config="default", **kwargs):
        return builders.fingerprint("vivqa", config, sifted(*args, **kwargs))

    same = of("x", "y")
    assert same == of("x", "y") and len(same) == 64
    others = [of("y", "x"), of("x"), of("x", "y", split="test"), of("x", "y", digest="0")]
    assert len({same, *others, of("x", "y", config="annotations")}) == 6


def test_a_picture_that_changes_meanwhile_ends_the_run(tmp_path):
    source = folders.vivqa(tmp_path / "published")
    built = tfds.builder("vivqa", data_dir=tmp_path / "data")
    victim = source / "images" / f"COCO_train2014_{12:012}.jpg"
    built.on_example = lambda: folders.picture(victim, 77)
    with pytest.raises(UserError, match=r"000000000012\.jpg: changed while"):
        make(built, source)
    built.on_example = lambda: victim.unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"000000000012\.jpg: No such file"):
        make(built, source)
    assert not built.data_path.exists()


def test_many_pictures_make_several_shards_in_order(made, source, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_SHARD", 3)
    built = make(tfds.builder("vivqa", data_dir=tmp_path), source)
    assert built.info.splits["train"].shard_lengths == [3, 1]
    several, one = (list(b.as_data_source("train", decoders=SKIP)) for b in (built, made))
    assert [row["id"] for row in several] == [row["id"] for row in one]


def test_more_than_a_gigabyte_needs_no_tensorflow(source, tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 1000)
    assert make(tfds.builder("vivqa", data_dir=tmp_path), source).data_path.exists()


_FOREIGN_USE = """
import socket, sys

def refuse(*args, **kwargs):
    raise OSError("no network here")

socket.socket.connect = socket.getaddrinfo = refuse
import tensorflow_datasets as tfds
import vimoe_jax.datasets.preparing.builder

builder = tfds.builder("vivqa", data_dir=sys.argv[2])
builder.download_and_prepare(
    file_format="array_record",
    download_dir=sys.argv[2] + "/downloads",
    download_config=tfds.download.DownloadConfig(manual_dir=sys.argv[1]),
)
source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
assert len(source) == 4 and source[0]["image"].startswith(b"\\xff\\xd8")
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""


def test_tfds_alone_makes_it_without_tensorflow_or_network(source, tmp_path):
    command = [sys.executable, "-c", _FOREIGN_USE, str(source), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"NO_GCE_CHECK": "true", "PATH": ""}
    )
    assert done.returncode == 0, done.stderr


def test_the_guide_names_every_dataset_and_feature():
    guide = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text("utf-8")
    for name in datasets.NAMES:
        published = datasets.get(name)
        assert f"| `{name}` |" in guide and published.homepage in guide
        if len(published.variants) > 1:
            assert ", ".join(f"`{v}`" for v in published.variants) in guide
    features = ("id", "image", "qa/id", "qa/task", "qa/type", "qa/question", "qa/answers")
    assert all(f"`{feature}`" in guide for feature in (*features, "qa/explanations"))
