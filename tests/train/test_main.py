"""The main command on real processes: killed, interrupted, resumed, given bad input."""

import concurrent.futures
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests/tiny.py"


@pytest.fixture(scope="module")
def env(viscenes_dir):
    clean = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return clean | {"VIMOE_TEST_DATA": str(viscenes_dir), "JAX_PLATFORMS": "cpu"}


def command(workdir, *more):
    return [
        sys.executable, "-m", "vimoe_jax.main", f"--config={TINY}", f"--workdir={workdir}", *more,
    ]  # fmt: skip


def run(workdir, env, *more, check=True):
    done = subprocess.run(command(workdir, *more), env=env, capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keep = ("train/loss", "train/aux_loss", "train/grad_norm", "val/loss")
    return [(r["step"], n, r[n]) for r in lines for n in keep if n in r]


def parameters(workdir, step=12):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore((workdir / "checkpoints" / str(step) / "state").absolute())
    return {n: np.asarray(v) for n, v in state["params"].items()}


def assert_same_run(a, b):
    assert losses(a) == losses(b)
    left, right = parameters(a), parameters(b)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(env, tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = run(workdir, env)
    assert "step 12/12" in done.stderr
    return workdir


def wait_for(condition, process, seconds=120):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "waited too long"
        if process.poll() is not None:
            return
        time.sleep(0.005)


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 5, 8])
def test_killed_and_resumed_is_bit_identical(whole, env, tmp_path, lines):
    workdir = tmp_path / "run"
    process = subprocess.Popen(command(workdir), env=env, stderr=subprocess.DEVNULL)
    wait_for(lambda: logged(workdir) >= lines, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # What a crash in the middle of a write leaves.
    with open(workdir / "metrics.jsonl", "a") as f:
        f.write('{"step": 99, "train/lo')
    run(workdir, env)
    assert_same_run(whole, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_exit_0(whole, env, tmp_path, number):
    workdir = tmp_path / "run"
    process = subprocess.Popen(command(workdir), env=env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: logged(workdir) >= 4, process)
    process.send_signal(number)
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    assert f"to resume: python -m vimoe_jax.main --config={TINY} --workdir={workdir}" in stderr
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert 4 <= saved < 12
    done = run(workdir, env)
    assert f"resuming at step {saved} of 12" in done.stderr
    assert_same_run(whole, workdir)


def test_keeps_the_last_and_the_best(whole):
    steps = sorted(int(p.name) for p in (whole / "checkpoints").iterdir())
    best = min((v, s) for s, n, v in losses(whole) if n == "val/loss")[1]
    assert set(steps) == {9, 12, best}


def test_leaves_what_the_contract_says(whole):
    assert (whole / "config.json").exists()
    assert (whole / "tokenizer.model").exists()
    assert (whole / "report.html").exists()
    assert list((whole / "tensorboard").iterdir())
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "train/learning_rate", "train/moe/decoder/drop_fraction"} <= set(rows[0])


def test_a_finished_run_trains_no_further(whole, env, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    done = run(workdir, env, "--config.eval.at_end=True", "--config.data.test_splits=('test',)")
    assert "step 12/12 · loss" not in done.stderr
    assert_same_run(whole, workdir)
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"eval/vqa/accuracy", "eval/vqa/floor_per_type", "eval/caption/cider"} <= set(last)
    assert (workdir / "eval/test/predictions.jsonl").exists()
    experts = json.loads((workdir / "eval/test/experts.json").read_text())
    assert [layer["name"] for layer in experts["layers"]] == ["connector", "decoder.1"]
    assert [sum(layer["load"]) for layer in experts["layers"]] == pytest.approx([1, 1])


def test_another_model_needs_another_workdir(whole, env):
    done = run(whole, env, "--config.model.decoder.mlp_dim=48", check=False)
    assert done.returncode == 2
    assert "config.model.decoder.mlp_dim: 48" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def damage(workdir, step):
    files = [p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


@pytest.mark.slow
def test_a_checkpoint_cut_short_is_passed_over(whole, env, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    damage(workdir, 12)
    done = run(workdir, env)
    assert "unreadable checkpoint" in done.stderr and "using step 9" in done.stderr
    assert_same_run(whole, workdir)


def test_no_readable_checkpoint_is_an_error(whole, env, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for step in (p.name for p in (workdir / "checkpoints").iterdir()):
        damage(workdir, step)
    done = run(workdir, env, check=False)
    assert done.returncode == 2
    assert "no readable checkpoint" in done.stderr.splitlines()[-1]


def test_evaluate_and_generate(whole, env, tmp_path):
    call = [sys.executable, "-m"]
    more = ["--split=validation", "--config.model.decoder.moe.eval_experts_per_token=4"]
    done = subprocess.run(
        [*call, "vimoe_jax.evaluate", f"--workdir={whole}", *more],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "vqa/accuracy" in json.loads(done.stdout.splitlines()[-1])
    from PIL import Image

    picture = tmp_path / "a.png"
    Image.new("RGB", (20, 30), "red").save(picture)
    done = subprocess.run(
        [*call, "vimoe_jax.generate", f"--workdir={whole}", f"--image={picture}"],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    picture.write_bytes(picture.read_bytes()[:40])
    done = subprocess.run(
        [*call, "vimoe_jax.generate", f"--workdir={whole}", f"--image={picture}"],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "unreadable picture" in done.stderr


def jsonl_run(tmp_path, env, lines, *more):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(line if line.endswith("\n") else line + "\n" for line in lines))
    return run(
        tmp_path / "run", env, "--config.data.dataset=jsonl", f"--config.data.source={path}",
        "--config.data.train_split=''", "--config.data.val_split=''",
        "--config.data.vocab_size=300", "--config.train.steps=4", *more, check=False,
    )  # fmt: skip


def jsonl_lines():
    words = "đỏ xanh vàng tím trắng đen nâu hồng".split()
    return [
        json.dumps(
            {
                "image": f"{name}.png",
                "task": "vqa",
                "question": f"bức ảnh {name} màu gì",
                "answers": [w],
            }
        )
        for name, w in zip("abcdefgh", words, strict=True)
    ]


def test_a_users_own_pictures(tmp_path, env):
    more = ["--config.eval.at_end=True", "--config.data.test_splits=('',)"]
    done = jsonl_run(tmp_path, env, jsonl_lines(), *more)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run/eval/all/predictions.jsonl").read_text().splitlines()
    pictures = [Path(json.loads(line)["record_id"]).name for line in lines]
    assert pictures == [f"{name}.png" for name in "abcdefgh"]


@pytest.mark.slow
def test_a_hung_step_is_told_and_ends_the_run(tmp_path, env):
    more = ["--config.train.steps=100000", "--config.train.hang_seconds=3"]
    start = functools.partial(jsonl_run, tmp_path, env, jsonl_lines(), *more)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(start)
        while not logged(tmp_path / "run") and not running.done():
            time.sleep(0.05)
        for path in tmp_path.glob("*.png"):  # a disk that answers no more
            path.unlink()
            os.mkfifo(path)
        done = running.result(timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "hang.txt" in done.stderr
    stacks = (tmp_path / "run/hang.txt").read_text()
    assert "in _loop" in stacks and "pipeline.py" in stacks


def test_a_missing_test_split_is_found_before_training(tmp_path, env):
    done = jsonl_run(tmp_path, env, jsonl_lines(), "--config.eval.at_end=True")
    assert done.returncode == 2
    assert "config.data.test_splits: " in done.stderr and "'test'" in done.stderr
    assert "step 1/" not in done.stderr


def test_a_vocabulary_too_large_says_what_fits(tmp_path, env):
    done = jsonl_run(tmp_path, env, jsonl_lines(), "--config.data.vocab_size=9000")
    assert done.returncode == 2
    assert "config.data.vocab_size: 9000 is more than these texts support" in done.stderr


def test_a_broken_line_names_its_number(tmp_path, env):
    lines = jsonl_lines()
    lines[2] = lines[2][:-5]
    done = jsonl_run(tmp_path, env, lines)
    assert done.returncode == 2
    assert "mine.jsonl:3: broken JSON" in done.stderr


def test_truncated_pictures_are_skipped_up_to_the_limit(tmp_path, env):
    def cut():
        data = (tmp_path / "c.png").read_bytes()
        (tmp_path / "c.png").write_bytes(data[: len(data) // 2])

    assert jsonl_run(tmp_path, env, jsonl_lines(), "--config.train.steps=1").returncode == 0
    cut()
    path = tmp_path / "mine.jsonl"
    arguments = [
        "--config.data.dataset=jsonl", f"--config.data.source={path}",
        "--config.data.train_split=''", "--config.data.val_split=''",
        "--config.data.vocab_size=300", "--config.train.steps=4",
    ]  # fmt: skip
    strict = run(tmp_path / "strict", env, *arguments, check=False)
    assert strict.returncode == 2
    assert "c.png: unreadable picture" in strict.stderr
    assert "config.data.max_skipped = 0" in strict.stderr
    lenient = run(tmp_path / "lenient", env, *arguments, "--config.data.max_skipped=1")
    assert "warning: skipped" in lenient.stderr and "c.png" in lenient.stderr


def mount(path, options):
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_spares_earlier_checkpoints(env, tmp_path, whole):
    disk = tmp_path / "disk"
    mount(disk, "size=1500k")
    try:
        done = run(disk / "run", env, check=False)
        assert done.returncode == 2, done.stderr
        assert "disk full" in done.stderr or "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        kept = sorted(int(p.name) for p in (disk / "run/checkpoints").iterdir() if p.name.isdigit())
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        run(disk / "run", env)
        assert losses(disk / "run") == losses(whole)
        assert kept is not None
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_a_read_only_workdir_is_one_line(env, tmp_path):
    disk = tmp_path / "disk"
    mount(disk, "size=1m,ro")
    try:
        done = run(disk / "run", env, check=False)
        assert done.returncode == 2
        assert "Read-only file system" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    finally:
        subprocess.run(["umount", disk], check=False)
