"""What the loop logs of a step: numbers of MoE layers by part, kind of token and layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.model.loss import TokenLoss
from vimoe_jax.model.stack import merge
from vimoe_jax.model.tokens import NUM_KINDS, TokenKind
from vimoe_jax.moe.report import MoEReport
from vimoe_jax.run.state import Health
from vimoe_jax.train import numbers
from vimoe_jax.train.step import StepMetrics

E = 4


def layers(*reports):
    """(image, question, answer) choices routed and kept, a layer each; expert 0 gets half."""
    share = np.array([0.5, 0.3, 0.1, 0.1], np.float32)
    routed, kept = (
        np.array([r[i] for r in reports], np.float32)[..., None] * share for i in (0, 1)
    )
    tokens = routed.sum(-1) / 2
    first = np.arange(len(reports), dtype=np.float32)
    return MoEReport(
        losses={"importance": first, "z": first + 1},
        routed=routed,
        kept=kept,
        tokens=tokens,
        unserved=tokens / 10,
        entropy=tokens.sum(-1) * 1.25,
    )


def step(moe):
    one = jnp.float32(1)
    tokens = TokenLoss(*([one] * len(TokenLoss.__dataclass_fields__)))
    return StepMetrics(
        tokens=tokens,
        text_tokens=one,
        aux_loss=one,
        grad_norm=one,
        learning_rate=one,
        moe=moe,
        health=Health.create(),
    )


def test_a_dense_step_logs_nothing_of_experts():
    logged = numbers.of_step(step({}))
    assert logged["train/loss"] == 1 and not [n for n in logged if "moe" in n]
    rates = {"train/examples_per_second": 2.0, "train/tokens_per_second": 3.0}
    assert numbers.line(logged | rates) == "loss 1.0000 · 2.0 examples/s · 3 tokens/s"


def test_drops_count_choices_of_all_layers_together():
    a, b = ((80, 40, 20), (80, 20, 15)), ((160, 0, 20), (40, 0, 5))
    logged = numbers.of_step(step({"decoder": layers(a, b)}))
    at = {n.removeprefix("train/moe/decoder/"): v for n, v in logged.items() if "/moe/" in n}
    assert at["drop_fraction"] == pytest.approx(1 - 160 / 320)
    assert at["drop_fraction_image"] == pytest.approx(1 - 120 / 240)
    assert at["drop_fraction_question"] == pytest.approx(0.5)
    assert at["drop_fraction_answer"] == pytest.approx(0.5)
    assert at["unserved_fraction"] == pytest.approx(0.1)
    assert at["load_max_over_mean"] == pytest.approx(2)
    assert at["router_entropy"] == pytest.approx(1.25)
    assert (at["importance_loss"], at["z_loss"]) == (0.5, 1.5)
    assert at["drop_fraction_by_layer"] == [round(1 - 115 / 140, 4), 0.75]
    assert at["load_max_over_mean_by_layer"] == [2, 2]
    assert len(at) == 11


def test_only_kinds_that_have_tokens():
    logged = numbers.of_step(step({"vision": layers(((8, 0, 0), (6, 0, 0)))}))
    kinds = [n.rpartition("_")[2] for n in logged if "/drop_fraction_" in n]
    assert kinds == [TokenKind.IMAGE.name.lower()]
    assert not [n for n in logged if n.endswith("_by_layer")]  # one layer: nothing to list


def test_layers_are_listed_first_to_last():
    """Segments (dense, MoE, MoE) × 2 and (MoE) × 1: the scan stacks repeats, the unit is inner."""

    def dropping(*fractions):
        return layers(*(((100, 0, 0), (100 * (1 - f), 0, 0)) for f in fractions))

    segments = [[None, dropping(0.1, 0.3), dropping(0.2, 0.4)], [None], [dropping(0.5)]]
    logged = numbers.of_step(step({"decoder": merge(jax.device_put(segments))}))
    by_layer = logged["train/moe/decoder/drop_fraction_by_layer"]
    assert by_layer == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert logged["train/moe/decoder/drop_fraction"] == pytest.approx(0.3)


def test_a_batch_without_tokens_logs_no_nan():
    logged = numbers.of_step(step({"decoder": layers(((0, 0, 0), (0, 0, 0)))}))
    assert all(math.isfinite(v) for v in logged.values())
    assert not [n for n in logged if "/drop_fraction_" in n]


def test_the_line_names_the_worst_part():
    few, many = layers(((10, 10, 10), (9, 9, 9))), layers(((10, 10, 10), (5, 5, 5)))
    logged = numbers.of_step(
        step({"vision": few, "decoder": merge(jax.device_put([[many, many]]))})
    )
    rates = {"train/examples_per_second": 2.0, "train/tokens_per_second": 3.0}
    assert numbers.line(logged | rates).endswith("3 tokens/s · 50.0% dropped, load 2.00× mean")


def test_every_kind_has_a_name_in_the_report():
    from vimoe_jax.report.meanings import KINDS

    assert [k.name.lower() for k in TokenKind] == list(KINDS) and len(KINDS) == NUM_KINDS
