"""Tile sizes: which are tried, when, and what is remembered."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.moe.products import findings, tiles
from vimoe_jax.moe.products.hopper import ROWS, Tiles

KERNELS = ("rows", "rows_transposed", "gated", "gated_backward", "weights")
R = 65536  # enough rows for a product worth tuning


def shapes(kernel, rows=R, width=1024, hidden=2048, experts=32):
    return {
        "rows": ((rows, width), (experts, width, hidden)),
        "rows_transposed": ((rows, hidden), (experts, width, hidden)),
        "gated": ((rows, width), (experts, width, 2, hidden)),
        "gated_backward": ((rows, width), (experts, hidden, width)),
        "weights": ((rows, width), (rows, hidden)),
    }[kernel]


def pick(kernel, **dims):
    left, right = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes(kernel, **dims))
    return tiles.pick(kernel, left, right, num_experts=32 if kernel == "weights" else None)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache folder of the test's own, nothing picked yet."""
    monkeypatch.setenv("VIMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VIMOE_TUNE", raising=False)
    tiles._pick.cache_clear()
    yield tmp_path / "cache"
    tiles._pick.cache_clear()


@pytest.fixture
def timed(monkeypatch):
    """Every kernel's third candidate is the fastest; the list of what was timed."""
    calls = []

    def time(kernel, cut, left, right, dtype, num_experts):
        calls.append((kernel, cut))
        return 1.0 if cut == tiles.candidates(kernel, left, right)[2] else 2.0

    monkeypatch.setattr(tiles, "_time", time)
    return calls


@pytest.mark.parametrize("width", [128, 256, 384, 768])
@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_divide_what_they_cut(kernel, width):
    left, right = shapes(kernel, width=width, hidden=3 * width)
    options = tiles.candidates(kernel, left, right)
    assert options and len(set(options)) == len(options)
    columns = {
        "rows": right[-1],
        "rows_transposed": right[1],
        "gated": 2 * right[-1],
        "gated_backward": right[1],
        "weights": right[1],
    }[kernel]
    for option in options:
        assert columns % option.columns == 0 and ROWS % option.inner == 0
    if kernel == "gated_backward":  # it has room for two stages beside gate and up
        assert {o.stages for o in options} == {2}
        assert (left[1] // options[0].inner) % 2 == 0
    # The default has the widest columns that fit.
    assert options[0].columns == max(o.columns for o in options)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_fastest_is_picked_and_remembered(kernel, cache, timed):
    options = tiles.candidates(kernel, *shapes(kernel))
    best = pick(kernel)
    assert best == options[2]
    assert [cut for _, cut in timed] == options
    assert pick(kernel) == best and len(timed) == len(options)  # not again in this process
    entries = json.loads(findings.path("tiles").read_text(encoding="utf-8"))
    assert list(entries.values()) == [vars(best)]
    assert next(iter(entries)).startswith(f"{kernel} ") and "bfloat16" in next(iter(entries))
    assert [p.name for p in cache.iterdir()] == [
        findings.path("tiles").name
    ]  # and nothing half done
    tiles._pick.cache_clear()  # as in another process
    assert pick(kernel) == best and len(timed) == len(options)


def test_entries_stand_side_by_side(timed):
    for kernel in KERNELS:
        pick(kernel)
    pick("rows", rows=2 * R)
    entries = json.loads(findings.path("tiles").read_text(encoding="utf-8"))
    assert len(entries) == len(KERNELS) + 1
    tiles._pick.cache_clear()
    timed.clear()
    for kernel in KERNELS:
        pick(kernel)
    assert not timed


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"rows": '], ids=repr)
def test_a_corrupt_file_is_replaced(content, timed):
    findings.path("tiles").parent.mkdir()
    findings.path("tiles").write_bytes(content)
    best = pick("rows")
    assert json.loads(findings.path("tiles").read_text(encoding="utf-8")) == {
        name: vars(best) for name in [f"rows {shapes('rows')[0]} {shapes('rows')[1]} bfloat16"]
    }


def test_unknown_tiles_in_the_file_are_tried_anew(timed):
    best = pick("rows")
    (name,) = json.loads(findings.path("tiles").read_text(encoding="utf-8"))
    other = {**vars(best), "stages": 99}
    findings.path("tiles").write_text(
        json.dumps({name: other, "kept": vars(best)}), encoding="utf-8"
    )
    tiles._pick.cache_clear()
    timed.clear()
    assert pick("rows") == best and timed
    entries = json.loads(findings.path("tiles").read_text(encoding="utf-8"))
    assert entries == {name: vars(best), "kept": vars(best)}


def test_without_a_writable_folder_nothing_is_remembered(monkeypatch, tmp_path, timed):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIMOE_CACHE", str(tmp_path / "file"))
    assert pick("rows") == tiles.candidates("rows", *shapes("rows"))[2]


def test_small_products_and_those_told_so_take_the_default(monkeypatch, cache, timed):
    for kernel in KERNELS:
        small = pick(kernel, rows=1024, width=256, hidden=256)
        assert small == tiles.candidates(kernel, *shapes(kernel, 1024, 256, 256))[0]
    monkeypatch.setenv("VIMOE_TUNE", "0")
    assert pick("rows") == tiles.candidates("rows", *shapes("rows"))[0]
    assert not timed and not cache.exists()


def test_tiles_that_do_not_compile_lose(monkeypatch):
    times = iter([float("inf"), 3.0, float("inf"), 2.0])
    monkeypatch.setattr(tiles, "_time", lambda *_: next(times, float("inf")))
    assert pick("rows") == tiles.candidates("rows", *shapes("rows"))[3]


def test_if_none_compiles_it_says_so(monkeypatch, cache):
    monkeypatch.setattr(tiles, "_time", lambda *_: float("inf"))
    with pytest.raises(RuntimeError, match=r"no tiles work for rows of \(65536, 1024\)"):
        pick("rows")
    assert not cache.exists()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_time_is_taken_over_rows_of_every_expert(monkeypatch, kernel):
    """What is timed gets operands of the shapes asked for, whole tiles of every expert."""
    seen = []

    def run(*args, transposed=False, cut):
        seen.append([a.shape for a in args])
        seen.append((kernel == "rows_transposed") == transposed)
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), args[-1 if is_weights else -2])
        return args[0].sum()

    is_weights = kernel == "weights"
    monkeypatch.setattr(tiles.hopper, "rows" if kernel.startswith("rows") else kernel, run)
    left, right = shapes(kernel, rows=1024, width=128, hidden=256, experts=4)
    seconds = tiles._time(kernel, Tiles(), left, right, "bfloat16", 4 if is_weights else None)
    jax.effects_barrier()
    assert 0 < seconds < 60
    assert seen[0][:2] == [left, right] and seen[1]
    table = [256] * 4 if is_weights else [0, 0, 1, 1, 2, 2, 3, 3]
    assert seen[2].tolist() == table

    def refuse(*args, **options):
        raise ValueError("too much shared memory")

    monkeypatch.setattr(tiles.hopper, "rows" if kernel.startswith("rows") else kernel, refuse)
    assert tiles._time(
        kernel, Tiles(), left, right, "bfloat16", 4 if is_weights else None
    ) == float("inf")


def test_the_cache_is_in_the_home_folder_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("VIMOE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = findings.path("tiles")
    assert path.parent == tmp_path / ".cache" / "vimoe_jax"
    assert path.name == "tiles-cpu.json"
