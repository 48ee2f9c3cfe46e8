"""The report, from workdirs in every state; what it shows, and that it shows nothing else."""

import base64
import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vimoe_jax.base.errors import UserError
from vimoe_jax.report import __main__ as command
from vimoe_jax.report import charts, markup, page
from vimoe_jax.report import workdir as report_data
from vimoe_jax.report.grid import save_grid_png
from vimoe_jax.scores import captions, vqa
from vimoe_jax.scores import predictions as predictions_lib
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import PLAIN

COLORS = {"đỏ": "#d43c2c", "vàng": "#efc62f", "tím": "#7a3fa0", "trắng": "#f4f4f4"}
COUNTS = ("một", "hai", "ba", "bốn")
PICTURES = 30


def ask(index, number, type, question, answer, prediction, task="vqa"):
    id_ = f"test-{index}"
    return Prediction(id_, index, f"{id_}/{number}", task, type, question, (answer,), prediction)


def answers_of(index):
    """One picture's predictions: colours always right, counts never right above two."""
    color, count = list(COLORS)[index % 4], index % 3
    caption = f"Trong ảnh có {COUNTS[count]} quả bóng màu {color}."
    return [
        Prediction(
            f"test-{index}", index, f"test-{index}/0", "caption", "", "",
            (caption, f"Bức ảnh chụp {COUNTS[count]} quả bóng màu {color}."),
            caption if index % 2 else f"Trong ảnh có một con mèo màu {color}.",
        ),
        ask(index, 1, "color", "màu của quả bóng là gì", f"màu {color}", f"màu {color}"),
        ask(index, 2, "number", "có mấy quả bóng trong ảnh", COUNTS[count], COUNTS[min(count, 1)]),
        ask(index, 3, "title", "tên của cuốn sách là gì", "rừng đước", "sông trôi", "ocr_vqa"),
    ]  # fmt: skip


def draw(path, index):
    image = Image.new("RGB", (96, 96), "#cfe6f4")
    canvas = ImageDraw.Draw(image)
    for i in range(index % 3 + 1):
        canvas.ellipse((4 + 30 * i, 34, 30 + 30 * i, 60), list(COLORS.values())[index % 4], "black")
    image.save(path)


def curves():
    for step in range(20, 1001, 20):
        yield {
            "step": step,
            "train/loss": 0.4 + 5 * math.exp(-step / 150),
            "train/accuracy": 1 - math.exp(-step / 300),
            "train/grad_norm": 1.5,
            "train/learning_rate": 1e-3 * (1 - step / 1000),
            "train/examples_per_second": 150.0,
            "train/tokens_per_second": 31000.0,
            "train/moe/decoder/drop_fraction": 0.1 * math.exp(-step / 100),
            "train/moe/decoder/importance_loss": 0.03,
        }
        if step % 200 == 0:
            yield {"step": step, "val/loss": 0.45}


# As a run with four MoE layers in the decoder and two in the vision tower logs.
MOE_CONFIG = {
    "model": {
        "vision": {"depth": 4, "moe": {"num_experts": 4, "placement": "every_2"}},
        "decoder": {
            "depth": 8,
            "moe": {"num_experts": 4, "granularity": 2, "placement": [1, 3, 5, 7]},
        },
    }
}


def moe_curves():
    for step in range(20, 1001, 20):
        late = math.exp(-step / 200)
        row = {"step": step}
        for part, layers in (("decoder", 4), ("vision", 2)):
            drops = [0.02 + 0.1 * late * (1 + k) for k in range(layers)]
            loads = [1.1 + 0.5 * late * (layers - k) for k in range(layers)]
            numbers = {
                "drop_fraction": sum(drops) / layers,
                "drop_fraction_image": 0.01 + 0.3 * late,
                "unserved_fraction": 0.1 * late,
                "load_max_over_mean": sum(loads) / layers,
                "router_entropy": 0.9 + 0.4 * late,
                "importance_loss": 0.4 * late,
                "z_loss": 1 + late,
                "drop_fraction_by_layer": drops,
                "load_max_over_mean_by_layer": loads,
            }
            if part == "decoder":
                numbers |= {"drop_fraction_question": 0.2 * late, "drop_fraction_answer": 0.1}
            row |= {f"train/moe/{part}/{n}": v for n, v in numbers.items()}
        yield row


