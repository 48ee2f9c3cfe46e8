import dataclasses

import numpy as np
import pytest

from vimoe_jax.config.model import Connector, Decoder, Model, Vision
from vimoe_jax.hf import names
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.moe.options import MoEOptions

TOWER = Vision(width=8, depth=3, num_heads=2, mlp_dim=12)
EXPERTS = MoEOptions(num_experts=3, experts_per_token=2, mlp_dim=8)


def model(**decoder):
    sizes = dict(width=12, depth=4, num_heads=6, num_kv_heads=2, head_dim=4, mlp_dim=14)
    return Model(image_size=12, patch_size=4, vision=TOWER, decoder=Decoder(**{**sizes, **decoder}))


MODELS = {
    "dense": model(),
    "untied": model(tie_embeddings=False),
    "llama": model(qk_norm=False),
    "every_2": model(moe=EXPERTS),
    "last": model(moe=dataclasses.replace(EXPERTS, placement=(2, 3))),
    "fine": model(moe=dataclasses.replace(EXPERTS, mlp_dim=6, granularity=2, placement="all")),
    "everywhere": dataclasses.replace(
        model(moe=EXPERTS),
        vision=dataclasses.replace(TOWER, moe=EXPERTS),
        connector=Connector(moe=dataclasses.replace(EXPERTS, placement="all")),
    ),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("which", MODELS)
def test_there_and_back_is_bit_identical(which, fused):
    blueprint = Blueprint.create(MODELS[which], 64)
    draw = np.random.default_rng(0)
    params = {n: draw.normal(size=s).astype(np.float32) for n, s in blueprint.shapes().items()}
    tensors, back = {}, {n: np.full_like(p, np.nan) for n, p in params.items()}
    for piece in names.pieces(blueprint, fused_experts=fused):
        assert piece.hf not in tensors
        tensors[piece.hf] = piece.to_hf(params[piece.ours])
        assert tensors[piece.hf].shape == piece.shape
        back[piece.ours][piece.index] = piece.to_ours(tensors[piece.hf])
    assert not names.homeless(blueprint, stock=False)
    for name in params:
        np.testing.assert_array_equal(back[name], params[name], err_msg=name)


def test_layer_numbers_follow_the_stack():
    # "every_2" of four layers is one unit of two layers, repeated.
    blueprint = Blueprint.create(MODELS["every_2"], 64)
    where = {p.hf: (p.ours, p.index[0]) for p in names.pieces(blueprint)}
    layer = "language_model.model.layers.{}.mlp.{}.weight"
    dense, moe = "decoder.blocks.segments.0.0.mlp.w_in", "decoder.blocks.segments.0.1.mlp.router"
    assert where[layer.format(2, "up_proj")] == (dense, 1)
    assert where[layer.format(3, "gate")] == (moe, 1)
    assert layer.format(1, "up_proj") not in where


def test_gate_comes_before_up_and_heads_are_not_mixed():
    blueprint = Blueprint.create(MODELS["dense"], 64)
    draw = np.random.default_rng(0)
    params = {n: draw.normal(size=shape) for n, shape in blueprint.shapes().items()}
    tensors = {p.hf: p.to_hf(params[p.ours]) for p in names.pieces(blueprint)}
    layer = "language_model.model.layers.1."
    w_in = params["decoder.blocks.segments.0.0.mlp.w_in"][1]
    np.testing.assert_array_equal(tensors[layer + "mlp.gate_proj.weight"], w_in[:, 0].T)
    np.testing.assert_array_equal(tensors[layer + "mlp.up_proj.weight"], w_in[:, 1].T)
    q = params["decoder.blocks.segments.0.0.attention.q"][1]
    np.testing.assert_array_equal(tensors[layer + "self_attn.q_proj.weight"][5], q[:, 1, 1])
    out = params["decoder.blocks.segments.0.0.attention.out"][1]
    np.testing.assert_array_equal(tensors[layer + "self_attn.o_proj.weight"][:, 5], out[1, 1])


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("vision_model.embeddings.patch_embedding.bias", "embeddings.patch_embedding.bias"),
        ("vision_tower.post_layernorm.bias", "post_layernorm.bias"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.bias", "encoder.layers.0.mlp.fc1.bias"),
        ("vision_tower.vision_model.post_layernorm.bias", "post_layernorm.bias"),
        ("post_layernorm.bias", "post_layernorm.bias"),
    ],
)
def test_spellings_of_the_tower(name, table):
    assert names.canonical(name) == "vision_tower.vision_model." + table


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("model.norm.weight", "model.norm.weight"),
        ("norm.weight", "model.norm.weight"),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("layers.3.mlp.gate.weight", "model.layers.3.mlp.gate.weight"),
    ],
)
def test_spellings_of_the_decoder(name, table):
    assert names.canonical(name) == "language_model." + table


def test_every_spelling_is_stable():
    for which in MODELS:
        for piece in names.pieces(Blueprint.create(MODELS[which], 64)):
            assert names.canonical(piece.hf) == piece.hf


def test_homeless_are_named():
    fine = dataclasses.replace(EXPERTS, shared_experts=1, bias_rate=0.1)
    blueprint = Blueprint.create(model(moe=fine), 64)
    found = {n.rsplit("mlp.", 1)[1] for n in names.homeless(blueprint)}
    assert found == {"shared.w_in", "shared.w_out", "bias"}
    everywhere = Blueprint.create(MODELS["everywhere"], 64)
    assert {n.split(".")[0] for n in names.homeless(everywhere)} == {"vision", "connector"}
    assert not names.homeless(everywhere, stock=False)


@pytest.mark.peer
def test_names_and_shapes_are_those_that_transformers_saves(tmp_path):
    pytest.importorskip("torch")
    from safetensors import safe_open

    from tests.hf import peers

    c = MODELS["every_2"]
    peers.llava(c, 64).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as f:
        theirs = {names.canonical(k): tuple(f.get_slice(k).get_shape()) for k in f.keys()}
    assert theirs == {p.hf: p.shape for p in names.pieces(Blueprint.create(c, 64))}
