"""Published schemas, in files of our own invention; the real ones where they lie."""

import dataclasses
import itertools
import json
from collections import Counter

import pytest

from vimoe_jax.data.datasets import NAMES
from vimoe_jax.data.datasets import get as dataset
from vimoe_jax.data.datasets.evjvqa import language
from vimoe_jax.data.datasets.files import Files
from vimoe_jax.data.datasets.published import Asked, Malformed, Picture
from vimoe_jax.data.datasets.viocrvqa import field
from vimoe_jax.data.records import TASKS
from vimoe_jax.data.text import PROFILES
from vimoe_jax.errors import UserError

JSON = ("uit_viic", "ktvic", "openvivqa", "evjvqa", "viocrvqa", "vitextvqa", "vivqa_x")


@pytest.fixture
def read(tmp_path):
    """Reads a dataset from files that are given by name."""

    def run(name, variant=None, **contents):
        for path, content in contents.pop("files").items():
            made = tmp_path / path
            made.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, str | bytes):
                content = json.dumps(content, ensure_ascii=False)
            made.write_bytes(content if isinstance(content, bytes) else content.encode())
        found = dataset(name)
        run.files = Files(tmp_path)
        splits = found.read(run.files, variant or found.variants[0])
        return {split: list(rows) for split, rows in splits.items()}

    return run


def qa(rows):
    return [(a.picture.id, a.qa.question, *a.qa.answers) for a in rows]


def reasons(rows):
    return [a.reason for a in rows if isinstance(a, Malformed)]


# What they all have in common.


@pytest.mark.parametrize("name", NAMES)
def test_description(name):
    found = dataset(name)
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
    found = dataset(name)
    empty = {"csv": b"question,answer,img_id,type,image_id\n", "json": b"[]", "jsonl": b""}
    files = {path: empty[path.rpartition(".")[2]] for path in found.expected}
    assert set(read(name, files=files)) <= set(found.splits)


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("content", ["[]", "{}", "3", '"x"', "null", '{"annotations": 3}'])
def test_another_schema_is_malformed_throughout(read, name, content):
    rows = read(name, files={dataset(name).expected[0]: content}).popitem()[1]
    assert all(isinstance(row, Malformed) for row in rows)
    assert len(rows) == (0 if name == "vivqa_x" and content == "[]" else 1)


@pytest.mark.parametrize("name", JSON)
def test_broken_json_is_an_error_at_once(read, name):
    with pytest.raises(UserError, match=r":2: broken JSON"):
        read(name, files={dataset(name).expected[0]: '{"annotations": [\n}'})


# CSV.

VIVQA = """,question,answer,img_id,type
0,màu của chiếc bình là gì ,màu xanh lá,68857,2
1,có mấy con mèo,hai,139,1
2,"đồ vật, bên trái là gì",bàn,139,0
3,nơi nào có hoa,phòng tắm,000139,3
"""


@pytest.mark.parametrize("mark, end", [("", "\n"), ("\ufeff", "\r\n")])
def test_vivqa(read, mark, end):
    rows = read("vivqa", files={"train.csv": mark + VIVQA.replace("\n", end)})["train"]
    assert qa(rows) == [
        ("68857", "màu của chiếc bình là gì ", "màu xanh lá"),
        ("139", "có mấy con mèo", "hai"),
        ("139", "đồ vật, bên trái là gì", "bàn"),
        ("139", "nơi nào có hoa", "phòng tắm"),
    ]
    assert [a.qa.type for a in rows] == ["color", "number", "object", "location"]
    assert [a.qa.id for a in rows] == ["0", "1", "2", "3"]
    assert rows[0].where == "train.csv:2" and rows[0].picture.coco == 68857
    assert not read.files.ignored