def moe_layer(k):
    load = [(8 + (k + i) % 8) / 92 for i in range(8)]
    return {
        "name": f"decoder.{k}", "load": load, "max_load": 8 * max(load), "drop_fraction": 0.0312,
        "drop_fraction_by_kind": {"image": 0.0412, "question": 0.0212, "answer": 0.0},
        "unserved_fraction": 0.0123, "entropy": 1.1 + k / 10,
        "by_kind": {kind: load[::-1] for kind in ("image", "question", "answer")},
    }  # fmt: skip


@pytest.fixture
def moe_run(workdir):
    rows = [json.dumps(row) for row in moe_curves()]
    with open(workdir / "metrics.jsonl", "a") as f:
        f.write("\n" + "\n".join(rows) + "\n")
    (workdir / "config.json").write_text(json.dumps(MOE_CONFIG))
    layers = {"layers": [moe_layer(k) for k in (1, 3, 5, 7)]}
    (workdir / "eval/test/experts.json").write_text(json.dumps(layers))
    return workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("moe_small")
    folder = workdir / "eval" / "test"
    (folder / "images").mkdir(parents=True)
    rows = [p for i in range(PICTURES) for p in answers_of(i)]
    predictions_lib.write(folder / "predictions.jsonl", rows)
    for i in range(PICTURES):
        draw(folder / "images" / f"{i}.png", i)
    scores = vqa.score(rows) | captions.score(rows)
    scores |= {"vqa/floor_per_type": 0.125, "vqa/floor_per_type/color": 0.25}
    last = {"step": 1000} | {f"eval/{n}": v for n, v in scores.items()}
    last |= {"eval_compositional/vqa/accuracy": 0.4321}
    lines = [json.dumps(row) for row in [*curves(), last]]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1001, "train/lo')
    layer = {
        "name": "decoder.1", "load": [0.5, 0.25, 0.15, 0.1], "drop_fraction": 0.0312,
        "entropy": 1.1, "by_kind": {"image": [0.7, 0.1, 0.1, 0.1], "answer": [0, 0, 0.5, 0.5]},
    }  # fmt: skip
    files = {
        "config.json": {"seed": 7, "model": {"decoder": {"moe": {"num_experts": 4}}}},
        "summary.json": {"parameters": 3795456, "steps": 1000, "train_seconds": 284.1},
        "eval/test/experts.json": {"layers": [layer]},
    }
    for name, value in files.items():
        (workdir / name).write_text(json.dumps(value))
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "moe_small")


