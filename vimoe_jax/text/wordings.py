"""Vietnamese wordings of prompts, by style and task."""

from __future__ import annotations

_QUESTION = ("{q} Đáp:", "Câu hỏi: {q} Trả lời ngắn gọn:", "Nhìn ảnh và trả lời: {q} Đáp:")
_EXPLAIN = (
    "{q} Trả lời và giải thích:",
    "Câu hỏi: {q} Trả lời rồi cho biết vì sao:",
    "Nhìn ảnh, trả lời và nêu lý do: {q} Đáp:",
)

# By style and task. The first wording is the one used at evaluation; `{q}` is the question with its
# question mark. A task that a style does not name is asked plainly.
STYLES: dict[str, dict[str, tuple[str, ...]]] = {
    "plain": {
        "caption": ("Mô tả ảnh:", "Hãy mô tả bức ảnh này:", "Trong ảnh có gì? Mô tả bằng một câu:"),
        "vqa": _QUESTION,
        "ocr_vqa": (*_QUESTION, "Đọc chữ trong ảnh rồi trả lời: {q} Đáp:"),
    },
    "short": {  # answers of a few words, captions of one short sentence
        "caption": (
            "Mô tả ảnh bằng một câu ngắn:",
            "Viết một câu ngắn tả bức ảnh này:",
            "Tóm tắt nội dung bức ảnh trong một câu:",
        ),
        "vqa": (
            "{q} Trả lời ngắn gọn:",
            "Trả lời bằng một vài từ: {q} Đáp:",
            "Nhìn ảnh và trả lời thật ngắn: {q} Đáp:",
        ),
        "ocr_vqa": (
            "{q} Trả lời ngắn gọn theo chữ trong ảnh:",
            "Đọc chữ trong ảnh và trả lời ngắn gọn: {q} Đáp:",
            "Câu hỏi về chữ trong ảnh: {q} Trả lời ngắn gọn:",
        ),
    },
    "detailed": {  # whole sentences (OpenViVQA, EVJVQA), captions of several
        "caption": (
            "Mô tả chi tiết bức ảnh:",
            "Hãy tả kỹ những gì nhìn thấy trong ảnh:",
            "Viết một đoạn văn mô tả đầy đủ bức ảnh này:",
        ),
        "vqa": (
            "{q} Trả lời bằng một câu đầy đủ:",
            "Câu hỏi: {q} Trả lời đầy đủ:",
            "Quan sát bức ảnh rồi trả lời thành câu: {q} Đáp:",
        ),
        "ocr_vqa": (
            "{q} Trả lời bằng một câu đầy đủ theo chữ trong ảnh:",
            "Đọc chữ trong ảnh rồi trả lời thành câu: {q} Đáp:",
            "Câu hỏi về chữ trong ảnh: {q} Trả lời đầy đủ:",
        ),
    },
    "sports": {  # UIT-ViIC
        "caption": (
            "Mô tả hoạt động thể thao trong ảnh:",
            "Viết một câu tả cảnh thể thao này:",
            "Trong ảnh, ai đang chơi môn thể thao nào? Mô tả bằng một câu:",
        ),
    },
    "daily": {  # KTVIC
        "caption": (
            "Mô tả cảnh sinh hoạt trong ảnh:",
            "Viết một câu tả cảnh đời thường này:",
            "Trong ảnh, mọi người đang làm gì và ở đâu? Mô tả bằng một câu:",
        ),
    },
    "book": {  # ViOCRVQA
        "ocr_vqa": (
            "{q} Trả lời theo chữ trên bìa sách:",
            "Đọc bìa sách rồi trả lời: {q} Đáp:",
            "Đây là bìa của một cuốn sách. {q} Đáp:",
        ),
    },
    "scene_text": {  # ViTextVQA
        "ocr_vqa": (
            "{q} Trả lời theo chữ trong ảnh:",
            "Đọc biển hiệu và chữ viết trong ảnh rồi trả lời: {q} Đáp:",
            "Tìm chữ trong ảnh để trả lời: {q} Đáp:",
        ),
    },
    "explain": {"vqa": _EXPLAIN, "ocr_vqa": _EXPLAIN},  # ViVQA-X
}
