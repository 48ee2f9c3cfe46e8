"""What readers have in common, and questions; published schemas in files of our own invention."""

import dataclasses
import json

import pytest

from tests.datasets.compared import qa, reasons
from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets import NAMES, get
from vimoe_jax.datasets.annotations import Asked, Malformed, Picture
from vimoe_jax.datasets.readers.evjvqa import language
from vimoe_jax.datasets.readers.viocrvqa import field
from vimoe_jax.datasets.records import TASKS
from vimoe_jax.text.normalize import PROFILES

JSON = ("uit_viic", "ktvic", "openvivqa", "evjvqa", "viocrvqa", "vitextvqa", "vivqa_x")


# What they all have in common.


@pytest.mark.parametrize("name", NAMES)
def test_description(name):
    found = get(name)
    assert found.name == name and found.task in TASKS
    assert found.splits and set(found.splits) <= {"train", "validation", "test", "private_test"}
    assert found.citation.startswith("@") and found.citation.count("{") == found.citation.count("}")
    assert found.homepage.startswith("https://") and found.licence and "\n" not in found.licence
    assert found.profile in PROFILES
    assert all(getattr(found, f.name) not in ("", ()) for f in dataclasses.fields(found))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_its_files(read, name):
    assert read(name, files={"other.txt": "x"}) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_named_as_expected(read, name):
    found = get(name)
    empty = {"csv": b"question,answer,img_id,type,image_id\n", "json": b"[]", "jsonl": b""}
    files = {path: empty[path.rpartition(".")[2]] for path in found.expected}
    assert set(read(name, files=files)) <= set(found.splits)


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("content", ["[]", "{}", "3", '"x"', "null", '{"annotations": 3}'])
def test_another_schema_is_malformed_throughout(read, name, content):
    rows = read(name, files={get(name).expected[0]: content}).popitem()[1]
    assert all(isinstance(row, Malformed) for row in rows)
    assert len(rows) == (0 if name == "vivqa_x" and content == "[]" else 1)


@pytest.mark.parametrize("name", JSON)
def test_broken_json_is_an_error_at_once(read, name):
    with pytest.raises(UserError, match=r":2: broken JSON"):
        read(name, files={get(name).expected[0]: '{"annotations": [\n}'})


# Questions.

BY_ID = {
    "images": {"7": "b.jpg", "1": "a.JPG"},
    "annotations": {
        "10": {"image_id": 1, "question": "biển ghi gì?", "answer": "bán phở"},
        "11": {"image_id": "7", "question": "mấy người?", "answer": "ba người"},
    },
}
LISTS = {
    "images": [{"id": 1, "filename": "a.JPG"}, {"id": 7, "filename": "b.jpg"}],
    "annotations": [
        {"id": 10, "image_id": 1, "question": "biển ghi gì?", "answers": ["bán phở"], "QA-type": 1},
        {"id": 11, "image_id": 7, "question": "mấy người?", "answers": ["ba người"], "QA-type": 0},
    ],
}


@pytest.mark.parametrize("document", [BY_ID, LISTS])
@pytest.mark.parametrize("name", ["vlsp2023_dev_data.json", "openvivqa_val_v2.json"])
def test_openvivqa_in_both_schemas(read, document, name):
    rows = read("openvivqa", files={name: document})["validation"]
    assert qa(rows) == [("1", "biển ghi gì?", "bán phở"), ("7", "mấy người?", "ba người")]
    assert [a.picture.names for a in rows] == [("a.JPG",), ("b.jpg",)]
    assert [a.qa.id for a in rows] == ["10", "11"]
    assert [a.qa.type for a in rows] == (["", ""] if document is BY_ID else ["1", "0"])
    assert not read.files.ignored


