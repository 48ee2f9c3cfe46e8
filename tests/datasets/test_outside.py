"""Datasets of other packages, `MODULE:NAME`: what is wrong with one is said in a line."""

import pytest

from vimoe_jax import datasets
from vimoe_jax.base.errors import UserError
from vimoe_jax.config.data import Data
from vimoe_jax.data import sources
from vimoe_jax.datasets.records import QA, BadRecord, Record

RECORD = Record("a", (), (QA("a/0", "vqa", "đây là gì", ("mèo",)),))
MODULE = f"{__name__}"


class Good:
    SPLITS = ("train", "test")

    def __init__(self, split, data_dir):
        self.place = split, data_dir

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return RECORD


class Unreadable(Good):
    def __getitem__(self, index):
        raise BadRecord("a.png: truncated")


class Wrong(Good):
    def __getitem__(self, index):
        return {"id": "a"}


class Missing(Good):
    def __init__(self, split, data_dir):
        raise FileNotFoundError(f"{data_dir}/{split}.csv: no such file")


class Unlisted(Good):
    SPLITS = None

    def __init__(self, split, data_dir):
        if split != "train":
            raise FileNotFoundError(f"{split}.csv")


def one_argument(split):
    return Good(split, "")


def a_list_of_text(split, data_dir):
    return "abc"


def a_number(split, data_dir):
    return 3


def test_it_is_given_the_split_and_the_folder():
    source = datasets.open(f"{MODULE}:Good", "test", data_dir="here")
    assert source.place == ("test", "here") and source[1] is RECORD
    assert datasets.splits(f"{MODULE}:Good") == ("train", "test")


def test_a_bad_first_record_is_counted_later():
    assert len(datasets.open(f"{MODULE}:Unreadable")) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.data:Source", "cannot be imported: No module named 'no_such_package'"),
        (f"{MODULE}:Godo", "has no 'Godo'"),
        (f"{MODULE}:MODULE", "cannot be called"),
        (f"{MODULE}:one_argument", "cannot be called"),
        (f"{MODULE}:a_number", "no __len__"),
        (f"{MODULE}:a_list_of_text", "records.Record, not str"),
        (f"{MODULE}:Wrong", "records.Record, not dict"),
        (f"{MODULE}:Missing", "data/train.csv: no such file"),
    ],
)
def test_one_line_says_what_is_wrong(name, message):
    with pytest.raises(UserError, match=message) as e:
        datasets.open(name)
    assert "\n" not in str(e.value) and str(e.value).startswith(f"{name}: ")


def test_a_module_with_a_mistake(tmp_path, monkeypatch):
    (tmp_path / "mistaken.py").write_text("def Source(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"cannot be imported: .*mistaken\.py, line 1"):
        datasets.open("mistaken:Source")


def test_a_class_that_lists_no_splits_speaks_for_itself():
    c = Data(dataset=f"{MODULE}:Unlisted", val_split="val")
    with pytest.raises(UserError, match=r"split 'val': val\.csv"):
        sources.open_validation(c)


def test_no_such_split():
    with pytest.raises(UserError, match="has no split 'val'; it has train, test"):
        datasets.open(f"{MODULE}:Good", "val")
