"""metrics.jsonl and its copy for TensorBoard."""

import json
import math
import struct
from pathlib import Path

import pytest

from vimoe_jax.run.log import MetricWriter


def events(path):
    """The events of TensorBoard's file format: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_lists_are_written_and_numbers_that_are_none_are_null(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.write(1, {"a": 1.5, "b": math.nan, "c_by_layer": [0.5, math.inf]})
    writer.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"step": 1, "a": 1.5, "b": None, "c_by_layer": [0.5, None]}
    (path,) = (tmp_path / "tensorboard").iterdir()
    tags = {v.tag for e in events(path) for v in e.summary.value}
    assert tags == {"a", "b", "c_by_layer/0", "c_by_layer/1"}


def test_a_resumed_run_takes_back_later_events(tmp_path):
    writer = MetricWriter(tmp_path, 7)
    writer.write(8, {"a": 1.5})
    (path,) = (tmp_path / "tensorboard").iterdir()
    _, start, value = events(path)  # on disk before the file is closed
    writer.close()
    assert (start.step, start.session_log.status) == (8, start.session_log.START)
    assert (value.step, value.summary.value[0].tag) == (8, "a")
    assert value.summary.value[0].simple_value == 1.5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_once(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer._events._writer._py_recordio_writer._writer = open("/dev/full", "wb")
    with pytest.raises(OSError, match="No space left"):
        writer.write(1, {"a": 1.5})
    writer.close()
