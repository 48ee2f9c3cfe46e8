"""Plans of whole configurations: what is printed, what it says of memory, exit codes."""

import dataclasses
import importlib.util
import json
import os

import jax
import pytest

from vimoe_jax import config, plan
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.config.mesh import Mesh
from vimoe_jax.config.model import Decoder, Model, Vision
from vimoe_jax.config.train import Train
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.model.flops import model_flops
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.parallel.hardware import CHIPS
from vimoe_jax.parallel.mesh import make_mesh
from vimoe_jax.plan import alternatives, compiled, planner, report, topology
from vimoe_jax.train.program import Program

TINY = Config(
    model=Model(
        image_size=32,
        patch_size=8,
        vision=Vision(width=32, depth=1, num_heads=2, mlp_dim=64),
        decoder=Decoder(
            width=32, depth=2, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=64, vocab_size=128,
            moe=MoEOptions(
                num_experts=4, mlp_dim=64, group_size=64, capacity_factor=1.0, placement="all"
            ),
        ),
    ),
    data=dataclasses.replace(Config().data, text_length=16),
    train=Train(steps=10, batch_size=16),
    eval=dataclasses.replace(Config().eval, batch_size=16),
    mesh=Mesh(data=2, fsdp=2, expert=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What `--plan --topology=h100:8 --out=…` prints, writes and returns."""
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    made = []
    original, report.text = report.text, lambda p: made.append(p) or original(p)
    try:
        code = plan.main(TINY, "h100:8", str(out))
    finally:
        report.text = original
    return made[0], json.loads(out.read_text()), code


def test_a_plan_that_fits(tiny):
    found, numbers, code = tiny
    assert code == 0 and numbers["fits"] and found.needed < found.capacity == CHIPS["h100"].memory
    assert numbers["mesh"] == {"data": 2, "fsdp": 2, "expert": 2, "tensor": 1}
    assert numbers["active_parameters"] < numbers["parameters"]
    memory = numbers["memory"]
    parts = ("arguments", "temporaries", "outputs", "code")
    assert memory["total"] == sum(memory[p] for p in parts)


def test_state_is_the_arguments(tiny):
    found, _, _ = tiny
    blueprint = Blueprint.create(TINY.model, 128)
    mesh = make_mesh({"data": 2, "fsdp": 2, "expert": 2}, jax.devices())
    held = compiled.device_bytes(Program.create(TINY, blueprint, mesh).abstract())
    batch = compiled.device_bytes(compiled.abstract_batch(TINY, mesh))
    assert held + batch <= found.compiled.arguments < 1.1 * (held + batch) + 4096


def test_what_is_sent_by_kind_and_axis(tiny):
    _, numbers, _ = tiny
    sent = {(s["kind"], s["axes"]) for s in numbers["sent"]}
    assert any(axes == "fsdp" for _, axes in sent)
    assert any(kind == "all-to-all" and "expert" in axes for kind, axes in sent)
    assert all(s["bytes"] > 0 and s["operations"] > 0 for s in numbers["sent"])
    assert set(numbers["roofline"]["links"]) == {axes for _, axes in sent}


def test_a_stack_is_gathered_to_where_fsdp_splits_it_and_no_further(tiny):
    _, numbers, _ = tiny
    largest, layer = numbers["largest_all_gather"], numbers["largest_all_gather_in_loop"]
    # First matrices of two layers' experts, which `fsdp` and `expert` split.
    assert largest["bytes"] == 2 * (4 // 2) * (32 // 2) * 2 * 64 * 4
    assert layer is None or layer["bytes"] <= 2 * 32 * 2 * 64 * 4  # two experts' first matrix


def test_compiled_flops_are_near_the_models(tiny):
    found, _, _ = tiny
    assert 0.9 < found.flops * found.devices / found.model_flops < 1.6


def test_the_table_says_it_all(tiny):
    found, _, _ = tiny
    text = report.text(found)
    for part in ("parameters", "temporaries", "model FLOPs", "roofline", "sent by", "all-gather",
                 "model.remat=full", "optim.moments_dtype=bfloat16", "optim.name=adafactor",
                 "train.accumulate=2", "mesh.data=1 mesh.fsdp=4", "no h100 here"):  # fmt: skip
        assert part in text, part
    assert "DOES NOT FIT" not in text


def test_other_settings_change_what_they_should(tiny):
    found, _, _ = tiny
    by = {a.change: a for a in found.alternatives}
    held = by["model.remat=full"].state
    assert by["model.remat=offload"].total < by["model.remat=full"].total
    assert by["model.remat=full"].total < by["model.remat=dots"].total < found.needed
    # Parameters and two moments, of four bytes each: two of them become two.
    assert by["optim.moments_dtype=bfloat16"].state == pytest.approx(held * 8 / 12, rel=0.02)
    # The state is split over all devices either way; gathered weights are half as large.
    wider = by["mesh.data=1 mesh.fsdp=4"]
    assert wider.state == pytest.approx(held, rel=0.01)
    assert wider.total < found.needed
    assert by["train.accumulate=2"].total < found.needed
    together = by["model.remat=full optim.moments_dtype=bfloat16 train.accumulate=2"]
    assert together.total < min(a.total for a in (by["model.remat=full"], by["train.accumulate=2"]))


def test_too_large_for_the_table(tiny):
    found, _, _ = tiny
    small = dataclasses.replace(found, capacity=0.9 * found.needed)
    assert not small.fits
    text = report.text(small)
    assert "DOES NOT FIT" in text and "would fit" in text


def test_too_large_for_the_compiler(monkeypatch, capsys):
    def refuse(*_):
        raise compiled.OutOfMemory("", 2e9)

    monkeypatch.setattr(planner, "compile_step", refuse)
    monkeypatch.setattr(alternatives, "REMAT", ("none", "full"))
    assert plan.main(TINY, "h100:8") == 1
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text and "1.86 GiB" in text and "model.remat=full" in text


def test_bytes_of_the_compilers_message():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (50.13G) exceeds available HBM (15.75G)."
    )
    assert compiled.temporary_bytes(message) == 50.13 * 2**30
    assert compiled.temporary_bytes("RESOURCE_EXHAUSTED: something else") is None


def test_model_flops_by_hand():
    c = dataclasses.replace(
        TINY, model=dataclasses.replace(
            TINY.model, decoder=dataclasses.replace(TINY.model.decoder, moe=MoEOptions())
        )
    )  # fmt: skip
    rows, patches, text = 16, 16, 16
    tower = 8 * 8 * 3 * 32 + 4 * 32 * 32 + 2 * 32 * 64
    connector = 2 * 32 * 32
    decoder = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    products = patches * (tower + connector) + (patches + text) * decoder + text * 128 * 32
    scores = patches**2 * 32 + (patches + text) ** 2 * 2 * 32 / 2
    expected = rows * (6 * products + 12 * scores)
    assert model_flops(c, Blueprint.create(c.model, 128)) == expected


def test_active_experts_only_are_counted():
    blueprint = Blueprint.create(TINY.model, 128)
    more = dataclasses.replace(TINY.model.decoder.moe, num_experts=8)
    model = dataclasses.replace(
        TINY.model, decoder=dataclasses.replace(TINY.model.decoder, moe=more)
    )
    wide = Blueprint.create(model, 128)
    c = dataclasses.replace(TINY, model=model)
    router = 16 * 6 * 32 * (2 * 4 * 32)  # rows · 6 · places · layers · four columns more of D
    assert model_flops(c, wide) - model_flops(TINY, blueprint) == router


def test_a_tokenizer_that_is_not_there():
    c = dataclasses.replace(
        TINY,
        model=dataclasses.replace(
            TINY.model, decoder=dataclasses.replace(TINY.model.decoder, vocab_size=0)
        ),
        data=dataclasses.replace(TINY.data, tokenizer="nowhere.json"),
    )
    with pytest.raises(UserError, match=r"model\.decoder\.vocab_size"):
        plan.main(c, "h100:8")


@pytest.mark.parametrize(("name", "size"), [("moe_10b", 10.07e9), ("vmoe_h14", 7.73e9)])
def test_large_models_without_a_large_array(name, size):
    """Their sizes, and what a chip holds of them, in seconds and without memory."""
    c = config.load(f"configs/{name}.py")
    blueprint = Blueprint.create(c.model, c.model.decoder.vocab_size)
    assert blueprint.num_parameters() == pytest.approx(size, rel=0.01)
    sizes = dataclasses.asdict(c.mesh)
    axes = ("data", "fsdp", "expert", "tensor")
    mesh = jax.sharding.AbstractMesh(tuple(sizes[a] for a in axes), axes)
    held = compiled.device_bytes(Program.create(c, blueprint, mesh).abstract())
    split = blueprint.num_parameters() / mesh.size
    assert held == pytest.approx(12 * split, rel=0.03)
    other = dataclasses.replace(c, optim=dataclasses.replace(c.optim, name="adafactor"))
    less = compiled.device_bytes(Program.create(other, blueprint, mesh).abstract())
    assert less == pytest.approx(8 * split, rel=0.1)  # parameters and first moments


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"),
    reason="libtpu is not installed (requirements-plan.txt)",
)


@pytest.mark.peer
@needs_libtpu
@pytest.mark.parametrize(("name", "chips"), [("v5e:2x4", 8), ("v5p:2x2x2", 8), ("v6e:2x4", 8)])
def test_tpus_own_compiler(name, chips):
    found = planner.make(TINY, name, others=False)
    assert found.devices == chips and found.fits and found.compiled.code > 0
    assert 0.9 < found.flops * chips / found.model_flops < 1.6
    assert {"all-to-all", "all-gather"} <= {c.kind for c in found.sent}
    assert found.capacity == topology.parse(name)[0].memory
    assert 0 < found.roofline.mfu_bound < 1


@pytest.mark.peer
@needs_libtpu
def test_tpus_own_compiler_refuses_what_does_not_fit():
    c = dataclasses.replace(
        TINY,
        model=dataclasses.replace(TINY.model, remat="none"),
        data=dataclasses.replace(TINY.data, text_length=16384),
    )
    found = planner.make(c, "v5e:2x4", others=False)
    assert found.compiled is None and not found.fits
    assert found.needed > found.capacity
    assert "DOES NOT FIT" in report.text(found)
