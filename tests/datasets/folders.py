"""Small folders in the schema of published datasets, with invented questions and drawn pictures."""

import csv

from PIL import Image

TRAIN = [
    ("xe màu gì", "đỏ", 11, 2), ("có mấy con chó", "hai", 11, 1), ("ai đang chạy", "cậu bé", 12, 0),
    ("mèo nằm ở đâu", "trên bàn", 13, 3), ("mèo nằm ở đâu", "trên bàn", 13, 3),
    ("áo màu gì", "xanh", 14, 2), ("áo màu gì", "tím", 14, 2), ("", "hai", 12, 1),
    ("chó làm gì", "chạy", 15, 0), ("con gì bay", "chim", 99, 0),
]  # fmt: skip
TEST = [
    ("xe màu gì", "đỏ", 11, 2), ("thuyền ở đâu", "biển", 21, 3), ("cờ màu gì", "vàng", 22, 2),
    ("cờ màu gì", "cam", 22, 2),
]  # fmt: skip
PICTURES = (11, 12, 13, 14, 15, 21, 22)


def picture(path, number, size=(32, 24)):
    """A picture of its own for each number; JPEG, PNG, … by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, ((number * 37) % 256, (number * 91) % 256, number % 256)).save(path)


def table(path, rows):
    """A CSV file as ViVQA has them."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "question", "answer", "img_id", "type"])
        writer.writerows((i, *row) for i, row in enumerate(rows))


def vivqa(folder, train=TRAIN, test=TEST, pictures=PICTURES):
    """ViVQA: one picture missing, duplicates, contradictions, one picture in both splits.

    Kept are 3 pictures and 4 questions of train (15 aside, which tests may break), 3 of test.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table(folder / "train.csv", train)
    table(folder / "test.csv", test)
    for number in pictures:
        picture(folder / "images" / f"COCO_train2014_{number:012}.jpg", number)
    return folder


def contents(folder):
    """All files below a folder, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}
