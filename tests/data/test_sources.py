"""Which splits the configuration opens: trained on, validated on, scored."""

import dataclasses
import json

import pytest
from PIL import Image

from tests.datasets import folders
from vimoe_jax.base.errors import UserError
from vimoe_jax.config.data import Data
from vimoe_jax.data import sources
from vimoe_jax.datasets.preparing.job import Choice, prepare
from vimoe_jax.datasets.records import questions


@pytest.fixture(scope="module")
def data(viscenes_dir, tmp_path_factory):
    """ViScenes with its four splits, a JSONL file and ViVQA with train and test."""
    folder = tmp_path_factory.mktemp("sources")
    lines = []
    for i in range(5):
        Image.new("RGB", (8, 8), (50 * i, 0, 0)).save(folder / f"{i}.png")
        split = "train" if i < 3 else "test"
        row = {"image": f"{i}.png", "task": "vqa", "question": "màu gì", "split": split}
        lines.append(json.dumps(row | {"answers": ["đỏ", "đỏ thẫm"]}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    prepare(Choice("vivqa", folders.vivqa(folder / "published"), viscenes_dir))
    return Data(
        dataset="viscenes:2,jsonl,vivqa:0.5",
        dir=str(viscenes_dir),
        source=str(folder / "mine.jsonl"),
        variant="tiny",
    )


def only(data, dataset, **more):
    return dataclasses.replace(data, dataset=dataset, **more)


def found(data, entry):
    return [(s.component.label, s.split, s.name) for s in sources.eval_splits(data, entry)]


def test_training_takes_all_parts(data):
    source = sources.open_train(data)
    sizes = [len(part) for part in source.sources]
    assert [p.label for p in source.components] == ["viscenes", "jsonl", "vivqa"]
    assert [p.weight for p in source.components] == [2, 1, 0.5]
    assert len(source) == sum(sizes) and sizes[1] == 3 and source.weighted
    assert len(list(questions(source))) == sum(len(record.qa) for record in source)


def test_one_dataset_is_a_mixture_of_one(data):
    source = sources.open_train(only(data, "jsonl"))
    assert len(source) == len(source.sources[0]) == 3


def test_a_variant_of_ones_own(data):
    a = sources.open_train(only(data, "viscenes"))
    b = sources.open_train(only(data, "viscenes@tiny", variant="default"))
    assert [r.id for r in a] == [r.id for r in b]


@pytest.mark.parametrize(
    ("split", "complaint"),
    [
        ("test_compositional", "jsonl: no records of split 'test_compositional' .*'test', 'train'"),
        ("tests", "viscenes has no split 'tests'; it has train, validation, test, test_comp"),
    ],
)
def test_training_needs_the_split_of_every_part(data, split, complaint):
    with pytest.raises(UserError, match=f"config.data.train_split: .*{complaint}"):
        sources.open_train(dataclasses.replace(data, train_split=split))


def test_a_published_dataset_without_the_split(data):
    with pytest.raises(UserError, match="vivqa has no split 'validation'; it has train, test"):
        sources.open_train(only(data, "vivqa", train_split="validation"))


def test_a_dataset_that_is_not_prepared_says_how(data):
    with pytest.raises(UserError, match=r"ktvic.*not prepared; run python -m vimoe_jax.data.prep"):
        sources.open_train(only(data, "viscenes,ktvic"))


def test_validation_leaves_out_parts_without_it(data, capsys):
    source = sources.open_validation(data)
    assert [p.label for p in source.components] == ["viscenes"] and not source.weighted
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2
    assert all(w.startswith("warning: config.data.val_split: left out: ") for w in warned)
    sources.open_validation(data, quiet=True)
    assert not capsys.readouterr().err
    with pytest.raises(UserError, match=r"config.data.val_split: .*mine.jsonl.*; vivqa has no"):
        sources.open_validation(only(data, "jsonl,vivqa"))


def test_a_damaged_file_is_no_missing_split(data, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    with pytest.raises(UserError, match=r"broken.jsonl:1: broken JSON") as e:
        sources.open_validation(dataclasses.replace(data, source=str(broken)))
    assert not isinstance(e.value, sources.NoSplit)


def test_scored_splits_of_one_dataset_keep_their_names(data):
    one = only(data, "jsonl")
    assert found(one, "test") == [("jsonl", "test", "test")]
    assert found(one, "") == [("jsonl", "", "all")]
    assert found(one, "jsonl/test") == [("jsonl", "test", "test")]
    assert found(one, "nach/links") == [("jsonl", "nach/links", "nach/links")]


def test_scored_splits_of_a_mixture_have_the_datasets_name(data, capsys):
    assert found(data, "test") == [
        ("viscenes", "test", "viscenes_test"),
        ("jsonl", "test", "jsonl_test"),
        ("vivqa", "test", "vivqa_test"),
    ]
    assert found(data, "test_compositional") == [
        ("viscenes", "test_compositional", "viscenes_test_compositional")
    ]
    assert capsys.readouterr().err.count("left out") == 2
    assert found(data, "jsonl/train") == [("jsonl", "train", "jsonl_train")]
    assert found(data, "jsonl/") == [("jsonl", "", "jsonl_all")]
    with pytest.raises(UserError, match=r"config.data.test_splits: .*'nowhere'"):
        found(data, "nowhere")


def test_a_dataset_that_is_not_trained_on(data):
    one = only(data, "jsonl")
    assert found(one, "vivqa/test") == [("vivqa", "test", "vivqa_test")]
    assert found(one, "viscenes@tiny/test") == [("viscenes_tiny", "test", "viscenes_tiny_test")]
    (split,) = sources.eval_splits(one, "vivqa/test")
    assert len(sources.open_eval(one, split)) > 0
    (split,) = sources.eval_splits(one, "vivqa/validation")
    with pytest.raises(sources.NoSplit, match="vivqa has no split 'validation'"):
        sources.open_eval(one, split)


def test_styles_reach_what_is_scored(data):
    styled = dataclasses.replace(data, style="short,jsonl=detailed")
    styles = [s.component.style for s in sources.eval_splits(styled, "test")]
    assert styles == ["short", "detailed", "short"]
    (other,) = sources.eval_splits(only(data, "jsonl", style="short"), "vivqa/test")
    assert other.component.style == "short"


def test_all_references_are_kept_for_scoring(data):
    for entry in ("test", "jsonl/test"):
        (split,) = (s for s in sources.eval_splits(data, entry) if s.component.name == "jsonl")
        answers = {qa.answers for qa in questions(sources.open_eval(data, split))}
        assert answers == {("đỏ", "đỏ thẫm")}
