"""What an MoE layer can be told, and what it complains about."""

import dataclasses

import pytest

from vimoe_jax.moe.options import MoEOptions, complaints, moe_layers
from vimoe_jax.moe.routers import ROUTERS

OPTIONS = MoEOptions(num_experts=4, experts_per_token=2, mlp_dim=8)
DEPTH = 6


def told(causal=False, **changes):
    """Complaints about a part whose dense MLP has width 12."""
    options = dataclasses.replace(OPTIONS, **changes)
    return list(complaints(options, DEPTH, 12, causal=causal))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"experts_per_token": 5}, "experts_per_token: 5 is more than num_experts = 4"),
        ({"eval_experts_per_token": 6}, "eval_experts_per_token: 6 is more than num_experts = 4"),
        ({"granularity": 3}, "granularity: 3 does not divide the hidden width 8"),
        ({"mlp_dim": 0, "granularity": 5}, "granularity: 5 does not divide the hidden width 12"),
        ({"router": "soft"}, "soft_slots: the soft router needs a number of slots per expert"),
        ({"placement": "some"}, "placement: must be 'all', 'every_N', 'last_N' or a list"),
        ({"placement": (6,)}, "placement: must name at least one of the layers 0 to 5"),
        (
            {"router": "expert_choice", "dispatcher": "dropless"},
            "dispatcher: 'dropless' has no capacity, which the router 'expert_choice' needs",
        ),
    ],
    ids=str,
)
def test_complaints_begin_with_the_field(changes, expected):
    (message,) = told(**changes)
    assert message.startswith(expected)


@pytest.mark.parametrize("router", ROUTERS)
def test_only_the_causal_decoder_needs_causal_routers(router):
    slots = {"soft_slots": 1} if router == "soft" else {}
    assert told(router=router, **slots) == []
    messages = told(causal=True, router=router, **slots)
    if router in ("expert_choice", "soft"):
        (message,) = messages
        assert message.startswith(f"router: {router!r} decides about a token by the tokens after")
    else:
        assert messages == []


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("changes", [{"bias_rate": 0.001}, {"batch_priority": True}], ids=str)
def test_only_top_k_has_a_bias_and_priorities(router, changes):
    slots = {"soft_slots": 1} if router == "soft" else {}
    messages = told(router=router, **slots, **changes)
    if router == "top_k":
        assert messages == []
    else:
        (name,) = changes
        assert messages == [f"{name}: only the router 'top_k' has it, not {router!r}"]


def test_all_complaints_at_once():
    messages = told(
        causal=True, experts_per_token=9, eval_experts_per_token=9, granularity=3, router="soft",
        bias_rate=1.0, batch_priority=True, placement=(),
    )  # fmt: skip
    assert [m.split(":")[0] for m in messages] == [
        "experts_per_token", "eval_experts_per_token", "router", "granularity", "soft_slots",
        "bias_rate", "batch_priority", "placement",
    ]  # fmt: skip


def test_a_dense_model_has_nothing_to_complain_about():
    assert told(num_experts=0, experts_per_token=9, placement="some", router="soft") == []
    assert moe_layers(MoEOptions(placement="some"), 3) == (False,) * 3


def test_granularity_multiplies_and_divides():
    o = dataclasses.replace(OPTIONS, granularity=4, eval_experts_per_token=1)
    assert (o.experts, o.width(100), o.k(train=True), o.k(train=False)) == (16, 2, 8, 4)
    assert dataclasses.replace(o, mlp_dim=0).width(100) == 25
    assert dataclasses.replace(o, eval_experts_per_token=0).k(train=False) == 8


@pytest.mark.parametrize(
    ("changes", "train", "evaluation"),
    [
        ({}, 1.25, float("inf")),
        ({"eval_capacity_factor": 2.0}, 1.25, 2.0),
        ({"dispatcher": "dropless"}, float("inf"), float("inf")),
        ({"router": "expert_choice"}, 1.25, 1.25),
        ({"router": "expert_choice", "eval_capacity_factor": 2.0}, 1.25, 2.0),
    ],
    ids=str,
)
def test_capacity_factors(changes, train, evaluation):
    o = dataclasses.replace(OPTIONS, **changes)
    assert (o.factor(train=True), o.factor(train=False)) == (train, evaluation)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("every_2", [1, 3, 5]),
        ("every_4", [3]),
        ("every_1", [0, 1, 2, 3, 4, 5]),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("last_2", [3, 5]),
        ("last_9", [1, 3, 5]),
        ((0, 4), [0, 4]),
    ],
)
def test_placement(placement, expected):
    layers = moe_layers(dataclasses.replace(OPTIONS, placement=placement), DEPTH)
    assert [i for i, is_moe in enumerate(layers) if is_moe] == expected


@pytest.mark.parametrize("placement", ["every_0", "every_7", "last_0", "some", (7,), (-1,), ()])
def test_bad_placement(placement):
    with pytest.raises(ValueError, match="must"):
        moe_layers(dataclasses.replace(OPTIONS, placement=placement), DEPTH)