def test_openvivqa_test_without_answers(read):
    document = {"images": {"1": "a.jpg"}, "annotations": {"5": {"image_id": 1, "question": "gì?"}}}
    rows = read("openvivqa", files={"vlsp2023_test_data.json": document})["test"]
    assert rows == [Malformed("vlsp2023_test_data.json: annotations['5']", "answer: missing")]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"image_id": None}, "image_id: missing"),
        ({"image_id": 2}, "image_id: no picture '2' is listed"),
        ({"image_id": 1.0}, "image_id: must be a string, not float"),
        ({"image_id": [1]}, "image_id: must be a string, not list"),
        ({"image_id": " "}, "image_id: empty"),
        ({"question": None}, "question: missing"),
        ({"question": 3}, "question: must be a string, not int"),
        ({"question": "a\ud800"}, "question: half a surrogate pair"),
        ({"answers": []}, "answers: an empty list"),
        ({"answers": None}, "answer: missing"),
        ({"answers": {"a": 1}}, "answers: must be a string, not dict"),
        ({"answers": ["a", None]}, "answers: missing"),
        ({"answers": True}, "answers: must be a string, not bool"),
        ({"answers": float("nan")}, "answers: must be a string, not float"),
        ({"id": {}}, "id: must be a string, not dict"),
        ({"QA-type": []}, "QA-type: must be a string, not list"),
    ],
)
def test_malformed_questions(read, change, reason):
    broken = {**LISTS["annotations"][0], **change}
    document = {**LISTS, "annotations": [broken, LISTS["annotations"][1]]}
    text = json.dumps(document)
    rows = read("openvivqa", files={"vlsp2023_train_data.json": text})["train"]
    assert rows[0] == Malformed("vlsp2023_train_data.json: annotations[0]", reason)
    assert isinstance(rows[1], Asked)


def test_repeated_ids_become_unique(read):
    one = LISTS["annotations"][0]
    document = {**LISTS, "annotations": [one, one, {**one, "id": "10/2"}, {**one, "id": "10"}]}
    rows = read("openvivqa", files={"vlsp2023_train_data.json": document})["train"]
    assert [a.qa.id for a in rows] == ["10", "10/2", "10/2/2", "10/3"]


def test_an_id_twice_with_two_annotations(read):
    text = '{"annotations": {"1": {"image_id": 1},\n"1": {"image_id": 2}}}'
    with pytest.raises(UserError, match=":2: two values of '1' in one object"):
        read("openvivqa", files={"vlsp2023_train_data.json": text})


EVJVQA = {
    "images": [{"id": 2007, "filename": "00000002007.jpg"}],
    "annotations": [
        {"id": 0, "image_id": 2007, "question": "how many people are selling pho?"},
        {"id": 1, "image_id": 2007, "question": "có mấy người bán phở?", "answer": "hai người."},
        {"id": 2, "image_id": 2007, "question": "nhóm người làm gì?"},
        {"id": 3, "image_id": 2007, "question": "何人がフォーを売っていますか?", "answer": "2人"},
    ],
}


def test_evjvqa_languages_and_ground_truth(read):
    truth = {"0": "two people", "1": "hai người .", "2": "mua phở", "3": "2人"}
    files = {"evjvqa_public_test.json": EVJVQA, "public_ground_truth.json": truth}
    rows = read("evjvqa", files=files)["test"]
    assert [(a.qa.id, a.qa.answers, a.qa.type) for a in rows] == [
        ("1", ("hai người.",), "vi"),
        ("2", ("mua phở",), "vi"),
    ]
    rows = read("evjvqa", "all", files=files)["test"]
    assert [a.qa.type for a in rows] == ["en", "vi", "vi", "ja"]


def test_evjvqa_without_ground_truth(read):
    rows = read("evjvqa", files={"evjvqa_private_test.json": EVJVQA})["private_test"]
    assert reasons(rows) == ["answer: missing"] and len(rows) == 2


def test_evjvqa_ground_truths_in_folders(read):
    files = {
        "evjvqa_public_test.json": EVJVQA,
        "public_test/ground_truth.json": {"2": "mua phở"},
        "private_test/ground_truth.json": {"2": "another"},
    }
    assert read("evjvqa", files=files)["test"][1].qa.answers == ("mua phở",)
    with pytest.raises(UserError, match="must be an object of answers"):
        read("evjvqa", files={"public_ground_truth.json": "[]"})


