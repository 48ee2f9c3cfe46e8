"""Meshes from sizes and by rule, and what is said where one does not fit."""

import dataclasses

import jax
import pytest

from tests.model.test_vlm import CONFIGS, MOE, VOCAB, small
from vimoe_jax import config as config_lib
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.config.evaluate import Eval
from vimoe_jax.config.mesh import Mesh
from vimoe_jax.config.train import Train
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel import hardware
from vimoe_jax.parallel import mesh as mesh_lib
from vimoe_jax.run.mesh import choose, for_run


@dataclasses.dataclass(frozen=True)
class Device:
    """What the rule looks at of a device."""

    process_index: int = 0
    memory: int = 0
    device_kind: str = "TPU v5p"
    platform: str = "tpu"

    def memory_stats(self):
        return {"bytes_limit": self.memory} if self.memory else None


def machine(hosts, each, **of_device):
    return [Device(process_index=h, **of_device) for h in range(hosts) for _ in range(each)]


def config(model="moe", rows=64, accumulate=1, **mesh):
    return Config(
        model=CONFIGS[model] if isinstance(model, str) else model,
        train=Train(batch_size=rows, accumulate=accumulate),
        eval=Eval(batch_size=rows),
        mesh=Mesh(**mesh),
    )


def chosen(c, devices):
    sizes = choose(c, Blueprint.create(c.model, VOCAB), devices)
    return {axis: size for axis, size in sizes.items() if size > 1}


def memory_for(c, bytes_of_each):
    """Of which half holds so many bytes of each parameter."""
    return int(2 * bytes_of_each * Blueprint.create(c.model, VOCAB).num_parameters())


def test_a_model_that_fits_is_copied():
    assert chosen(config(), machine(2, 4)) == {"data": 8}
    assert chosen(config("dense"), machine(1, 1)) == {}


def test_parameters_are_split_no_more_than_they_need():
    c = config("dense")
    # Two bytes of state on each of eight, and two of the copy: split in two, that is one.
    assert chosen(c, machine(2, 4, memory=memory_for(c, 4.6))) == {"data": 8}
    assert chosen(c, machine(2, 4, memory=memory_for(c, 3.5))) == {"data": 4, "fsdp": 2}


def test_experts_are_split_first_as_far_as_they_divide():
    c = config(small(decoder={"moe": dataclasses.replace(MOE, mlp_dim=2048, placement="all")}))
    assert chosen(c, machine(2, 4, memory=memory_for(c, 2.75))) == {"data": 2, "expert": 4}
    assert chosen(c, machine(2, 4, memory=memory_for(c, 2.4))) == {"fsdp": 2, "expert": 4}
    gpus = dict(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
    # Two nodes of eight; of each its own process for two GPUs: experts stay within a node.
    found = chosen(c, machine(8, 2, memory=memory_for(c, 1.4), **gpus))
    assert found == {"data": 2, "fsdp": 2, "expert": 4}


def test_tensor_takes_what_the_batch_cannot_split_and_stays_within_a_host():
    assert chosen(config(rows=4), machine(1, 8)) == {"data": 4, "tensor": 2}
    with pytest.raises(UserError, match=r"train.batch_size: 4 rows cannot be split over 8 devices"):
        chosen(config(rows=4), machine(8, 1))


def test_rows_are_read_by_process():
    gpus = dict(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
    c = config(rows=4, tensor=2)
    blueprint = Blueprint.create(c.model, VOCAB)
    assert for_run(c, blueprint, machine(4, 2, **gpus)).shape["tensor"] == 2
    # One node, but a process for each of its GPUs.
    with pytest.raises(UserError, match=r"mesh.tensor: 2 devices .* one process, which has 1"):
        for_run(c, blueprint, machine(8, 1, **gpus))
    with pytest.raises(UserError, match=r"train.batch_size: 4 rows cannot be split over 8"):
        chosen(config(rows=4), machine(8, 1, **gpus))


def test_where_nothing_fits_the_parameters_take_least():
    assert chosen(config("dense"), machine(1, 4, memory=1)) == {"fsdp": 4}


def test_memory_is_the_devices_own_word_then_the_data_sheets():
    assert mesh_lib.memory(Device(memory=5)) == 5
    assert mesh_lib.memory(Device()) == hardware.CHIPS["v5p"].memory
    assert mesh_lib.memory(Device(device_kind="abacus")) == 16 * 2**30


@pytest.mark.parametrize(
    ("c", "message"),
    [
        (config(data=3), "config.mesh: data=3, .* does not fit 8 device"),
        (config(data=-1, fsdp=-1), "config.mesh: at most one axis may be -1"),
        (
            config(expert=8, data=1),
            "config.mesh.expert: 8 does not divide the 4 experts of model.decoder; "
            "what does: 1, 2, 4",
        ),
        (
            config(rows=12),
            "config.train.batch_size: 12 rows cannot be split over 8 devices; multiples of 8 can",
        ),
        (config(rows=24, accumulate=2), "24 rows in 2 microbatches .*; multiples of 16 can"),
    ],
)
def test_one_line_says_what_fits(c, message):
    with pytest.raises(UserError, match=message) as e:
        for_run(c, Blueprint.create(c.model, VOCAB), jax.devices()[:8])
    assert "\n" not in str(e.value)


def test_the_rule_is_one_of_two():
    with pytest.raises(UserError, match=r"config.mesh.rule"):
        config_lib.resolve({"mesh": {"rule": "best"}})
    c = config(rule="auto", fsdp=3)  # a size that it does not look at
    mesh = for_run(c, Blueprint.create(c.model, VOCAB), jax.devices()[:8])
    assert mesh_lib.describe(mesh) == "data 8"
    assert mesh_lib.describe(mesh_lib.make_mesh({}, jax.devices()[:1])) == "one device"
