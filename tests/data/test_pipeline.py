import dataclasses
import functools
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vimoe_jax.data import prompts
from vimoe_jax.data.batch import PICTURE, SHARED, Batch
from vimoe_jax.data.evaluation import eval_batches
from vimoe_jax.data.lengths import suggest_lengths
from vimoe_jax.data.pipeline import describe, train_batches
from vimoe_jax.datasets.jsonl import JsonlSource
from vimoe_jax.datasets.records import QA, BadRecord, Record
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece

PATCHES = 2
PICTURES = dict(image_size=8, patches=PATCHES)
COLOURS = ["đỏ", "vàng", "xanh dương", "tím", "nâu"]
THINGS = ["con mèo", "quả táo", "chiếc ô", "bông hoa"]


@functools.cache
def picture(index):
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (10 * index, 100, 255 - 10 * index)).save(out, "PNG")
    return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Records with a caption of two wordings and three questions each."""

    count: int = 11
    broken: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.gone:
            raise BadRecord(f"ảnh{index}.png: No such file or directory")
        thing, colour = THINGS[index % len(THINGS)], COLOURS[index % len(COLOURS)]
        name = f"ảnh{index}.png"
        qa = (
            QA(f"{name}/0", "caption", "", (f"Một {thing} {colour}.", f"Trong ảnh có {thing}.")),
            QA(f"{name}/1", "vqa", f"{thing} màu gì", (colour,), "color"),
            QA(f"{name}/2", "vqa", "đây là gì?", (thing,), "object"),
            QA(f"{name}/3", "ocr_vqa", "trên ảnh ghi chữ gì", ("không có chữ",), "sign"),
        )
        data = picture(index)
        return Record(name, (data[:30] if index in self.broken else data,), qa)


@pytest.fixture(scope="module")
def tokenizer():
    source = Pictures()
    texts = [q.question for i in range(11) for q in source[i].qa]
    texts += [a for i in range(11) for q in source[i].qa for a in q.answers]
    return train_sentencepiece([*texts, "Mô tả ảnh: Đáp: Câu hỏi: Trả lời ngắn gọn:"], 315)


@pytest.fixture
def batches(tokenizer):
    """`train_batches` with small defaults, closed after the test."""
    opened = []

    def batches(source=Pictures(), **options):
        defaults = dict(**PICTURES, text_length=64, batch_size=4, seed=3)
        opened.append(train_batches(source, tokenizer, **(defaults | options)))
        return opened[-1]

    yield batches
    for iterator in opened:
        iterator.close()


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for name, mine, theirs in zip(one._fields, one, other, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs, name)


def joined(*batches):
    return Batch(*map(np.concatenate, zip(*batches, strict=True)))


def test_shapes_and_dtypes(batches):
    batch = next(batches())
    found = {name: (a.shape, a.dtype.name) for name, a in batch._asdict().items()}
    text = (4, PATCHES + 64)
    assert found == {
        "pictures": ((4, 1, 8, 8, 3), "uint8"),
        "tokens": (text, "int32"), "targets": (text, "int32"),
        "weights": (text, "float32"), "segments": (text, "int32"), "positions": (text, "int32"),
        "record": ((4,), "int32"), "skipped": ((4,), "bool"), "truncated": ((4,), "int32"),
    }  # fmt: skip


def test_rows_say_what_the_record_says(batches, tokenizer):
    source = Pictures()
    for batch in take(batches(text_length=200), 6):
        for row in range(4):
            record = source[int(batch.record[row])]
            assert tuple(batch.pictures[row, 0, 4, 4]) == (
                10 * batch.record[row], 100, 255 - 10 * batch.record[row],
            )  # fmt: skip
            left = list(record.qa)
            segments, tokens = batch.segments[row], batch.tokens[row]
            for number in range(1, segments.max() + 1):
                place = segments == number
                targets, weights = batch.targets[row][place], batch.weights[row][place]
                assert batch.positions[row][place].tolist() == list(
                    range(PATCHES, PATCHES + place.sum())
                )
                assert targets[:-1].tolist() == tokens[place][1:].tolist()
                learnt = targets[weights == 1].tolist()
                assert learnt[-1] == tokenizer.eos_id and len(learnt) == weights.sum()
                answer = tokenizer.decode(learnt)
                asked = tokenizer.decode(tokens[place][: len(weights) - len(learnt) + 1].tolist())
                qa = next(
                    q for q in left
                    if answer in q.answers and asked == prompts.prompt(q.task, q.question)
                )  # fmt: skip
                left.remove(qa)
            assert not left, "every question fits into 200 tokens"
            padding = segments == 0
            assert (np.flatnonzero(padding) >= (~padding).sum()).all()
            assert (tokens[:PATCHES] == PICTURE).all() and (segments[:PATCHES] == SHARED).all()
            for name in ("tokens", "targets", "weights", "positions"):
                assert not getattr(batch, name)[row][padding].any()


def test_epochs_are_permutations_with_new_draws(batches):
    rows = [
        (int(b.record[i]), tuple(b.targets[i].tolist()))
        for b in take(batches(batch_size=1), 33) for i in range(1)
    ]  # fmt: skip
    epochs = [rows[i : i + 11] for i in (0, 11, 22)]
    orders = [[index for index, _ in epoch] for epoch in epochs]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert sum(dict(epochs[0])[i] != dict(epochs[1])[i] for i in range(11)) > 5


def test_the_seed_decides(batches):
    same, again, other = (take(batches(seed=s), 5) for s in (3, 3, 4))
    assert_equal(same, again)
    assert [b.record.tolist() for b in same] != [b.record.tolist() for b in other]


@pytest.mark.parametrize("start", [0, 1, 7])
def test_hosts_share_and_starts_continue(batches, start):
    whole = take(batches(), 12)[start:]
    iterator = batches(start=start)
    assert iterator.state() == {"batches": start}
    assert_equal(take(iterator, len(whole)), whole)
    assert iterator.state() == {"batches": 12}
    hosts = [batches(start=start, process_index=h, process_count=2) for h in range(2)]
    parts = [take(h, len(whole)) for h in hosts]
    assert_equal([joined(*pair) for pair in zip(*parts, strict=True)], whole)


def test_rows_do_not_depend_on_the_batch_size(batches):
    fours, eights = take(batches(), 8), take(batches(batch_size=8), 4)
    pairs = zip(fours[::2], fours[1::2], strict=True)
    assert_equal([joined(*pair) for pair in pairs], eights)


def test_state_counts_what_was_consumed_not_what_was_prefetched(batches):
    iterator = batches()
    take(iterator, 3)
    time.sleep(0.1)
    assert iterator.state() == {"batches": 3}


@pytest.mark.multiprocess
def test_workers_change_nothing(batches):
    before = set(multiprocessing.active_children())
    whole = take(batches(), 12)
    iterator = batches(workers=3, start=5)
    assert_equal(take(iterator, 7), whole[5:])
    assert iterator.state() == {"batches": 12}
    host = batches(workers=1, start=11, process_index=1, process_count=2)
    half = [whole[11].rows(2, 4)]
    assert_equal(take(host, 1), half)
    assert len(set(multiprocessing.active_children()) - before) == 4
    for opened in (iterator, host):
        opened.close()
    assert not set(multiprocessing.active_children()) - before


def test_a_far_position_costs_nothing(batches):
    began = time.monotonic()
    far = take(batches(start=10**6), 2)
    assert time.monotonic() - began < 2
    assert_equal(take(batches(start=10**6 + 1), 1), far[1:])


def test_a_row_takes_what_fits_and_nothing_is_lost_for_ever(batches):
    seen = Counter()
    for batch in take(batches(Pictures(count=1), text_length=40, batch_size=1), 60):
        assert batch.segments.max() < 4
        seen[tuple(sorted(batch.targets[0][batch.weights[0] == 1].tolist()))] += 1
        assert batch.truncated.tolist() == [0]
    assert len(seen) > 3


def test_max_questions(batches):
    for batch in take(batches(max_questions=2, text_length=200), 5):
        assert batch.segments.max(1).tolist() == [2] * 4


def test_all_references_are_drawn(batches, tokenizer):
    source = Pictures(count=1)
    texts = set()
    for batch in take(batches(source, batch_size=1, max_questions=1), 60):
        texts.add(tokenizer.decode(batch.targets[0][batch.weights[0] == 1].tolist()))
    assert texts == {a for q in source[0].qa for a in q.answers}


def test_varied_prompts(batches):
    def prompts_seen(**options):
        seen = set()
        for batch in take(batches(Pictures(count=1), batch_size=1, max_questions=1, **options), 80):
            length = int(np.argmax(batch.weights[0])) + 1
            seen.add(tuple(batch.tokens[0][PATCHES:length].tolist()))
        return len(seen)

    assert prompts_seen() == 4  # two questions, a sign's, and the caption's
    assert prompts_seen(vary_prompts=True) > 8


def test_a_segment_longer_than_the_row_is_cut_and_counted(batches, tokenizer):
    for batch in take(batches(text_length=6), 6):
        for row in range(4):
            assert batch.truncated[row] == (tokenizer.eos_id not in batch.targets[row])
            assert (batch.segments[row] == 1).any()
    assert sum(int(b.truncated.sum()) for b in take(batches(text_length=6), 6)) > 0


def test_bad_records_become_padding_and_have_a_reason(batches):
    source = Pictures(broken=(2,), gone=(5,))
    met = set()
    for batch in take(batches(source), 6):
        for row in range(4):
            index = int(batch.record[row])
            assert batch.skipped[row] == (index in (2, 5))
            if batch.skipped[row]:
                met.add(index)
                for name in ("pictures", "tokens", "targets", "weights", "segments", "positions"):
                    assert not getattr(batch, name)[row].any()
    assert met == {2, 5}
    assert describe(source, 2).startswith("ảnh2.png: unreadable picture")
    assert describe(source, 5) == "ảnh5.png: No such file or directory"


def test_cached_pictures_are_the_same(batches):
    assert_equal(take(batches(cache_images=True), 8), take(batches(), 8))


def test_a_batch_that_hosts_cannot_share(batches):
    with pytest.raises(ValueError, match="does not divide"):
        batches(batch_size=5, process_count=2)
    with pytest.raises(ValueError, match="no records"):
        batches(Pictures(count=0))


# A trainer in a process group of its own, which an impatient Ctrl-C hits while workers start.
TRAINER = """
import multiprocessing, os, signal, sys, threading, time
from tests.data.test_pipeline import Pictures
from vimoe_jax.data.pipeline import train_batches
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece

