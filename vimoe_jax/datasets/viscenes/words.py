"""What ViScenes speaks of, in Vietnamese: things with their classifiers, colours, places, books."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Thing:
    """A sort of object.

    Attributes:
      icon: the name of its drawing.
      classifier: the word that counts it (con, quả, chiếc, …).
      noun: the rest of its name.
      sort: what it is called while its name is not given away: con vật, quả, vật.
      ask: how a question asks for something of its sort.
    """

    icon: str
    classifier: str
    noun: str
    sort: str
    ask: str

    @property
    def name(self) -> str:
        """Classifier and noun: con mèo."""
        return f"{self.classifier} {self.noun}"


def _animal(icon: str, noun: str) -> Thing:
    return Thing(icon, "con", noun, "con vật", "con gì")


def _thing(icon: str, classifier: str, noun: str) -> Thing:
    return Thing(icon, classifier, noun, "vật", "vật gì")


THINGS = (
    _animal("cat", "mèo"),
    _animal("fish", "cá"),
    _animal("bird", "chim"),
    _animal("butterfly", "bướm"),
    Thing("apple", "quả", "táo", "quả", "quả gì"),
    Thing("ball", "quả", "bóng", "quả", "quả gì"),
    _thing("car", "chiếc", "ô tô"),
    _thing("boat", "chiếc", "thuyền"),
    _thing("house", "ngôi", "nhà"),
    _thing("tree", "cái", "cây"),
    _thing("flower", "bông", "hoa"),
    _thing("hat", "chiếc", "mũ"),
    _thing("cup", "cái", "cốc"),
    _thing("umbrella", "chiếc", "ô"),
    _thing("flag", "lá", "cờ"),
    _thing("star", "ngôi", "sao"),
)

COLORS: dict[str, tuple[int, int, int]] = {
    "đỏ": (214, 32, 38),
    "xanh lá": (42, 157, 62),
    "xanh dương": (34, 92, 205),
    "vàng": (248, 212, 32),
    "cam": (245, 130, 24),
    "tím": (126, 48, 166),
    "hồng": (246, 130, 178),
    "đen": (34, 34, 38),
    "trắng": (250, 250, 250),
    "nâu": (124, 74, 34),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a scene is set: trên + bãi cỏ."""

    preposition: str
    name: str

    @property
    def phrase(self) -> str:
        """Where things are: trên bãi cỏ."""
        return f"{self.preposition} {self.name}"


# Background -> the place.
PLACES = {
    "grass": Place("trên", "bãi cỏ"),
    "beach": Place("trên", "bãi biển"),
    "street": Place("trên", "đường phố"),
    "room": Place("trong", "căn phòng"),
    "classroom": Place("trong", "lớp học"),
    "lake": Place("trên", "mặt hồ"),
    "snow": Place("trên", "cánh đồng tuyết"),
    "night": Place("dưới", "bầu trời đêm"),
}
# What a background seems to show already, so that counting it would be ambiguous.
NOT_ON = {"street": "house", "night": "star"}

NUMBERS = {1: "một", 2: "hai", 3: "ba", 4: "bốn", 5: "năm"}
SIZES = {"big": "to", "small": "nhỏ"}
# Axis -> how the first of two stands to the second, and the second to the first.
RELATIONS = {"left": ("bên trái", "bên phải"), "above": ("phía trên", "phía dưới")}
ORDERS = {"left": "từ trái sang phải", "above": "từ trên xuống dưới"}

TITLES = (
    "Mùa Hoa Bưởi", "Đường Về Quê Mẹ", "Biển Gọi", "Nắng Tháng Ba", "Chú Mèo Lười",
    "Bếp Nhà Mình", "Sao Hôm", "Cánh Diều Tuổi Thơ", "Dưới Bóng Tre", "Người Giữ Đèn",
    "Ngôi Nhà Gỗ", "Hạt Giống Nhỏ", "Phố Cổ Chiều Mưa", "Vũ Trụ Kỳ Thú", "Thành Cổ Ngàn Năm",
    "Món Ngon Xứ Huế", "Rừng Đước", "Chuyện Của Gió", "Sông Trôi", "Bài Toán Vui",
    "Ánh Trăng Xưa", "Lời Ru Của Núi", "Khu Vườn Bí Ẩn", "Hành Trình Về Nam",
)  # fmt: skip
AUTHORS = (
    "Lê Thu An", "Trần Hải Vân", "Nguyễn Gia Bảo", "Phạm Quỳnh Như", "Đỗ Minh Triết",
    "Vũ Hoàng Yến", "Bùi Thế Lữ", "Hồ Ngọc Điệp", "Đặng Khôi", "Mai Thúy Kiều",
    "Lý Sơn Tùng", "Ngô Bích Phượng",
)  # fmt: skip
TRANSLATORS = (
    "Cao Thị Xuân", "Tạ Đức Huy", "Dương Hà My", "Phan Văn Kỷ", "Trịnh Ái Liên", "Kiều Thục Ước",
)  # fmt: skip
PUBLISHERS = (
    "NXB Hoa Sen",
    "NXB Sao Mai",
    "NXB Trẻ Thơ",
    "NXB Đất Việt",
    "NXB Tri Ân",
    "NXB Cửu Long",
)


@dataclasses.dataclass(frozen=True)
class Genre:
    """How the covers of a genre look: paper, ink (RGB, 0 to 255) and emblem."""

    paper: tuple[int, int, int]
    ink: tuple[int, int, int]
    emblem: str


GENRES = {
    "thiếu nhi": Genre((255, 226, 120), (120, 40, 20), "kite"),
    "tiểu thuyết": Genre((96, 36, 60), (255, 238, 220), "heart"),
    "khoa học": Genre((24, 58, 110), (220, 244, 255), "flask"),
    "nấu ăn": Genre((250, 236, 214), (150, 44, 20), "pot"),
    "lịch sử": Genre((178, 142, 92), (44, 24, 10), "pagoda"),
    "du lịch": Genre((176, 224, 214), (10, 66, 80), "suitcase"),
}
SIGNS = (
    "Phở Bò", "Cà Phê", "Nhà Sách", "Bún Chả", "Tiệm Bánh", "Hiệu Thuốc", "Sửa Xe", "Cắt Tóc",
    "Trà Sữa", "Quần Áo", "Giặt Ủi", "Chợ Hoa", "Cơm Tấm", "Kem Dừa", "Xôi Gấc", "Bưu Điện",
)  # fmt: skip