class Page(HTMLParser):
    """A report's elements, checked to be well nested."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read(workdir):
    path = page.write_report(workdir)
    assert path == workdir / "report.html"
    assert not list(workdir.glob("*.tmp")) and not list(workdir.glob(".*"))
    return Page(path.read_text(encoding="utf-8"))


def test_what_a_finished_run_shows(finished):
    page = read(finished)
    right = PICTURES * 5 / 9  # colours all, counts two in three, titles none
    assert f"{100 * right / PICTURES:.1f}% of the answers are exactly right" in page.text
    assert "On 90 questions about 30 pictures of the test split" in page.text
    assert "43.1 points above the 12.5%" in page.text
    for text in ("3.80 M", "4 min 44 s", "43.2%", "CIDEr", "Dropped choices", "decoder.1", "3.1%"):
        assert text in page.text, text
    assert "model.decoder.moe.num_experts" in page.text
    assert "profile “plain” (NFC, lower case, final full stop dropped)" in page.text
    assert f"captions as {captions.describe('syllable')}." in page.text
    # The floor of colours, and of all questions, are marked on the bars.
    marks = [a["style"] for a in page.all("s")]
    assert "left:25.00%" in marks and "left:12.50%" in marks
    assert "unreadable" not in page.text  # a torn last line is no news


def test_pictures_are_shown_with_failures_and_chosen_without_looking(workdir):
    def shown():
        page = read(workdir)
        classes = [a.get("class", "") for _, a in page.elements]
        return [a["src"] for a in page.all("img")], classes.count("a ok"), classes.count("a no")

    pictures, ok, no = shown()
    assert len(pictures) == 24 + 8
    assert ok + no == 24 * 3 and no >= 24
    path = workdir / "eval/test/predictions.jsonl"
    rows = predictions_lib.read(path)
    wrong = [Prediction(**{**p.__dict__, "prediction": "không biết"}) for p in rows]
    predictions_lib.write(path, wrong)
    assert shown() == (pictures, 0, 24 * 3)
    decoded = base64.b64decode(pictures[0].removeprefix("data:image/png;base64,"))
    assert decoded == (workdir / "eval/test/images/0.png").read_bytes()


def test_one_file_that_asks_for_nothing(finished):
    page = read(finished)
    for _, attrs in page.elements:
        assert attrs.get("src", "data:image/png;").startswith("data:image/png;")
        assert attrs.get("href", "#").startswith("#")
    assert not page.all("link") and not page.all("iframe")
    assert "url(" not in page.text and "@import" not in page.text
    policy = next(a for a in page.all("meta") if a.get("http-equiv"))["content"]
    script = (finished / "report.html").read_text().split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';") and f"'sha256-{digest}'" in policy


EVIL = "</style></script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&\ud800\0"


def test_nothing_can_be_injected(workdir):
    row = Prediction(EVIL, 0, EVIL, "vqa", EVIL, EVIL, (EVIL,), EVIL + "x")
    caption = Prediction("0", 1, "0/1", "caption", EVIL, "", (EVIL,), EVIL + " mèo")
    path = workdir / "eval/test/predictions.jsonl"
    path.write_text("\n".join(json.dumps({**p.__dict__}) for p in (row, row, caption)))
    (workdir / "config.json").write_text(json.dumps({EVIL: {EVIL: EVIL}}))
    (workdir / "summary.json").write_text(json.dumps({EVIL: EVIL, "device": EVIL, "steps": EVIL}))
    layer = {"name": EVIL, "load": [0.5, 0.5], "by_kind": {EVIL: [1, 0]}}
    (workdir / "eval/test/experts.json").write_text(json.dumps({"layers": [layer]}))
    with open(workdir / "metrics.jsonl", "a") as f:
        evil = {f"train/moe/{EVIL}/drop_fraction": 0.1, EVIL: 1, f"eval/vqa/accuracy/{EVIL}": 1}
        f.write("\n" + json.dumps({"step": 1002, **evil, f"eval_{EVIL}/vqa/accuracy": 1}) + "\n")
    page = read(workdir)
    assert len(page.all("script")) == 1 and "alert(1)" in page.text
    assert all(a["src"].startswith("data:") for a in page.all("img"))
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)


PARTS = (
    "config.json", "summary.json", "metrics.jsonl", "eval", "eval/test/predictions.jsonl",
    "eval/test/images", "eval/test/experts.json",
)  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_anything_may_be_missing(workdir, part):
    path = workdir / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = read(workdir)
    assert not [a for a in page.all("div") if a.get("class") == "note"]
    if part == "eval/test/images":
        assert not page.all("img") and "no picture 0" in page.text
    if part == "eval":
        assert "55.6% of the answers" in page.text  # metrics.jsonl still has the scores


def test_an_empty_workdir_says_so(tmp_path):
    page = read(tmp_path)
    assert "No scores yet" in page.text and "Nothing was logged yet" in page.text


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\0", b'{"layers": 3}'])
@pytest.mark.parametrize("part", [p for p in PARTS if p.count(".")] + ["eval/test/images/0.png"])
def test_anything_may_be_broken(workdir, part, content):
    (workdir / part).write_bytes(content)
    page = read(workdir)
    if content == b"{" and part.endswith("json"):
        assert f"{part} cannot be read" in page.text
    if content == b"{" and part.endswith("predictions.jsonl"):
        assert "predictions.jsonl:1: not a prediction" in page.text


def test_broken_lines_and_values_of_metrics(workdir):
    lines = [
        "nonsense", '{"train/loss": 1}', '{"step": "x"}', "[]",
        '{"step": 1, "train/loss": null, "val/loss": NaN, "train/grad_norm": "big"}',
        '{"step": 2, "train/loss": 1e300}', '{"step": 1, "train/loss": 3}',
        '{"step": 2, "train/loss": 2}',
    ]  # fmt: skip
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = report_data.load(workdir)
    assert run.curves == {"train/loss": ([1, 2], [3, 2])}  # steps in order, the last one counts
    assert run.problems == ["metrics.jsonl: 4 unreadable lines left out"]
    assert "4 unreadable lines" in read(workdir).text


@pytest.mark.parametrize("load", [None, [], ["a"], [float("nan")], [-1, 2], 3])
def test_experts_that_are_no_shares_are_left_out(workdir, load):
    layers = [{"load": load}, 7, {"load": [1.0], "by_kind": {"image": load, "text": [1, 0]}}]
    (workdir / "eval/test/experts.json").write_text(json.dumps({"layers": layers}))
    assert [x["by_kind"] for x in report_data.load(workdir).splits[0].experts] == [{}]
    read(workdir)


@pytest.mark.parametrize("value", ["1" + "0" * 400, "NaN", "-Infinity", "1.7e308", "true", "[1]"])
def test_numbers_that_cannot_be_drawn(workdir, value):
    keys = ("parameters", "active_parameters", "steps", "train_seconds", "device")
    summary = ", ".join(f'"{key}": {value}' for key in keys)
    (workdir / "summary.json").write_text(f"{{{summary}}}")
    names = ("train/loss", "val/loss", "train/moe/decoder/drop_fraction", "eval/vqa/accuracy")
    rows = [f'{{"step": {value}, "train/loss": 1}}']
    rows += [f'{{"step": {step}, "{name}": {value}}}' for step in (1, 1001) for name in names]
    with open(workdir / "metrics.jsonl", "a") as f:
        f.write("\n" + "\n".join(rows) + "\n")
    layer = f'{{"load": [0.5, 0.5], "drop_fraction": {value}, "entropy": {value}}}'
    (workdir / "eval/test/experts.json").write_text(f'{{"layers": [{layer}]}}')
    page = read(workdir)
    assert "55.6% of the answers" in page.text and "as if 2.0 of 2 experts" in page.text
    run = report_data.load(workdir)
    assert run.splits[0].experts == [{"name": "layer", "load": [0.5, 0.5], "by_kind": {}}]
    assert max(run.curves["train/loss"][0]) == 1000


def test_labels_of_load_are_clear_of_the_balanced_line():
    load = [0.13, 0.12, 0.125, 0.125, 0.14, 0.11, 0.126, 0.124]
    page = Page(charts.expert_chart(load, {}))
    line = next(float(a["y1"]) for a in page.all("line") if a["class"] == "balanced")
    labels = [float(a["y"]) for a in page.all("text") if a["class"].startswith("middle")][
        : len(load)
    ]
    # 11 px letters stand on y, and reach about 8 px above it.
    assert len(labels) == len(load) and all(y < line or y - 8 > line for y in labels)


def test_what_moe_layers_logged(moe_run):
    page = read(moe_run)
    charts = {
        "Dropped choices", "Dropped by kind, decoder", "Unserved tokens", "Imbalance",
        "Router entropy", "Importance loss", "Z-loss", "Dropped by layer, decoder",
        "Dropped by layer, vision", "Imbalance by layer, decoder", "Imbalance by layer, vision",
    }  # fmt: skip
    assert charts <= set(page.texts)
    assert "Dropped by kind, vision" not in page.texts  # pictures only
    assert {"ln 4", "ln 8", "layer 1", "layer 3", "layer 5", "layer 7"} <= set(page.texts)
    assert {"MoE decoder: dropped choices, answer", "MoE vision: z-loss"} <= set(page.texts)
    # One cell a layer and step at most, each with its value.
    cells = [t for t in page.texts if t.startswith("layer 7, step ")]
    assert len(cells) == 2 * 25 and cells[24].startswith("layer 7, step 1,000: 2.")


def test_what_moe_layers_report_at_evaluation(moe_run):
    rows = {"Dropped choices, image", "4.1%", "Dropped choices, question", "2.1%", "1.2%"}
    texts = set(read(moe_run).texts)
    assert rows | {"Imbalance", "Unserved tokens", "decoder.7"} <= texts
    # An older file has neither; how busy the busiest expert is follows from the loads.
    old = [{"load": [0.67, 0.33]}, {"load": [0.5, 0.5], "drop_fraction_by_kind": 3}]
    (moe_run / "eval/test/experts.json").write_text(json.dumps({"layers": old}))
    page = read(moe_run)
    assert not {"Dropped choices, image", "4.1%"} & set(page.texts)
    assert "1.34" in page.texts


@pytest.mark.parametrize(
    "part",
    [
        3, None, {"moe": 1}, {"depth": 1e9, "moe": {"num_experts": 2}},
        {"depth": 4, "moe": {"num_experts": "x"}}, {"depth": 4, "moe": {"num_experts": 10**400}},
        {"depth": "4", "moe": {"num_experts": 2}}, {"depth": 4, "moe": {"num_experts": -2}},
        {"depth": 4, "moe": {"num_experts": 2, "placement": [[1], 2]}},
        {"depth": 4, "moe": {"num_experts": 2, "placement": "every_x"}},
    ],
)  # fmt: skip
def test_layers_are_counted_where_the_configuration_does_not_name_them(moe_run, part):
    (moe_run / "config.json").write_text(json.dumps({"model": {"decoder": part}}))
    texts = set(read(moe_run).texts)
    assert {"MoE 1", "MoE 4"} <= texts and not {"layer 1", "ln 8"} & texts


def test_broken_lists_of_layers(workdir):
    name = "train/moe/decoder/drop_fraction"
    lists = ([0.5], [0.1, 0.2], [None, "x"], 3, [], [0.3, 1e300], [0.3, 0.4])
    rows = [json.dumps({"step": i, f"{name}_by_layer": v}) for i, v in enumerate(lists)]
    (workdir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    curve = ([1, 2, 5, 6], [[0.1, 0.2], [None, None], [0.3, None], [0.3, 0.4]])
    assert report_data.load(workdir).layer_curves == {name: curve}
    read(workdir)


def test_a_chart_of_layers_covers_all_steps():
    steps = [20 * i for i in range(1, 501)]
    page = Page(charts.layers_chart("", steps, [[i / 500, None] for i in range(500)], ["a", "b"]))
    cells = page.all("rect")
    assert 40 <= len(cells) <= 48
    ends = [float(c["x"]) + float(c["width"]) for c in cells]
    assert all(abs(e - float(c["x"])) < 0.5 for e, c in zip(ends, cells[1:], strict=False))
    assert ends[-1] == pytest.approx(charts.WIDTH - 10, abs=0.5)
    depth = [float(c["fill-opacity"]) for c in cells]
    assert depth == sorted(depth) and depth[-1] == 1


def test_splits_are_matched_with_their_metrics(workdir):
    shutil.copytree(workdir / "eval/test", workdir / "eval/test_compositional")
    (workdir / "eval/another").mkdir()
    names = [s.name for s in report_data.load(workdir).splits]
    assert names == ["test", "another", "test_compositional"]
    splits = {s.name: s for s in report_data.load(workdir).splits}
    assert splits["test_compositional"].metrics == {"vqa/accuracy": 0.4321}
    assert "test compositional" in read(workdir).text
    # A later evaluation leaves its scores beside its predictions.
    (workdir / "eval/test/metrics.json").write_text('{"vqa/accuracy": 0.25}')
    assert report_data.load(workdir).splits[0].metrics == {"vqa/accuracy": 0.25}
    (workdir / "config.json").write_text('{"data": {"test_splits": ["another", "test"]}}')
    assert report_data.load(workdir).splits[0].name == "another"


def test_a_split_is_shown_under_the_profile_it_was_scored_under(workdir):
    path = workdir / "eval/test/predictions.jsonl"
    rows = predictions_lib.read(path)
    predictions_lib.write(
        path, [dataclasses.replace(p, answers=("hòa",), prediction="Hoà") for p in rows]
    )
    file = workdir / "eval/test/metrics.json"
    for profile, right in (("plain", False), ("ocr", True)):
        label = {"profile": profile, "comparison": f"as {profile} does", "tokens": "words of ours"}
        file.write_text(json.dumps({"vqa/accuracy": float(right), "scoring": label}))
        page = read(workdir)
        classes = [a.get("class", "") for _, a in page.elements]
        assert ("a ok" in classes, "a no" in classes) == (right, not right)
        assert f"under the profile “{profile}” (as {profile} does)" in page.text
        assert "captions as words of ours." in page.text
    for broken in ("short", {"profile": 3}, {"profile": "none"}, []):
        file.write_text(json.dumps({"vqa/accuracy": 0.5, "scoring": broken}))
        assert report_data.load(workdir).splits[0].profile == PLAIN
        read(workdir)


def test_interval_counts_pictures_not_questions():
    rows = [p for i in range(8) for p in answers_of(i)]
    same = report_data.half_width(rows)
    # Every question asked ten times tells nothing new.
    assert report_data.half_width(rows * 10) == pytest.approx(same)
    one_each = [ask(i, 0, "number", "", "hai", "hai" if i % 2 else "ba") for i in range(100)]
    assert report_data.half_width(one_each) == pytest.approx(1.96 * 0.5 / math.sqrt(99), rel=1e-6)
    assert report_data.half_width(rows[:4]) is None


def test_confusions_count_wrong_pairs():
    rows = [p for i in range(9) for p in answers_of(i)]
    found = report_data.confusions(rows)
    assert found == [("title", "rừng đước", "sông trôi", 9), ("number", "ba", "hai", 3)]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_inside_and_few(low, span):
    values = charts.ticks(low, low + span)
    assert 1 <= len(values) <= 6
    slack = 1e-6 * max(abs(low), span)
    assert all(low - slack <= v <= low + span + slack for v in values)


def test_lines_keep_their_level():
    assert charts.smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    ramp = [float(i) for i in range(100)]
    assert charts.smoothed(ramp) == pytest.approx(ramp)  # no lag
    x, y = charts.thinned(list(range(100_001)), [1.0] * 100_001)
    assert len(x) <= 400 and x[-1] == 100_000 and set(y) == {1.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5e-5, "5e-5"), (1e-3, "0.001"), (0.0005, "0.0005"), (0.1234, "0.123"),
     (12.34, "12.3"), (123.4, "123"), (31415.9, "31,416"), (-2.5, "-2.5"), (math.nan, "–")],
)  # fmt: skip
def test_numbers_as_people_write_them(value, text):
    assert markup.number(value) == text


def test_the_grid_as_a_picture(workdir, tmp_path):
    path = tmp_path / "grid.png"
    save_grid_png(workdir, path)
    with Image.open(path) as image:
        assert image.size[0] > 1200 and image.size[1] > 800
        colors = {c for _, c in image.convert("RGB").getcolors(1 << 24)}
    for color in (COLORS["đỏ"], "#1c7a4a", "#b8372b"):  # the first balls; right, and wrong
        assert tuple(bytes.fromhex(color[1:])) in colors, color
    assert {p.name for p in tmp_path.iterdir()} == {"moe_small", "grid.png"}
    with pytest.raises(UserError, match="cannot write"):
        save_grid_png(workdir, path / "under_a_file.png")
    shutil.rmtree(workdir / "eval/test/images")
    with pytest.raises(UserError, match="no evaluated pictures"):
        save_grid_png(workdir, path)


def run_command(*args):
    command = [sys.executable, "-X", "importtime", "-m", "vimoe_jax.evaluate.report", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_command(workdir):
    done = run_command("--workdir", str(workdir), f"--grid={workdir / 'grid.png'}")
    assert done.returncode == 0
    assert done.stdout.split() == [str(workdir / "report.html"), str(workdir / "grid.png")]
    shown = run_command("--help")
    assert shown.returncode == 0 and "--workdir" in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert not imported & {"jax", "matplotlib", "grain", "tensorflow_datasets"}


@pytest.mark.parametrize("args", [["--workdir=nowhere"], ["--workdirs=x"], ["--grid=x.png"]])
def test_command_with_bad_input(args, capsys):
    with pytest.raises(UserError, match=r"^--"):
        command.main(args)
    assert capsys.readouterr().out == ""