def interrupt():
    for _ in range(15):
        time.sleep(0.1)
        os.killpg(0, signal.SIGINT)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)
    tokenizer = train_sentencepiece(["con mèo màu gì Đáp: quả táo đỏ"], 280)
    batches = train_batches(
        Pictures(), tokenizer, image_size=8, patches=1, text_length=32, batch_size=2, seed=0,
        workers=2,
    )
    threading.Thread(target=interrupt).start()
    next(batches)
    print(*(p.pid for p in multiprocessing.active_children()), flush=True)
    for line in sys.stdin:
        print(next(batches).record.shape, flush=True)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.multiprocess
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_ignore_signals_and_die_with_their_parent(tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, tmp_path / "trainer.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    try:
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        for _ in range(6):
            trainer.stdin.write("\n")
            trainer.stdin.flush()
            assert trainer.stdout.readline() == "(2,)\n"
        assert all(map(alive, workers))
    finally:
        trainer.kill()
        trainer.communicate()
    deadline = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))


def test_the_data_path_does_not_import_jax():
    code = (
        "import sys, vimoe_jax.data.pipeline, vimoe_jax.datasets.jsonl; print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_evaluation_asks_every_question_once(tokenizer):
    source = Pictures()
    every = eval_batches(source, tokenizer, **PICTURES, prompt_length=40, batch_size=5)
    asked = []
    for batch, items in every:
        assert batch.pictures.shape == (5, 1, 8, 8, 3) and batch.pictures.dtype == np.uint8
        assert batch.tokens.shape == (5, PATCHES + 40) and batch.tokens.dtype == np.int32
        assert batch.length.dtype == np.int32 and batch.valid.dtype == bool
        assert batch.valid.tolist() == [i < len(items) for i in range(5)]
        for row, (index, qa) in enumerate(items):
            assert (batch.tokens[row, :PATCHES] == PICTURE).all()
            ids = batch.tokens[row, PATCHES:]
            length = int(batch.length[row]) - PATCHES
            assert tokenizer.decode(ids[:length].tolist()) == prompts.prompt(qa.task, qa.question)
            assert not ids[length:].any()
            assert batch.pictures[row, 0, 0, 0, 0] == 10 * index
        asked += [(index, qa.id) for index, qa in items]
    assert asked == [(i, q.id) for i in range(11) for q in source[i].qa]
    assert every.skipped == [] and every.cut == 0


def test_evaluation_prompts_are_those_of_training(tokenizer):
    source = Pictures(count=1)
    (batch, items), = eval_batches(
        source, tokenizer, **PICTURES, prompt_length=40, batch_size=4
    )  # fmt: skip
    for row, (_, qa) in enumerate(items):
        s = prompts.segment(qa, tokenizer)
        length = int(batch.length[row]) - PATCHES
        assert s.tokens[:length] == batch.tokens[row, PATCHES:][:length].tolist()
        assert s.weights.index(1.0) == length - 1


def test_evaluation_of_some(tokenizer):
    options = dict(**PICTURES, prompt_length=40, batch_size=3)

    def asked(**more):
        found = eval_batches(Pictures(), tokenizer, **options, **more)
        return [(index, qa.task) for _, items in found for index, qa in items]

    assert {i for i, _ in asked(limit=4)} == {0, 1, 2, 3}
    assert asked(tasks=["caption"]) == [(i, "caption") for i in range(11)]


def test_hosts_share_the_rows_of_the_same_batches(tokenizer):
    options = dict(**PICTURES, prompt_length=40, batch_size=6)
    source = Pictures(broken=(4,))
    whole = eval_batches(source, tokenizer, **options)
    hosts = [eval_batches(source, tokenizer, **options, process_index=h, process_count=2)
             for h in range(2)]  # fmt: skip
    for (batch, items), *parts in zip(whole, *hosts, strict=True):
        for rows, *shares in zip(batch, *(own for own, _ in parts), strict=True):
            np.testing.assert_array_equal(np.concatenate(shares), rows)
        assert all(own == items for _, own in parts)


def test_evaluation_skips_bad_records_and_says_so(tokenizer):
    source = Pictures(count=4, broken=(1,), gone=(2,))
    batches = eval_batches(source, tokenizer, **PICTURES, prompt_length=40, batch_size=3)
    for _ in range(2):  # iterating again starts again
        answered = [
            index
            for batch, items in batches
            for (index, _), valid in zip(items, batch.valid, strict=False)
            if valid
        ]
        assert answered == [0] * 4 + [3] * 4
        assert [m.split(":")[0] for m in batches.skipped] == ["ảnh1.png", "ảnh2.png"]


def test_a_long_prompt_keeps_its_end(tokenizer, capsys):
    source = Pictures(count=1)
    batches = eval_batches(source, tokenizer, **PICTURES, prompt_length=5, batch_size=4)
    (batch, items), = batches  # fmt: skip
    whole = [tokenizer.encode(prompts.prompt(q.task, q.question)) for _, q in items]
    assert batches.cut == sum(len(ids) > 5 for ids in whole) > 0
    for row, ids in enumerate(whole):
        assert batch.tokens[row, PATCHES : batch.length[row]].tolist() == ids[-5:]
    assert f"{batches.cut} prompts" in capsys.readouterr().err


def test_suggested_lengths(tokenizer, batches):
    source = Pictures(gone=(3,))
    lengths = suggest_lengths(source, tokenizer)
    assert lengths["prompt"]["p50"] <= lengths["segment"]["p50"] <= lengths["row"]["p50"]
    longest = max(
        len(prompts.segment(qa, tokenizer, answer=a).tokens)
        for i in range(11) if i != 3 for qa in source[i].qa for a in range(len(qa.answers))
    )  # fmt: skip
    assert lengths["segment"]["p100"] == longest
    for batch in take(batches(source, text_length=lengths["row"]["p100"]), 6):
        whole = np.where(batch.skipped, 0, 4)
        assert batch.segments.max(1).tolist() == whole.tolist()


def test_real_photographs(real_data, batches):
    source = JsonlSource(real_data / "images" / "pairs.jsonl", quiet=True)
    for batch in take(batches(source, image_size=32, batch_size=8, text_length=300), 11):
        assert not batch.skipped.any() and not batch.truncated.any()
        assert (batch.weights.sum(1) > 0).all() and batch.pictures.std() > 30


@dataclasses.dataclass(frozen=True)
class Albums(Pictures):
    """As `Pictures`, with 0, 1, 2, 0, … pictures a record."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        pictures = tuple(picture(index + i) for i in range(index % 3))
        return dataclasses.replace(record, pictures=pictures)


def test_rows_with_several_pictures_and_with_none(batches):
    for batch in take(batches(Albums(), max_pictures=2, text_length=200), 6):
        assert batch.pictures.shape == (4, 2, 8, 8, 3)
        assert batch.tokens.shape == (4, 2 * PATCHES + 200)
        for row, index in enumerate(batch.record.tolist()):
            shared = PATCHES * (index % 3)
            assert (batch.tokens[row] == PICTURE).sum() == shared
            assert (batch.tokens[row, :shared] == PICTURE).all()
            assert batch.segments[row, :shared].tolist() == [SHARED] * shared
            assert batch.positions[row, :shared].tolist() == list(range(shared))
            for number in range(1, 5):
                place = batch.segments[row] == number
                assert batch.positions[row][place].tolist()[0] == shared
            for i in range(2):
                want = 10 * (index + i) if i < index % 3 else 0
                assert batch.pictures[row, i, 0, 0, 0] == want


def test_more_pictures_than_a_row_holds_are_a_bad_record(batches):
    skipped = {}
    for batch in take(batches(Albums()), 6):
        skipped |= dict(zip(batch.record.tolist(), batch.skipped.tolist(), strict=True))
    assert skipped == {i: i % 3 == 2 for i in range(11)}


def test_text_alone(batches, tokenizer):
    source = Albums(count=1)
    batch = next(batches(source, max_pictures=0, batch_size=1))
    assert batch.pictures.shape == (1, 0, 8, 8, 3) and batch.tokens.shape == (1, 64)
    assert batch.text().sum() == (batch.segments > 0).sum() > 0
    options = dict(**PICTURES, prompt_length=40, batch_size=4)
    ((prompts_, _),) = eval_batches(source, tokenizer, max_pictures=0, **options)
    ((mixed_, _),) = eval_batches(source, tokenizer, max_pictures=1, **options)
    assert prompts_.valid.all() and not (prompts_.tokens == PICTURE).any()
    np.testing.assert_array_equal(prompts_.tokens, mixed_.tokens[:, :40])
    np.testing.assert_array_equal(prompts_.length, mixed_.length)