def test_vivqa_rows_that_are_not_one(read):
    rows = ("q,a,1,4,", "q,a,x,0,", "q,a,1.0,0,", "q,a,0,0,", "q,a,1", ",,1,0,")
    text = "\n".join(("question,answer,img_id,type,extra", *rows))
    rows = read("vivqa", files={"test.csv": text})["test"]
    assert reasons(rows) == [
        "type: must be 0 to 3, not '4'",
        "img_id: must be a number of COCO's",
        "img_id: must be a number of COCO's",
        "img_id: must be a number of COCO's",
        "3 fields instead of 5",
    ]
    assert qa(rows[5:]) == [("1", "", "")]  # sifting says what is wrong with it
    assert rows[5].qa.id == "test.csv:7"
    assert read.files.ignored == {"test.csv: 'extra'": 5}


def test_vivqa_without_a_column(read):
    with pytest.raises(UserError, match=r"train.csv:1: no column 'img_id'"):
        read("vivqa", files={"train.csv": "question,answer,type\n"})


def test_viclevr(read):
    rows = read(
        "viclevr",
        files={
            "train.csv": "image_id,question,answer\nCLEVR_012,mấy khối,2\n 7 ,màu gì,đỏ\n,a,b\n",
            "val.csv": "question,image_id,answer\nto không,7,có\n",
        },
    )
    assert qa(rows["train"][:2]) == [("CLEVR_012", "mấy khối", "2"), ("7", "màu gì", "đỏ")]
    assert rows["train"][1].picture == Picture("7", ("7.png", "7"))
    assert reasons(rows["train"]) == ["image_id: empty"]
    assert qa(rows["validation"]) == [("7", "to không", "có")]


# Captions.


def coco(counts, name="{:012}.jpg"):
    """Captions in COCO's layout, so many a picture."""
    pictures = [{"id": i, "file_name": name.format(i), "license": 1} for i in counts]
    captions = [f"Cầu thủ {i} đá bóng, hoà {n}." for i, c in counts.items() for n in range(c)]
    ids = [i for i, c in counts.items() for _ in range(c)]
    annotations = [
        {"image_id": i, "caption": c, "id": 10 + n}
        for n, (i, c) in enumerate(zip(ids, captions, strict=True))
    ]
    return {"images": pictures, "annotations": annotations}


def test_uit_viic(read):
    counts = {535668: 1, 7: 4, 42: 5, 581929: 9, 9: 10}
    rows = read("uit_viic", files={"uitviic_captions_val2017.json": coco(counts)})["validation"]
    assert Counter(a.picture.coco for a in rows) == counts
    assert rows[1].picture == Picture("7", (), 7)
    assert rows[1].qa.question == "" and rows[1].qa.answers == ("Cầu thủ 7 đá bóng, hoà 0.",)
    assert rows[1].qa.id == "11" and rows[1].qa.task == "caption"
    assert rows[1].where == "uitviic_captions_val2017.json: annotations[1]"


def test_uit_viic_pictures_that_are_not_the_ones(read):
    document = coco({7: 1, 42: 1, 9: 1, 5: 1, 6: 1})
    document["images"][0]["file_name"] = "000000000070.jpg"
    document["images"][1]["file_name"] = "COCO_val2014_000000000420.jpg"
    document["images"][2]["file_name"] = "cầu thủ.jpg"
    document["images"][3]["id"] = True
    document["images"].append({"id": 6, "file_name": "other.jpg"})
    rows = read("uit_viic", files={"uitviic_captions_train2017.json": document})["train"]
    assert reasons(rows) == [
        "image_id: picture '7': file_name: is of picture 70, not of 7",
        "image_id: picture '42': file_name: is of picture 420, not of 42",
        "image_id: no picture '5' is listed",
        "image_id: picture '6': is listed with two file names",
    ]
    assert rows[2].picture == Picture("9", ("cầu thủ.jpg",), 9)


def test_uit_viic_without_a_list_of_pictures(read):
    document = {"annotations": [{"image_id": 7, "caption": "a"}, {"image_id": "x", "caption": "b"}]}
    rows = read("uit_viic", files={"uitviic_captions_train2017.json": document})["train"]
    assert rows[0].picture == Picture("7", (), 7) and rows[0].qa.id == "annotations[0]"
    assert reasons(rows) == ["image_id: must be a number of COCO's"]


