"""What ViScenes speaks of, in Vietnamese: things with their classifiers, colours, places, books."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Thing:
    """A kind of object.

    Attributes:
      icon: the name of its drawing.
      classifier: the word that counts it (con, quả, chiếc, …).
      noun: the rest of its name.
      ask: how a question asks for something of its sort.
    """

    icon: str
    classifier: str
    noun: str
    ask: str

    @property
    def name(self) -> str:
        """Classifier and noun: con mèo."""
        return f"{self.classifier} {self.noun}"


THINGS = (
    Thing("cat", "con", "mèo", "con gì"),
    Thing("fish", "con", "cá", "con gì"),
    Thing("bird", "con", "chim", "con gì"),
    Thing("butterfly", "con", "bướm", "con gì"),
    Thing("apple", "quả", "táo", "quả gì"),
    Thing("ball", "quả", "bóng", "quả gì"),
    Thing("car", "chiếc", "ô tô", "vật gì"),
    Thing("boat", "chiếc", "thuyền", "vật gì"),
    Thing("house", "ngôi", "nhà", "vật gì"),
    Thing("tree", "cái", "cây", "vật gì"),
    Thing("flower", "bông", "hoa", "vật gì"),
    Thing("hat", "chiếc", "mũ", "vật gì"),
    Thing("cup", "cái", "cốc", "vật gì"),
    Thing("umbrella", "cái", "ô", "vật gì"),
    Thing("flag", "lá", "cờ", "vật gì"),
    Thing("star", "ngôi", "sao", "vật gì"),
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

# Background -> the phrase that answers "where".
PLACES = {
    "grass": "trên bãi cỏ",
    "beach": "trên bãi biển",
    "street": "trên đường phố",
    "room": "trong căn phòng",
    "classroom": "trong lớp học",
    "lake": "trên mặt hồ",
    "snow": "trên cánh đồng tuyết",
    "night": "dưới bầu trời đêm",
}
# What a background seems to show already, so that counting it would be ambiguous.
NOT_ON = {"street": "house", "night": "star"}

NUMBERS = ("không", "một", "hai", "ba", "bốn", "năm")
SIZES = {"big": "to", "small": "nhỏ"}
RELATIONS = {
    "left": ("bên trái", "bên phải"),
    "above": ("phía trên", "phía dưới"),
}

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
# Genre -> its colours: background, ink.
GENRES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "thiếu nhi": ((255, 226, 120), (120, 40, 20)),
    "tiểu thuyết": ((96, 36, 60), (255, 238, 220)),
    "khoa học": ((24, 58, 110), (220, 244, 255)),
    "nấu ăn": ((250, 236, 214), (150, 44, 20)),
    "lịch sử": ((170, 134, 84), (40, 22, 10)),
    "du lịch": ((176, 224, 214), (10, 66, 80)),
}
SIGNS = (
    "Phở Bò", "Cà Phê", "Nhà Sách", "Bún Chả", "Tiệm Bánh", "Hiệu Thuốc", "Sửa Xe", "Cắt Tóc",
    "Trà Sữa", "Quần Áo", "Giặt Ủi", "Chợ Hoa", "Cơm Tấm", "Kem Dừa", "Xôi Gấc", "Bưu Điện",
)  # fmt: skip
