"""Tables and captions: published schemas in files of our own invention."""

import json
from collections import Counter

import pytest

from tests.datasets.compared import qa, reasons
from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.annotations import Picture

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