KTVIC = {
    "images": [
        {"id": 1, "filename": "00000000001.jpg"},
        {"id": "2", "file_name": "00000000009.png"},
        {"filename": "00000000003.jpg"},
    ],
    "annotations": [
        {"id": 5, "image_id": 1, "caption": "Họ đang ăn.", "segment_caption": "Họ đang_ăn ."},
        {"image_id": "1", "caption": "Chợ nổi.", "segment_caption": "Chợ nổi ."},
        {"image_id": 2, "caption": "Chợ.", "segment_caption": "Chợ ."},
        {"image_id": 3, "caption": "Xe máy.", "segment_caption": "Xe_máy ."},
        {"filename": "00000000003.jpg", "caption": "Xe.", "segment_caption": "Xe ."},
        {"image_id": 9, "caption": "Không có."},
        {"caption": "Không có."},
    ],
}  # fmt: skip


def test_ktvic_with_and_without_ids(read):
    rows = read("ktvic", files={"train_data.json": KTVIC})["train"]
    assert [(a.picture.names[0], a.qa.answers[0]) for a in rows[:5]] == [
        ("00000000001.jpg", "Họ đang ăn."),
        ("00000000001.jpg", "Chợ nổi."),
        ("00000000009.png", "Chợ."),
        ("00000000003.jpg", "Xe máy."),
        ("00000000003.jpg", "Xe."),
    ]
    assert rows[0].picture == rows[1].picture and rows[3].picture == rows[4].picture
    assert len({a.qa.id for a in rows[:5]}) == 5 and rows[0].qa.id == "5"
    assert reasons(rows) == ["image_id: no picture '9' is listed", "image_id: missing"]


def test_ktvic_segmented(read):
    rows = read("ktvic", "segmented", files={"ktvic-test_data.json": KTVIC})["test"]
    assert [a.qa.answers[0] for a in rows[:2]] == ["Họ đang_ăn .", "Chợ nổi ."]
    assert reasons(rows) == ["segment_caption: missing"] * 2


def test_an_id_that_could_be_two_pictures_is_neither(read):
    document = {
        "images": [{"id": 3, "filename": "a.jpg"}, {"filename": "0003.jpg"}],
        "annotations": [{"image_id": 3, "caption": "a"}, {"image_id": "0003", "caption": "b"}],
    }
    rows = read("ktvic", files={"train_data.json": document})["train"]
    assert reasons(rows[:1]) == ["image_id: picture '3': is listed with two file names"]
    assert rows[1].picture.names == ("0003.jpg",)


