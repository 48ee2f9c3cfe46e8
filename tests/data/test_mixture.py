"""Mixtures: what the configuration may say, and batches drawn from several sources."""

import dataclasses
import functools
import io
import itertools
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vimoe_jax.config.mixture import Component, parse
from vimoe_jax.data.batch import Batch
from vimoe_jax.data.evaluation import eval_batches
from vimoe_jax.data.lengths import suggest_lengths
from vimoe_jax.data.mixture import Mixture
from vimoe_jax.data.pipeline import describe, train_batches
from vimoe_jax.datasets.records import QA, BadRecord, Record
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece
from vimoe_jax.text.wordings import STYLES


@functools.cache
def png():
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 0)).save(out, "PNG")
    return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Records with one question of two references and one caption of three."""

    name: str
    count: int
    gone: tuple[int, ...] = ()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.gone:
            raise BadRecord(f"{self.name}{index}.png: No such file or directory")
        key = f"{self.name}{index}"
        captions = (f"{key} một", f"{key} hai", f"{key} ba")
        asked = QA(f"{key}/0", "vqa", f"{key} là gì", ("có", "đúng"), explanations=("trời mưa",))
        return Record(key, (png(),), (asked, QA(f"{key}/1", "caption", "", captions)))


def mixed(text, *counts, style="", weighted=True):
    parts = parse(text, style)
    sources = tuple(Pictures(p.label, n) for p, n in zip(parts, counts, strict=True))
    return Mixture(parts, sources, weighted)


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["viscenes jsonl vivqa là gì có đúng một hai ba, vì trời mưa 0123456789"]
    texts += [w for style in STYLES.values() for task in style.values() for w in task]
    return train_sentencepiece(texts, 380)


@pytest.fixture
def batches(tokenizer):
    opened = []

    def batches(source, **options):
        usual = dict(image_size=8, patches=2, text_length=96, batch_size=4, seed=3)
        opened.append(train_batches(source, tokenizer, **(usual | options)))
        return opened[-1]

    yield batches
    for iterator in opened:
        iterator.close()


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def records(iterator, count):
    return [int(i) for batch in take(iterator, count) for i in batch.record]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for name, mine, theirs in zip(one._fields, one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs, name)


def test_one_string_names_them_all():
    assert parse("viscenes") == (Component("viscenes"),)
    assert parse(" jsonl:2, viscenes@tiny : 0.5") == (
        Component("jsonl", weight=2.0),
        Component("viscenes", "tiny", 0.5),
    )
    assert parse("viscenes@tiny")[0].label == "viscenes_tiny"
    assert [p.label for p in parse("viscenes,viscenes@tiny")] == [
        "viscenes", "viscenes_tiny",
    ]  # fmt: skip


def test_styles_of_parts():
    def styles(text):
        return [p.style for p in parse("viscenes@tiny,jsonl", text)]

    assert styles("") == styles("plain") == ["plain", "plain"]
    assert styles("short") == ["short", "short"]
    assert styles("jsonl=sports") == ["plain", "sports"]
    assert styles("viscenes@tiny=explain, detailed") == ["explain", "detailed"]
    assert styles("viscenes_tiny=explain") == ["explain", "plain"]


@pytest.mark.parametrize(
    ("dataset", "style", "complaint"),
    [
        ("viscene", "", "dataset: 'viscene' is none of .* .did you mean 'viscenes'."),
        ("", "", "dataset: '' is none of"),
        ("viscenes,", "", "dataset: '' is none of"),
        ("viscenes:0", "", "dataset: the weight of 'viscenes' must be a positive number, not '0'"),
        ("viscenes:-1", "", "positive number"),
        ("viscenes:nan", "", "positive number"),
        ("viscenes:inf", "", "positive number"),
        ("viscenes:", "", "positive number"),
        ("viscenes:viel", "", "not 'viel'"),
        ("viscenes@", "", "names no variant"),
        ("jsonl,jsonl:2", "", "dataset: 'jsonl' is named twice"),
        ("jsonl", "shrt", "style: 'shrt' is none of .* .did you mean 'short'."),
        ("jsonl", "viscenes=short", "style: 'viscenes' is none of jsonl"),
        ("jsonl", "short,detailed", "style: one style for all components"),
    ],
)
def test_complaints_name_the_field(dataset, style, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse(dataset, style)


def test_records_follow_each_other():
    source = mixed("viscenes,jsonl", 3, 2)
    assert [source[i].id for i in range(len(source))] == [
        "viscenes0", "viscenes1", "viscenes2", "jsonl0", "jsonl1",
    ]  # fmt: skip
    assert [r.id for r in source] == [source[i].id for i in range(5)]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            source[index]
    assert source.shares([0, 2, 3]) == {"viscenes": 2, "jsonl": 1}


def test_weights_are_rates_of_pictures(batches):
    source = mixed("viscenes:2,jsonl,vivqa:0.5", 5, 40, 7)
    seen = source.shares(records(batches(source), 175))  # 200 rounds of 3.5
    assert seen == {"viscenes": 400, "jsonl": 200, "vivqa": 100}
    even = mixed("viscenes,jsonl", 3, 50)
    assert even.shares(records(batches(even), 20)) == {"viscenes": 40, "jsonl": 40}


def test_rates_hold_everywhere(batches):
    source = mixed("viscenes:3,jsonl", 5, 40)
    for batch in take(batches(source), 30):
        assert source.shares(batch.record.tolist()) == {"viscenes": 3, "jsonl": 1}


def test_each_part_has_its_own_epochs(batches):
    source = mixed("viscenes:2,jsonl", 6, 6)
    found = records(batches(source), 27)
    for number, start in ((0, 0), (1, 6)):
        own = [i - start for i in found if source.component_number(i) == number]
        epochs = [own[i : i + 6] for i in range(0, len(own), 6)]
        assert all(sorted(e) == list(range(6)) for e in epochs)
        assert len(set(map(tuple, epochs))) > 1
    # The parts' orders have nothing to do with each other.
    assert [i for i in found if i < 6][:18] != [i - 6 for i in found if i >= 6][:18]


def test_a_parts_order_does_not_depend_on_the_others(batches):
    def order(source, label):
        number = [p.label for p in source.components].index(label)
        start = source.starts[number]
        found = records(batches(source), 40)
        return [i - start for i in found if source.component_number(i) == number][:30]

    one = order(mixed("viscenes:2,jsonl", 6, 7), "jsonl")
    other = order(mixed("vivqa,jsonl:3,viscenes@tiny", 9, 7, 4), "jsonl")
    assert one == other


def test_a_single_part_is_read_as_if_alone(batches):
    alone = take(batches(Pictures("jsonl", 7)), 12)
    assert_equal(take(batches(mixed("jsonl:3", 7)), 12), alone)


@pytest.mark.parametrize("start", [0, 1, 9, 10**6])
def test_hosts_share_and_starts_continue(batches, start):
    source = mixed("viscenes:2,jsonl:0.3", 5, 8)
    whole = take(batches(source, start=start), 4)
    later = batches(source, start=start + 2)
    assert_equal(take(later, 2), whole[2:])
    assert later.state() == {"batches": start + 4}
    hosts = [
        take(batches(source, start=start, process_index=h, process_count=2), 4) for h in (0, 1)
    ]
    pairs = zip(*hosts, strict=True)
    joined = [Batch(*map(np.concatenate, zip(*pair, strict=True))) for pair in pairs]
    assert_equal(joined, whole)


def test_rows_do_not_depend_on_the_batch_size(batches):
    source = mixed("viscenes:2,jsonl", 5, 8)
    fours, twelves = records(batches(source), 6), records(batches(source, batch_size=12), 2)
    assert fours == twelves


@pytest.mark.multiprocess
def test_workers_change_nothing(batches):
    source = mixed("viscenes:2,jsonl", 5, 8, style="jsonl=explain")
    options = dict(vary_prompts=True)
    whole = take(batches(source, **options), 6)
    assert_equal(take(batches(source, workers=2, start=2, **options), 4), whole[2:])


def test_many_parts_and_rows_of_one(batches):
    source = mixed("viscenes,jsonl,vivqa,uit_viic,ktvic,viscenes@tiny", *[1] * 6)
    assert Counter(records(batches(source, batch_size=1), 60)) == dict.fromkeys(range(6), 10)


def test_validation_counts_every_record_alike(batches):
    source = mixed("viscenes:5,jsonl", 3, 9, weighted=False)
    assert sorted(records(batches(source), 3)) == list(range(12))


def test_styles_stay_with_their_parts(batches, tokenizer):
    source = mixed("viscenes,jsonl", 3, 3, style="viscenes=detailed,jsonl=explain")
    asked = {"viscenes": set(), "jsonl": set()}
    for batch in take(batches(source, max_questions=1, batch_size=1), 80):
        label = source.components[source.component_number(int(batch.record[0]))].label
        cut = int(np.argmax(batch.weights[0])) + 1
        answer = tokenizer.decode(batch.targets[0][batch.weights[0] == 1].tolist())
        begin = tokenizer.decode(batch.tokens[0][2:cut].tolist())
        asked[label].add((begin.split("?")[-1].strip(), answer.partition(", ")[2]))
    assert {a for a, _ in asked["viscenes"]} == {
        "Trả lời bằng một câu đầy đủ:", "Mô tả chi tiết bức ảnh:",
    }  # fmt: skip
    assert asked["jsonl"] == {("Trả lời và giải thích:", "vì trời mưa"), ("Mô tả ảnh:", "")}


def test_all_references_are_drawn_and_all_are_kept_for_scoring(batches, tokenizer):
    source = mixed("viscenes,jsonl", 1, 1)
    learnt = set()
    for batch in take(batches(source, max_questions=1, batch_size=2), 60):
        for targets, weights in zip(batch.targets, batch.weights, strict=True):
            learnt.add(tokenizer.decode(targets[weights == 1].tolist()))
    assert learnt == {a for record in source for qa in record.qa for a in qa.answers}
    every = eval_batches(source, tokenizer, image_size=8, patches=2, prompt_length=40, batch_size=3)
    scored = [qa for _, items in every for _, qa in items]
    assert scored == [qa for record in source for qa in record.qa]


def test_evaluation_asks_in_the_parts_style(tokenizer):
    source = mixed("viscenes,jsonl", 1, 1, style="jsonl=sports")
    (batch, _), = eval_batches(
        source, tokenizer, image_size=8, patches=2, prompt_length=40, batch_size=4
    )  # fmt: skip
    asked = [
        tokenizer.decode(ids[2:n].tolist())
        for ids, n in zip(batch.tokens, batch.length, strict=True)
    ]
    assert [asked[1], asked[3]] == ["Mô tả ảnh:", "Mô tả hoạt động thể thao trong ảnh:"]


def test_a_bad_record_names_its_part(batches):
    parts = parse("viscenes,jsonl")
    source = Mixture(parts, (Pictures("viscenes", 2), Pictures("jsonl", 3, gone=(1,))))
    skipped = {int(i) for b in take(batches(source), 4) for i in b.record[b.skipped]}
    assert skipped == {3}
    assert describe(source, 3) == "jsonl: jsonl1.png: No such file or directory"


def test_lengths_count_the_explanation(tokenizer):
    plain = suggest_lengths(mixed("jsonl", 3), tokenizer)
    explained = suggest_lengths(mixed("jsonl", 3, style="explain"), tokenizer)
    assert explained["row"]["p100"] > plain["row"]["p100"]
