"""Names of machines, the table of chips."""

import importlib.util
from types import SimpleNamespace

import jax
import pytest

from vimoe_jax.base.errors import UserError
from vimoe_jax.parallel import hardware
from vimoe_jax.plan import topology


@pytest.mark.parametrize(
    ("text", "chip", "shape"),
    [
        ("v5e:16x16", "v5e", (16, 16)),
        ("v5p:8x8x16", "v5p", (8, 8, 16)),
        ("V6E:16x16", "v6e", (16, 16)),
        ("v5litepod:4x4", "v5e", (4, 4)),
        ("h100:8", "h100", (8,)),
        ("gpu:16", "h100", (16,)),
    ],
)
def test_names(text, chip, shape):
    found = topology.parse(text)
    assert (found[0].name, found[1]) == (chip, shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "not CHIP:SHAPE"),
        ("v5p:", "not CHIP:SHAPE"),
        ("v5p:4x", "not CHIP:SHAPE"),
        ("v5p:0x4", "axis of no chips"),
        ("v7:4x4", "no chip 'v7'"),
        ("h10:8", "did you mean 'h100'"),
        ("h100:2x4", "counted, h100:8"),
    ],
)
def test_bad_names_are_one_line(text, message):
    with pytest.raises(UserError, match=message) as e:
        topology.parse(text)
    assert "\n" not in str(e.value) and str(e.value).startswith("--topology: ")


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v4", "v4"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_kinds_of_devices(kind, chip):
    found = hardware.chip_of(kind)
    assert (found.name if found else None) == chip


def test_figures_are_in_the_same_units():
    for chip in hardware.CHIPS.values():
        assert 10e9 < chip.memory < 1e12
        assert 100e12 < chip.flops < 1e16
        assert 100 < chip.flops / chip.hbm < 1000, chip.name
        assert bool(chip.wraps) == (chip.platform == "tpu")
        assert bool(chip.node) == bool(chip.network) == (chip.platform == "gpu")


def test_without_a_name_the_devices_at_hand():
    found = topology.target()
    assert found.devices == jax.devices() and found.exact and found.chip is None


def test_gpus_become_as_many_simulated_devices():
    found = topology.target("h100:4")
    assert found.devices == jax.devices()[:4]
    assert found.chip.name == "h100" and not found.exact


def test_more_gpus_than_simulated_devices_say_what_to_set():
    with pytest.raises(UserError, match="device_count=4096"):
        topology.target("h100:4096")


def test_gpus_at_hand_are_compiled_for_as_they_are(monkeypatch):
    gpu = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
    monkeypatch.setattr(jax, "devices", lambda *_: [gpu] * 8)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert topology.target("h100:8").exact
    assert not topology.target("a100:8").exact


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r"needs libtpu: pip install -r requirements-plan\.txt"):
        topology.target("v5e:4x4")
