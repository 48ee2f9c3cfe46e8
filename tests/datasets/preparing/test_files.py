import json
import os

import pytest

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.annotations import Malformed, Picture
from vimoe_jax.datasets.preparing.files import (
    Files,
    NoPicture,
    coco_number,
    read_csv,
    read_json,
    read_jsonl,
)


def tree(root, contents):
    """Files under a folder, by path."""
    for path, content in contents.items():
        made = root / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Files(root)


def at(root, *paths):
    """Files that hold their paths."""
    return tree(root, {path: path for path in paths})


def found(files, picture, split="train"):
    return files.picture(picture, split).relative_to(files.root).as_posix()


def reason(files, picture, split="train"):
    with pytest.raises(NoPicture) as e:
        files.picture(picture, split)
    return str(e.value)


def named(*names):
    return Picture(names[0], names)


# Folders.


@pytest.mark.parametrize("root", ["nowhere", "a.txt", "nul\0"])
def test_not_a_folder(tmp_path, root):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError) as e:
        Files(tmp_path / root)
    assert "\n" not in str(e.value)


def test_unreadable_folder(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        Files(tmp_path)


def test_links_are_followed_once_and_hidden_files_left_out(tmp_path):
    at(tmp_path / "elsewhere", "b.jpg")
    at(tmp_path / "root", "a/.hidden/c.jpg", "a/.d.jpg")
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/gone.jpg").symlink_to(tmp_path / "nothing")
    files = Files(tmp_path / "root")
    assert found(files, named("b.jpg")) == "link/b.jpg"
    for name in ("c.jpg", ".d.jpg", "gone.jpg", "up", ""):
        assert reason(files, named(name)) == "missing image"


# Annotation files.


def test_annotation_by_pattern(tmp_path):
    files = at(tmp_path, "x/y/Train.JSON", "x/dev.json", "z.csv")
    assert files.annotation("train.json") == tmp_path / "x/y/Train.JSON"
    assert files.annotation("val.json", "DEV.*", "train.json") == tmp_path / "x/dev.json"
    assert files.annotation("test.json") is None
    assert files.annotation("y/train.json") == tmp_path / "x/y/Train.JSON"
    assert files.annotation("x/train.json") is None


def test_the_shallowest_annotation_wins(tmp_path):
    files = at(tmp_path, "b/train.json", "a/old/train.json")
    assert files.annotation("train.json") == tmp_path / "b/train.json"


def test_different_annotation_files(tmp_path):
    files = at(tmp_path, "a/train.json", "b/train.json")
    with pytest.raises(UserError, match=r"a/train.json and .*b/train.json differ"):
        files.annotation("train.json")


def test_equal_annotation_files_are_one(tmp_path):
    files = tree(tmp_path, {"a/train.json": "{}", "b/train.json": "{}"})
    assert files.annotation("train.json") == tmp_path / "a/train.json"


def test_a_folder_is_no_annotation(tmp_path):
    files = at(tmp_path, "train.json/a.txt", "deep/er/train.json")
    assert files.annotation("train.json") == tmp_path / "deep/er/train.json"


# Pictures by name.


@pytest.mark.parametrize(
    "have, name",
    [
        ("a.jpg", "a.jpg"),
        ("images/a.jpg", "a.jpg"),
        ("A.JPG", "a.jpg"),
        ("a.JPG", "a.png"),
        ("a.jpeg", "a.jpg"),
        ("a.webp", "a"),
        ("images/a.jpg", "images/a.jpg"),
        ("Images/a.PNG", "images\\a.jpg"),
        ("images/a.jpg", "/home/someone/images/a.jpg"),
        ("mu\u031b\u0301t.jpg", "m\u01b0\u0301t.jpg"),
        ("a.b.jpg", "a.b"),
    ],
)
def test_spellings_of_a_name(tmp_path, have, name):
    assert found(at(tmp_path, have, "b/other.jpg"), named(name)) == have


@pytest.mark.parametrize(
    "have, name",
    [
        ("112.jpg", "12.jpg"),
        ("012.jpg", "12.jpg"),
        ("12.jpg.txt", "12.jpg"),
        ("a.txt", "a.jpg"),
        ("a", "a.jpg"),
        ("a.b.jpg", "a.jpg"),
        ("b/1.jpg", "a/1.jpg"),
        ("b/1.jpg", "../1.jpg/"),
        ("1.jpg", "/etc/1.jpg"),
        ("nul.jpg", "nul.jpg\0"),
    ],
)
def test_other_names_are_not_it(tmp_path, have, name):
    assert reason(at(tmp_path, have), named(name)) == "missing image"


def test_the_exact_name_wins(tmp_path):
    files = at(tmp_path, "a.jpg", "A.jpg", "a.png", "a.JPG")
    for name in ("a.jpg", "A.jpg", "a.png", "a.JPG"):
        assert found(files, named(name)) == name
    assert found(files, named("A.png")) == "a.png"
    assert reason(files, named("a.gif")) == "ambiguous image"


def test_likelier_names_go_first(tmp_path):
    files = at(tmp_path, "b.jpg", "a.png")
    assert found(files, named("a.jpg", "b.jpg")) == "a.png"
    assert found(files, named("c.jpg", "b.jpg")) == "b.jpg"


# Splits.


def test_numbers_that_start_anew_in_each_split(tmp_path):
    files = at(
        tmp_path, "train/1.jpg", "val-images/1.jpg", "public_test/1.jpg", "private_test/1.jpg"
    )
    assert found(files, named("1.jpg"), "train") == "train/1.jpg"
    assert found(files, named("1.jpg"), "validation") == "val-images/1.jpg"
    assert found(files, named("1.jpg"), "test") == "public_test/1.jpg"
    assert found(files, named("1.jpg"), "private_test") == "private_test/1.jpg"


@pytest.mark.parametrize("folder", ["train", "Training", "trainImages", "x/train2014/y", "train-a"])
def test_a_name_is_not_looked_for_in_another_split(tmp_path, folder):
    files = at(tmp_path, f"{folder}/1.jpg")
    assert found(files, named("1.jpg"), "train") == f"{folder}/1.jpg"
    for split in ("validation", "test", "private_test"):
        assert reason(files, named("1.jpg"), split) == "missing image"


def test_private_is_not_public(tmp_path):
    files = at(tmp_path, "private-test-images/1.jpg", "test/2.jpg")
    assert reason(files, named("1.jpg"), "test") == "missing image"
    assert reason(files, named("2.jpg"), "private_test") == "missing image"


def test_words_that_only_begin_like_a_split(tmp_path):
    files = at(tmp_path, "valley/1.jpg", "latest/2.jpg", "trains/3.jpg")
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        assert files.picture(named(name), "test").name == name


def test_copies_are_one_and_others_ambiguous(tmp_path):
    files = tree(
        tmp_path,
        {"x/1.jpg": "a", "y/1.jpg": "a", "x/2.jpg": "a", "y/2.jpg": "b", "test/2.jpg": "c"},
    )
    assert found(files, named("1.jpg")) == "x/1.jpg"
    assert reason(files, named("2.jpg")) == "ambiguous image"
    assert found(files, named("2.jpg"), "test") == "test/2.jpg"


# COCO.


@pytest.mark.parametrize(
    "have",
    [
        "000000000012.jpg",
        "val2017/000000000012.jpg",
        "train2014/COCO_train2014_000000000012.jpg",
        "x/COCO_val2014_000000000012.jpg",
        "COCO_test2015_000000000012.jpg",
        "coco_VAL2014_000000000012.JPG",
        "000000000012.png",
        "test/12.jpg",
        "12.JPEG",
    ],
)
def test_every_way_coco_names_a_file(tmp_path, have):
    others = ("112.jpg", "x/120.jpg", "000000000112.jpg", "COCO_val2014_000000000120.jpg")
    files = at(tmp_path, have, *others)
    for split in ("train", "validation", "test"):
        assert found(files, Picture("12", coco=12), split) == have


@pytest.mark.parametrize(
    "have",
    [
        "112.jpg",
        "00000000012.jpg",
        "0000000000012.jpg",
        "012.jpg",
        "12.png",
        "000000000012",
        "COCO_val2016_000000000012.jpg",
        "VizWiz_val_000000000012.jpg",
        "12_small.jpg",
    ],
)
def test_numbers_of_other_datasets_are_not_cocos(tmp_path, have):
    assert reason(at(tmp_path, have), Picture("12", coco=12)) == "missing image"


def test_a_padded_number_goes_before_a_bare_one(tmp_path):
    files = at(tmp_path, "a/12.jpg", "b/000000000012.jpg")
    assert found(files, Picture("12", coco=12)) == "b/000000000012.jpg"


def test_two_files_of_a_number(tmp_path):
    picture = Picture("12", coco=12)
    files = at(tmp_path, "train2014/COCO_train2014_000000000012.jpg", "small/000000000012.jpg")
    assert found(files, picture, "train").startswith("train2014/")
    assert reason(files, picture, "test") == "ambiguous image"


@pytest.mark.parametrize("number", [-1, 10**12, 10**400])
def test_impossible_numbers(tmp_path, number):
    assert reason(at(tmp_path, "1.jpg", "-1.jpg"), Picture("x", coco=number)) == "missing image"


def test_number_in_a_name():
    assert coco_number("COCO_val2014_000000393271.jpg") == 393271
    assert coco_number("val2017/000000000012.jpg") == 12
    assert coco_number("12.jpg") is None
    assert coco_number("00000002007.jpg") is None


# JSON.


def written(tmp_path, content, name="a.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_json_with_and_without_a_mark(tmp_path, bom):
    path = written(tmp_path, bom + '{"a": "đỏ", "b": [1, NaN, 1e999]}'.encode())
    assert read_json(path)["a"] == "đỏ"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", ":1: broken JSON: Expecting value at column 1"),
        (b'{"a": 1,\n "b": ]}', ":2: broken JSON: Expecting value at column 7"),
        (b'{"a": 1,\n "b": 2', ":2: broken JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": "\xff"}', ": not UTF-8: byte 0xff at 7"),
        ('{"a": 1}'.encode("utf-16"), ": not UTF-8: byte 0xff at 0"),
        (b"[" * 200_000, ":1: broken JSON: nested too deeply"),
        (b'{"a":' * 200_000, ":1: broken JSON: nested too deeply"),
        (b'{"a": "\x01"}', ":1: broken JSON: Invalid control character at at column 8"),
        (b'[{"x": "}"},\n{"k": 1,\n"k": 2},\n{}]', ":3: two values of 'k' in one object"),
        (b'{"k\\n": 1, "k\\n": 2}', ":1: two values of 'k\\n' in one object"),
    ],
)
def test_broken_json(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as e:
        read_json(path)
    assert str(e.value) == f"{path}{message}"


def test_numbers_of_any_length(tmp_path):
    digits = "9" * 50_000
    assert read_json(written(tmp_path, f'{{"a": {digits}, "b": 12}}')) == {
        "a": float("inf"),
        "b": 12,
    }


def test_equal_values_of_a_key_are_one(tmp_path):
    assert read_json(written(tmp_path, '{"a": [1], "a": [1]}')) == {"a": [1]}


def test_missing_file(tmp_path):
    for read in (read_json, lambda p: list(read_jsonl(p)), lambda p: list(read_csv(p, ()))):
        with pytest.raises(UserError, match="No such file"):
            read(tmp_path / "nothing")


def test_files_have_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("vimoe_jax.datasets.preparing.files._MAX_FILE", 10)
    monkeypatch.setattr("vimoe_jax.datasets.preparing.files._MAX_LINE", 10)
    path = written(tmp_path, json.dumps(list(range(10))))
    for read in (read_json, lambda p: list(read_jsonl(p)), lambda p: list(read_csv(p, ()))):
        with pytest.raises(UserError):
            read(path)


def test_jsonl(tmp_path):
    path = written(tmp_path, b'\xef\xbb\xbf{"a": 1}\n\n[2]\r\n"x"', "a.jsonl")
    assert list(read_jsonl(path)) == [
        ("a.jsonl:1", {"a": 1}),
        ("a.jsonl:3", [2]),
        ("a.jsonl:4", "x"),
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        (b"{", "broken JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "two values of 'a'"),
    ],
)
def test_broken_jsonl(tmp_path, line, message):
    path = written(tmp_path, b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=message) as e:
        list(read_jsonl(path))
    assert str(e.value).startswith(f"{path}:2: ")


# CSV.


def test_csv(tmp_path):
    path = written(
        tmp_path,
        '\ufeff,question,answer\r\n0,"có gì,\nở đâu",bàn\r\n\r\n1,a "b" c,d\r\n2,e\r\n3,f,g,h\r\n',
        "a.csv",
    )
    assert list(read_csv(path, ("question", "answer"))) == [
        ("a.csv:2", {"": "0", "question": "có gì,\nở đâu", "answer": "bàn"}),
        ("a.csv:5", {"": "1", "question": 'a "b" c', "answer": "d"}),
        Malformed("a.csv:6", "2 fields instead of 3"),
        Malformed("a.csv:7", "4 fields instead of 3"),
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", ":1: no column 'question' (the header has )"),
        ("a,b\n1,2\n", ":1: no column 'question' (the header has 'a', 'b')"),
        (
            "question,question\n",
            ":1: two columns 'question' (the header has 'question', 'question')",
        ),
        ('question\na\n"b\nc\n', ":3: broken CSV: unexpected end of data"),
        ('question\na\n"b"c\n', ":3: broken CSV: ',' expected after '\"'"),
        ("question\n" + "a" * 200_000, ":2: broken CSV: field larger than field limit (131072)"),
    ],
)
def test_broken_csv(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as e:
        list(read_csv(path, ("question",)))
    assert str(e.value) == f"{path}{message}"
