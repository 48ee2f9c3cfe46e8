"""The bar of wall time."""

import json
import re

import pytest

from vimoe_jax.report.goodput import duration
from vimoe_jax.report.page import write_report


def report(folder, **seconds):
    times = {f"time/{kind}": value for kind, value in seconds.items()}
    rows = [{"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 2.0, **times}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return write_report(folder).read_text()


def test_shares_of_wall_time_add_up(tmp_path):
    page = report(tmp_path, steps=90.0, compile=6.0, data=3.0, save=0.0, eval=0.0, start=1.0)
    bar = re.search(r'<div class="timebar".*?</div>', page)[0]
    widths = [float(w) for w in re.findall(r"width:([\d.]+)%", bar)]
    assert widths == [90, 6, 3, 1]
    assert "90.0% of 1 min 40 s" in page
    assert "waiting for data <b>3.0%</b>" in page
    assert "saving" not in re.search(r"Where the time went.*?</div>.*?</p>", page)[0]


@pytest.mark.parametrize("seconds", [{}, {"steps": 0.0}, {"steps": None}, {"steps": "much"}])
def test_without_times_there_is_no_bar(tmp_path, seconds):
    assert "Where the time went" not in report(tmp_path, **seconds)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (61, "1 min 1 s"), (7320, "2 h 2 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