def test_xm3600(read):
    row = {"image/key": "000411001ff7dd4f", "image/locale": "vi", "new": 1}
    lines = [
        {**row, "vi": {"caption": ["Một căn phòng.", "Phòng khách."], "caption/tokenized": []}},
        {**row, "en": {"caption": ["A room."]}},
        {**row, "vi": {"caption": []}},
        {**row, "vi": {"caption": ["a", 3]}},
        [],
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    rows = read("xm3600", files={"xm3600/captions.jsonl": text})["test"]
    assert rows[0].qa.answers == ("Một căn phòng.", "Phòng khách.")
    assert rows[0].picture == Picture("000411001ff7dd4f", ("000411001ff7dd4f.jpg",))
    assert rows[0].where == "captions.jsonl:1"
    assert reasons(rows) == [
        "vi: missing, or not an object",
        "caption: an empty list",
        "caption: must be a string, not int",
        "not an object",
    ]
    assert read.files.ignored == {"captions.jsonl: 'new'": 4}


def test_coco35l(read):
    row = {
        "image_id": "391895_1",
        "src_lang": "en",
        "trg_lang": "vi",
        "caption_tokenized": "A man .",
    }
    lines = [
        {**row, "trg_lang": "de", "translation_tokenized": "Ein Mann ."},
        {**row, "translation_tokenized": "Một người đàn ông ."},
        {**row, "image_id": "391895_2", "translation_tokenized": "Đàn ông ."},
        {**row, "image_id": "391895", "translation_tokenized": "x"},
        {**row, "image_id": 391895, "translation_tokenized": "x"},
        {**row, "trg_lang": None, "translation_tokenized": "x"},
        row,
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    rows = read("coco35l", files={"dev_35_caption.jsonl": text})["validation"]
    assert qa(rows[:2]) == [("391895", "", "Một người đàn ông ."), ("391895", "", "Đàn ông .")]
    assert rows[0].picture.coco == 391895 and rows[0].where == "dev_35_caption.jsonl:2"
    assert reasons(rows) == [
        "image_id: must be a number of COCO's and a caption's, as in 42_1",
        "image_id: must be a string, not int",
        "translation_tokenized: missing",
    ]


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


# What their authors published.


def published(real_data, folder, name, variant=None):
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    found = dataset(name)
    files = Files(real_data / folder)
    splits = found.read(files, variant or found.variants[0])
    splits = {split: list(rows) for split, rows in splits.items()}
    assert not any(isinstance(row, Malformed) for rows in splits.values() for row in rows)
    assert not files.ignored
    for rows in splits.values():
        assert len({row.qa.id for row in rows}) == len(rows)
    return splits


@pytest.mark.real_data
def test_vivqa_as_published(real_data):
    rows = published(real_data, "vivqa", "vivqa")["train"]
    assert len(rows) == 11_999
    counts = {"object": 4987, "number": 1776, "color": 2498, "location": 2738}
    assert Counter(row.qa.type for row in rows) == counts


@pytest.mark.real_data
def test_uit_viic_as_published(real_data):
    splits = published(real_data, "uit_viic", "uit_viic")
    counts = {name: (len({r.picture.id for r in s}), len(s)) for name, s in splits.items()}
    assert counts == {"train": (2695, 13_481), "validation": (924, 4620)}


@pytest.mark.real_data
def test_vivqa_x_as_published(real_data):
    rows = published(real_data, "vivqa_x", "vivqa_x")["validation"]
    assert len(rows) == 1459 and all(len(row.qa.explanations) == 3 for row in rows)


@pytest.mark.real_data
def test_evjvqa_as_published(real_data):
    rows = published(real_data, "evjvqa", "evjvqa", "all")["test"]
    assert len(rows) == 5015 and len({row.picture.id for row in rows}) == 558
    assert Counter(row.qa.type for row in rows) == {"en": 1686, "vi": 1678, "ja": 1651}
    # Each picture's questions stand in the order English, Vietnamese, Japanese: a question whose
    # language is mistaken breaks it, unless it stands at a border.
    for _, some in itertools.groupby(rows, key=lambda row: row.picture.id):
        order = ["en vi ja".split().index(row.qa.type) for row in some]
        assert order == sorted(order)
    assert len(published(real_data, "evjvqa", "evjvqa")["test"]) == 1678


@pytest.mark.real_data
def test_viocrvqa_wordings_as_published(real_data):
    path = real_data / "viocrvqa" / "field_labels.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    labels = json.loads(path.read_text())
    assert len(labels) == 240
    assert {q: field(q) for q in labels} == labels


@pytest.mark.real_data
def test_questions_about_photographs_as_published(real_data):
    """Readers and finder give the pairs that were put together by other means."""
    pairs = real_data / "images" / "pairs.jsonl"
    if not pairs.is_file():
        pytest.skip(f"no {pairs}")
    files = Files(real_data)
    names = {"ViVQA": "vivqa", "UIT-ViIC": "uit_viic", "ViVQA-X": "vivqa_x"}
    splits = {"val": "validation", "validation": "validation"}
    read = {n: {} for n in names}
    for title, name in names.items():
        for split, rows in dataset(name).read(files, "default").items():
            for row in rows:
                key = (split, row.picture.coco, row.qa.question)
                read[title].setdefault(key, []).append(row)
    for line in pairs.read_text().splitlines():
        pair = json.loads(line)
        split = splits.get(pair["split"], pair["split"])
        some = read[pair["dataset"]][split, pair["coco_id"], pair.get("question", "")]
        assert set(pair.get("answers", [pair.get("caption")])) <= {
            answer for row in some for answer in row.qa.answers
        }
        assert files.picture(some[0].picture, split).name == f"{pair['coco_id']:012}.jpg"
