"""The settings of an MoE layer, and what is refused."""

import dataclasses

import pytest

from vimoe_jax.base import schema
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Model
from vimoe_jax.moe.options import MoEOptions, complaints, moe_layers
from vimoe_jax.moe.routers import ROUTERS

OPTIONS = MoEOptions(num_experts=4, experts_per_token=2, mlp_dim=8)
DEPTH = 6


def complain(causal=False, **changes):
    """Complaints about a part whose dense MLP has width 12."""
    options = dataclasses.replace(OPTIONS, **changes)
    return list(complaints(options, DEPTH, 12, causal=causal))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"router": "topk"}, "router: must be one of 'top_k', 'expert_choice', 'soft', 'hash'"),
        ({"router": "topk"}, "(did you mean 'top_k'?), not 'topk'"),
        ({"dispatcher": "gahter"}, "dispatcher: must be one of 'gather', 'einsum', 'dropless'"),
        ({"eval_dispatcher": "einsun"}, "eval_dispatcher: must be one of"),
        ({"num_experts": -3}, "num_experts: must be at least 0, not -3"),
        ({"num_experts": "8"}, "num_experts: must be int, not '8'"),
        ({"num_experts": 8.0}, "num_experts: must be int, not 8.0"),
        ({"num_experts": True}, "num_experts: must be int, not True"),
        ({"capacity_factor": -1}, "capacity_factor: must be more than 0, not -1"),
        ({"capacity_factor": float("nan")}, "capacity_factor: must be more than 0, not nan"),
        ({"group_size": 0}, "group_size: must be at least 1"),
        ({"renormalize": 1}, "renormalize: must be bool, not 1"),
        ({"placement": "evry_2"}, "placement: must be 'all', 'every_N', 'last_N' or a list"),
        ({"placement": "evry_3"}, "(did you mean 'every_3'?)"),
        ({"placement": "every_0"}, "placement: must be 'all', 'every_N', 'last_N' or a list"),
        ({"placement": ("1",)}, "placement: must be str or tuple[int, ...]"),
        ({"num_exprts": 4}, "num_exprts: no such field (did you mean 'num_experts'?)"),
        ({"experts_per_token": 5}, "experts_per_token: 5 is more than num_experts = 4"),
        ({"eval_experts_per_token": 6}, "eval_experts_per_token: 6 is more than num_experts = 4"),
        (
            {"router": "expert_choice", "dispatcher": "dropless"},
            "dispatcher: 'dropless' has no capacity, which the router 'expert_choice' needs",
        ),
    ],
    ids=str,
)
def test_wrong_options_are_refused_where_they_are_made(changes, expected):
    for make in (lambda: dataclasses.replace(OPTIONS, **changes), lambda: made(**changes)):
        with pytest.raises(ValueError) as e:
            make()
        message = str(e.value)
        assert message.startswith("MoEOptions.") and "\n" not in message
        assert expected in message


def made(**changes):
    return MoEOptions(**{"num_experts": 4, "experts_per_token": 2, **changes})


@pytest.mark.parametrize("changes", [{"router": "topk"}, {"experts_per_token": 5}], ids=str)
def test_a_configuration_names_the_path_and_commands_take_it_for_a_users_error(changes):
    values = {"decoder": {"moe": {"num_experts": 4, **changes}}}
    with pytest.raises(UserError, match=r"^config\.decoder\.moe\.(router|experts_per_token): "):
        schema.resolve(Model, values)


def test_options_made_in_python_are_those_of_a_configuration():
    o = made(capacity_factor=2, placement=[0, 2])
    assert o == made(capacity_factor=2.0, placement=(0, 2))
    assert hash(o) == hash(made(capacity_factor=2.0, placement=(0, 2)))
    assert repr(o.capacity_factor) == "2.0"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"granularity": 3}, "granularity: 3 does not divide the hidden width 8"),
        ({"mlp_dim": 0, "granularity": 5}, "granularity: 5 does not divide the hidden width 12"),
        ({"router": "soft"}, "soft_slots: the soft router needs a number of slots per expert"),
        ({"placement": (6,)}, "placement: must name at least one of the layers 0 to 5"),
        ({"placement": "every_7"}, "placement: must name at least one of the layers 0 to 5"),
    ],
    ids=str,
)
def test_complaints_begin_with_the_field(changes, expected):
    (message,) = complain(**changes)
    assert message.startswith(expected)


@pytest.mark.parametrize("router", ROUTERS)
def test_only_the_causal_decoder_needs_causal_routers(router):
    slots = {"soft_slots": 1} if router == "soft" else {}
    assert complain(router=router, **slots) == []
    messages = complain(causal=True, router=router, **slots)
    if router in ("expert_choice", "soft"):
        (message,) = messages
        assert message.startswith(f"router: {router!r} decides about a token by the tokens after")
    else:
        assert messages == []


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("changes", [{"bias_rate": 0.001}, {"batch_priority": True}], ids=str)
def test_only_top_k_has_a_bias_and_priorities(router, changes):
    slots = {"soft_slots": 1} if router == "soft" else {}
    if router == "top_k":
        assert complain(router=router, **slots, **changes) == []
        return
    (name,) = changes
    with pytest.raises(ValueError) as e:
        dataclasses.replace(OPTIONS, router=router, **slots, **changes)
    complaint = f"{name}: only the router 'top_k' has it, not {router!r}"
    assert str(e.value) == f"MoEOptions.{complaint}"


def test_all_complaints_at_once():
    messages = complain(
        causal=True, granularity=3, router="soft", placement=(),
    )  # fmt: skip
    fields = [m.split(":")[0] for m in messages]
    assert fields == ["router", "granularity", "soft_slots", "placement"]


def test_a_dense_model_has_nothing_to_complain_about():
    assert complain(num_experts=0, experts_per_token=9, placement=(99,), router="soft") == []
    assert moe_layers(MoEOptions(placement=(99,)), 3) == (False,) * 3


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
