"""Checkpoints move: other meshes, other numbers of processes, the same losses and records."""

import dataclasses
import socket
from collections import Counter

import jax
import numpy as np
import pytest

from tests.data.test_mixture import mixed
from tests.faults import runs
from vimoe_jax import config as config_lib
from vimoe_jax.data.pipeline import continued, train_batches
from vimoe_jax.parallel.mesh import make_mesh
from vimoe_jax.run.checkpoint import load_params
from vimoe_jax.run.workdir import start_run
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece
from vimoe_jax.text.wordings import STYLES
from vimoe_jax.train.guard import Interrupt
from vimoe_jax.train.loop import Trainer

# A constant learning rate, so that the last step may be named leg by leg.
OPTIONS = {
    "optim.warmup_steps": "0",
    "optim.final_fraction": "1.0",
    "train.batch_size": "8",
    "checkpoint.every": "2",
    "eval.every": "0",
    "data.val_split": "''",
    "data.test_splits": "()",
}
# Devices and mesh of each leg of two steps.
LEGS = [
    (8, {"data": 2, "expert": 4}),
    (4, {"data": 2, "tensor": 2}),
    (1, {}),
    (8, {"fsdp": 8}),
    (8, {"data": 8}),
]
LAST = 2 * len(LEGS)
# Sums over devices are taken in another order; the losses are about 6.
TOLERANCE = 1e-5


def open_run(workdir, steps, devices=1, sizes=None, **more):
    options = OPTIONS | {"train.steps": str(steps)} | more
    c = config_lib.load(str(runs.TINY), list(options.items()))
    run = start_run(c, workdir)
    return dataclasses.replace(run, mesh=make_mesh(sizes or {}, jax.devices()[:devices]))


def train(run):
    trainer = Trainer(run, Interrupt())
    assert trainer.train()
    trainer.checkpoints.close()
    return trainer


def assert_same_losses(a, b):
    left, right = runs.losses(a), runs.losses(b)
    assert [row[:2] for row in left] == [row[:2] for row in right]
    for (step, name, x), (_, _, y) in zip(left, right, strict=True):
        assert x == pytest.approx(y, rel=TOLERANCE, abs=TOLERANCE), (step, name)


@pytest.fixture(scope="module")
def straight(viscenes_dir, tmp_path_factory):
    """A run on one device that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    train(open_run(workdir, LAST))
    return workdir


@pytest.mark.slow
def test_from_mesh_to_mesh(straight, tmp_path):
    workdir = tmp_path / "run"
    for leg, (devices, sizes) in enumerate(LEGS, 1):
        trainer = train(open_run(workdir, 2 * leg, devices, sizes))
        assert trainer.position["batches"] == 2 * leg
    assert_same_losses(straight, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 8}, {"expert": 4, "fsdp": 2}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_on_another_mesh_in_another_dtype(straight, sizes, dtype):
    run = open_run(straight, LAST)
    here = load_params(run)
    there = load_params(dataclasses.replace(run, mesh=make_mesh(sizes, jax.devices())), dtype=dtype)
    assert here.keys() == there.keys()
    for name, value in there.items():
        floating = np.issubdtype(here[name].dtype, np.floating)
        assert value.dtype == (dtype if floating else here[name].dtype), name
        assert len(value.sharding.device_set) == 8
        np.testing.assert_array_equal(value, here[name].astype(value.dtype), err_msg=name)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_from_two_processes_to_one_to_two(straight, viscenes_dir, tmp_path):
    """Two devices each, on loopback; every leg is a command of its own."""
    workdir = tmp_path / "run"
    options = [f"--config.{name}={text}" for name, text in OPTIONS.items()]
    for processes, last in ((2, 4), (1, 7), (2, LAST)):
        env = runs.environment(viscenes_dir, tmp_path / "cache", devices=4 // processes)
        address = f"127.0.0.1:{free_port()}"
        started = []
        for i in range(processes):
            place = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(i),
            }
            log = tmp_path / f"to{last}.{i}.log"
            steps = f"--config.train.steps={last}"
            more = [*options, steps, "--config.mesh.data=2", "--config.mesh.fsdp=2"]
            started.append(
                (runs.start(workdir, env | (place if processes > 1 else {}), log, *more), log)
            )
        for process, log in started:
            assert process.wait(timeout=400) == 0, log.read_text()[-2000:]
        assert runs.steps(workdir)[-1] == last
    assert_same_losses(straight, workdir)


def records(source, tokenizer, legs, **options):
    """The records in the order of the global batches, read in legs of (batches, processes)."""
    seen, start = [], 0
    for count, processes in legs:
        hosts = [
            train_batches(
                source, tokenizer, image_size=8, patches=4, text_length=96, batch_size=4, seed=5,
                start=start, process_index=i, process_count=processes, **options,
            )
            for i in range(processes)
        ]  # fmt: skip
        for _ in range(count):
            seen += np.concatenate([next(host).record for host in hosts]).tolist()
        assert {host.state()["batches"] for host in hosts} == {start + count}
        for host in hosts:
            host.close()
        start += count
    return seen


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["viscenes jsonl vivqa là gì có đúng một hai ba, vì trời mưa 0123456789"]
    texts += [w for style in STYLES.values() for task in style.values() for w in task]
    return train_sentencepiece(texts, 380)


MOVES = [(2, 1), (3, 2), (1, 4), (2, 1), (4, 2)]  # 12 batches of 4 rows


@pytest.mark.parametrize("max_questions", [0, 1])  # several questions a row, and one
def test_no_record_twice_and_none_lost(tokenizer, max_questions):
    source = mixed("vivqa", 16)
    rows = records(source, tokenizer, MOVES, max_questions=max_questions)
    assert rows == records(source, tokenizer, [(12, 1)], max_questions=max_questions)
    for epoch in range(3):
        assert Counter(rows[epoch * 16 : (epoch + 1) * 16]) == Counter(range(16))


def test_neither_where_the_batch_size_changes(tokenizer):
    source, rows, position = mixed("vivqa", 16), [], {"batches": 0}
    for size, count in [(4, 3), (8, 2), (2, 1), (6, 5)]:
        batches = train_batches(
            source, tokenizer, image_size=8, patches=4, text_length=96, batch_size=size, seed=5,
            **continued(position, size),
        )  # fmt: skip
        for _ in range(count):
            rows += next(batches).record.tolist()
        position = batches.state() | {"batch_size": size}
        batches.close()
    assert rows == records(source, tokenizer, [(15, 1)])


@pytest.mark.slow
def test_a_run_goes_on_with_another_batch_size(viscenes_dir, tmp_path, capsys):
    train(open_run(tmp_path, 2))
    more = {"train.batch_size": "16"}
    trainer = train(open_run(tmp_path, 4, **more))
    place = {name: trainer.position[name] for name in ("offset", "batches", "batch_size")}
    assert place == {"offset": 16, "batches": 2, "batch_size": 16}
    told = "batches of 16 rows from here on, of 8 until now: the data go on at row 16"
    assert told in capsys.readouterr().err
    trainer = train(open_run(tmp_path, 5, **more))
    assert (trainer.position["offset"], trainer.position["batches"]) == (16, 3)


@pytest.mark.parametrize("weighted", [True, False])
def test_mixtures_too(tokenizer, weighted):
    source = mixed("viscenes:0.5,jsonl:0.25,vivqa:0.25", 12, 6, 6, weighted=weighted)
    rows = records(source, tokenizer, MOVES)
    assert rows == records(source, tokenizer, [(12, 1)])
    # The parts' sizes are as their weights: after two epochs everyone was there twice.
    assert Counter(rows) == Counter(2 * list(range(24)))