@pytest.mark.parametrize(
    "question, expected",
    [
        ("what is the man in front of the café doing?", "en"),
        ("what color is the ao dai?", "en"),
        ("quán café ở đâu?", "vi"),
        ("cô gái là ai?", "vi"),
        ("biển The Coffee House có màu gì?", "vi"),
        ("co\u0301 ma\u0302\u0301y ngu\u031bo\u031b\u0300i?", "vi"),
        ("バイクは何色ですか?", "ja"),
        ("左の人はáo dàiを着ていますか?", "ja"),
        ("", "en"),
    ],
)
def test_language(question, expected):
    assert language(question) == expected


def test_viocrvqa(read):
    document = {
        "images": [{"id": 4, "filename": "4.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 4, "question": "ai viết cuốn này?", "answers": ["Nam Cao"]},
            {"id": 2, "image_id": 4, "question": "cuốn này tên là gì?", "answers": ["your answer"]},
        ],
    }
    rows = read("viocrvqa", files={"dev.json": document, "test.json": document})
    assert [(a.qa.type, *a.qa.answers) for a in rows["validation"]] == [
        ("author", "Nam Cao"),
        ("title", "your answer"),
    ]
    assert rows["test"][0].qa.task == "ocr_vqa"


def test_pictures_by_file_name_where_none_is_listed(read):
    annotations = [{"image_id": i, "question": "tên gì?", "answers": "A"} for i in ("x.jpg", 12)]
    rows = read("viocrvqa", files={"train.json": {"annotations": annotations}})["train"]
    assert [a.picture for a in rows] == [Picture("x.jpg", ("x.jpg",)), Picture("12", ("12",))]


@pytest.mark.parametrize(
    "question, expected",
    [
        ("Tên cuốn sách này là gì?", "title"),
        ("tác giả cuốn sách tên gì", "author"),
        ("ai dịch cuốn sách này", "translator"),
        ("sách do nhà xuất bản nào in", "publisher"),
        ("quyển sách thuộc thể loại gì", "genre"),
        ("the\u0302\u0309 loa\u0323i cu\u0309a sa\u0301ch", "genre"),
        ("giá bao nhiêu", ""),
        ("", ""),
    ],
)
def test_field(question, expected):
    assert field(question) == expected


def test_vitextvqa_prefers_the_answers_to_the_form(read):
    def document(*answers):
        row = {"id": 29, "image_id": 7, "question": "quán tên gì?", "answers": list(answers)}
        return {"images": [{"id": 7, "filename": "7.jpg"}], "annotations": [row]}

    form = {"ViTextVQA_test.json": document("your answer"), "ViTextVQA_dev.json": document("a")}
    assert qa(read("vitextvqa", files=form)["test"]) == [("7", "quán tên gì?", "your answer")]
    files = {**form, "ViTextVQA_test_gt.json": document("phở bò", "quán phở bò")}
    rows = read("vitextvqa", files=files)
    assert qa(rows["test"]) == [("7", "quán tên gì?", "phở bò", "quán phở bò")]
    assert list(rows) == ["validation", "test"]


VIVQA_X = {
    "question": "Đây có phải là bãi biển không?",
    "image_id": "393271",
    "image_name": "COCO_val2014_000000393271.jpg",
    "explanation": ["có cát", "có sóng", "có cát"],
    "answer": "đúng",
    "question_id": "393271001",
    "question_type": "is this",
    "answer_type": "yes/no",
}


def test_vivqa_x(read):
    rows = [
        VIVQA_X,
        {**VIVQA_X, "image_id": 393271, "question_id": 5, "explanation": "có cát"},
        {**VIVQA_X, "image_id": "393272"},
        {**VIVQA_X, "explanation": []},
        {**VIVQA_X, "answer_type": None},
        7,
    ]
    rows = read("vivqa_x", files={"ViVQA-X_val.json": rows})["validation"]
    assert rows[0].picture == rows[1].picture == Picture("393271", (), 393271)
    assert rows[0].qa.explanations == ("có cát", "có sóng", "có cát")
    assert rows[0].qa.answers == ("đúng",) and rows[0].qa.type == "yes/no"
    assert rows[0].qa.id == "393271001" and rows[0].where == "ViVQA-X_val.json: [0]"
    assert rows[1].qa.id == "5" and rows[1].qa.explanations == ("có cát",)
    assert reasons(rows) == [
        "image_name: is of picture 393271, not of 393272",
        "explanation: an empty list",
        "answer_type: missing",
        "not an object",
    ]
