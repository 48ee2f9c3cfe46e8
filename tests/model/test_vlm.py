"""The whole model: segments, padding, gradients, decoding against teacher forcing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax import config as config_lib
from vimoe_jax.answer.greedy import make_greedy
from vimoe_jax.data.batch import PICTURE, SHARED, Batch, Prompts
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.moe.routers.hash import hash_table
from vimoe_jax.parallel.mesh import make_mesh

VOCAB, PATCHES = 64, 4
MOE = MoEOptions(num_experts=4, group_size=16, mlp_dim=16)


def small(**moe):
    """Unequal sizes, so that no transposition hides; `moe` names the parts with experts."""
    return config_lib.Model(
        image_size=16,
        patch_size=8,
        vision=config_lib.Vision(
            width=24, depth=2, num_heads=3, mlp_dim=40, **moe.get("vision", {})
        ),
        connector=config_lib.Connector(**moe.get("connector", {})),
        decoder=config_lib.Decoder(
            width=32, depth=4, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=48,
            **moe.get("decoder", {}),
        ),
    )  # fmt: skip


CONFIGS = {
    "dense": small(),
    "untied": dataclasses.replace(
        small(), decoder=dataclasses.replace(small().decoder, tie_embeddings=False)
    ),
    "moe": small(decoder={"moe": MOE}),
    "moe everywhere": small(
        vision={"moe": dataclasses.replace(MOE, placement="last_1")},
        connector={"moe": dataclasses.replace(MOE, placement="all")},
        decoder={"moe": dataclasses.replace(MOE, placement=(0, 3))},
    ),
    "routers": small(
        vision={"moe": dataclasses.replace(MOE, router="soft", soft_slots=3, placement="last_1")},
        connector={
            "moe": dataclasses.replace(
                MOE, router="expert_choice", eval_capacity_factor=100.0, placement="all"
            )
        },
        decoder={"moe": dataclasses.replace(MOE, router="hash", shared_experts=1, placement=(1,))},
    ),
    "balanced": small(
        decoder={"moe": dataclasses.replace(MOE, bias_rate=0.01, granularity=2, shared_experts=1)}
    ),
    "dropless": small(decoder={"moe": dataclasses.replace(MOE, dispatcher="dropless")}),
}


def rows(lengths, seed=0, total=12):
    """One row per list of segment lengths: a picture, then the segments; `total` text tokens."""
    rng = np.random.default_rng(seed)
    b = len(lengths)
    batch = Batch(
        pictures=rng.integers(0, 256, (b, 1, 16, 16, 3), dtype=np.uint8),
        tokens=rng.integers(5, VOCAB, (b, PATCHES + total)).astype(np.int32),
        targets=rng.integers(5, VOCAB, (b, PATCHES + total)).astype(np.int32),
        weights=np.zeros((b, PATCHES + total), np.float32),
        segments=np.zeros((b, PATCHES + total), np.int32),
        positions=np.zeros((b, PATCHES + total), np.int32),
    )
    for i, segments in enumerate(lengths):
        start = PATCHES
        if segments:
            batch.tokens[i, :start] = PICTURE
            batch.segments[i, :start] = SHARED
            batch.positions[i, :start] = np.arange(start)
        for number, n in enumerate(segments, 1):
            batch.segments[i, start : start + n] = number
            batch.positions[i, start : start + n] = PATCHES + np.arange(n)
            batch.weights[i, start + n - 2 : start + n] = 1
            start += n
    return batch


def text_of(batch):
    """Views of what `rows` makes, without the places of pictures."""
    return Batch(batch.pictures, *(x[:, PATCHES:] for x in batch.for_step()[1:6]))


def random_params(blueprint, seed=1):
    """Drawn by numpy (no compilation), norms and biases away from 1 and 0 so that each shows."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith(".table"):  # of a hash router
            repeats, ids, k = shape
            return np.stack([hash_table(ids, MOE.num_experts, k, seed=r) for r in range(repeats)])
        if name.endswith("mlp.bias"):  # of a balanced router
            return np.zeros(shape, np.float32)
        return (0.15 * rng.normal(size=shape) + name.endswith("scale")).astype(np.float32)

    return {n: draw(n, shape) for n, shape in blueprint.shapes().items()}


@pytest.fixture(scope="module", params=["untied", "moe everywhere", "routers"])
def built(request):
    blueprint = Blueprint.create(CONFIGS[request.param], VOCAB)
    return blueprint, random_params(blueprint)


@functools.cache
def forward(blueprint):
    def logits(params, batch):
        model = blueprint.build(params)
        return model.logits(model(batch).hidden)

    return jax.jit(logits)


def logits(blueprint, params, batch):
    return np.asarray(forward(blueprint)(params, batch))


def test_segments_equal_separate_rows(built):
    blueprint, params = built
    packed = rows([[5, 4, 3], [7, 5]])
    together = logits(blueprint, params, packed)
    for i, segments in enumerate([[5, 4, 3], [7, 5]]):
        start = 0
        for n in segments:
            alone = rows([[n], []])
            alone.pictures[0] = packed.pictures[i]
            text_of(alone).tokens[0, :n] = text_of(packed).tokens[i, start : start + n]
            text_of(alone).weights[0, :n] = text_of(packed).weights[i, start : start + n]
            separate = logits(blueprint, params, alone)
            np.testing.assert_allclose(
                together[i, start : start + n], separate[0, :n], atol=1e-5, rtol=1e-5
            )
            start += n


def test_padding_changes_nothing(built):
    blueprint, params = built
    clean = rows([[5, 4], [7]])
    dirty = rows([[5, 4], [7]], seed=3)
    for i, n in enumerate((9, 7)):
        dirty.pictures[i] = clean.pictures[i]
        text_of(dirty).tokens[i, :n] = text_of(clean).tokens[i, :n]
    a, b = logits(blueprint, params, clean), logits(blueprint, params, dirty)
    np.testing.assert_allclose(a[0, :9], b[0, :9], atol=1e-5)
    np.testing.assert_allclose(a[1, :7], b[1, :7], atol=1e-5)


def test_every_parameter_gets_a_gradient(built):
    blueprint, params = built
    batch = rows([[6, 6], [12]])

    def loss(params):
        model = blueprint.build(params)
        out = model(batch, key=jax.random.key(0))
        return jnp.sum(jnp.sin(model.logits(out.hidden))) + out.aux_loss

    buffers = {n: params[n] for n in blueprint.buffers()}
    learned = {n: p for n, p in params.items() if n not in buffers}
    grads = jax.jit(jax.grad(lambda p: loss({**p, **buffers})))(learned)
    silent = {n for n, g in grads.items() if not np.abs(g).max() > 0}
    # The tower's last norm is kept for checkpoints only, and a bias on all keys moves no softmax.
    assert {n for n in silent if "post_norm" not in n and "k_bias" not in n} == set()
    assert all(np.isfinite(g).all() for g in grads.values())


def test_decoding_agrees_with_teacher_forcing(built):
    """Greedy tokens with the cache are the argmax of the full forward pass at every step."""
    blueprint, params = built
    rng = np.random.default_rng(5)
    lengths = [3, 6, 0, 1]
    texts = rng.integers(5, VOCAB, (4, 6)).astype(np.int32)
    batch = Prompts(
        pictures=rng.integers(0, 256, (4, 1, 16, 16, 3), dtype=np.uint8),
        tokens=np.concatenate([np.full((4, PATCHES), PICTURE, np.int32), texts], 1),
        length=PATCHES + np.array(lengths, np.int32),
        valid=np.array([True, True, False, True]),
    )
    greedy = make_greedy(
        blueprint, make_mesh({}, jax.devices()[:1]), max_new_tokens=5, eos_id=1, pad_id=0
    )
    answers = np.asarray(jax.jit(greedy)(params, batch))
    assert (answers[2] == 0).all(), "a padding row was answered"
    for i in (0, 1, 3):
        ids = texts[i, : lengths[i]].tolist()
        for step in range(5):
            row = rows([[len(ids)], []]) if len(ids) > 1 else rows([[2], []])
            row.pictures[0] = batch.pictures[i]
            text_of(row).tokens[0, : len(ids)] = ids
            row.weights[:] = 0
            expected = int(np.argmax(logits(blueprint, params, row)[0, len(ids) - 1]))
            if expected == 1:
                assert (answers[i, step:] == 0).all()
                break
            assert answers[i, step] == expected, (i, step)
            ids.append(expected)


def test_counts_parameters():
    dense, moe = (Blueprint.create(CONFIGS[n], VOCAB) for n in ("dense", "moe"))
    assert dense.num_parameters() == dense.num_active_parameters()
    experts = 2 * 4 * 3 * 32 * 16  # layers · E · three matrices
    assert moe.num_parameters() - moe.num_active_parameters() == experts // 2


def test_names_layers_in_order():
    blueprint = Blueprint.create(CONFIGS["moe everywhere"], VOCAB)
    params = random_params(blueprint)
    out = jax.jit(lambda p, b: blueprint.build(p)(b).moe)(params, rows([[6, 6], [4]]))
    layers = blueprint.layers_of(out)
    assert list(layers) == ["vision.1", "connector", "decoder.0", "decoder.3"]
    # K choices of each valid token: 2 pictures of 4 patches, and 16 text tokens in the decoder.
    assert [float(r.routed.sum()) for r in layers.values()] == [16.0, 16.0, 48.0, 48.0]


def test_bfloat16_stays_close_to_float32():
    batch = rows([[6, 6], [12]])
    out = {}
    for dtype in ("float32", "bfloat16"):
        blueprint = Blueprint.create(dataclasses.replace(CONFIGS["dense"], dtype=dtype), VOCAB)
        out[dtype] = logits(blueprint, random_params(blueprint), batch)
        assert out[dtype].dtype == jnp.float32
    error = np.linalg.norm(out["bfloat16"] - out["float32"]) / np.linalg.norm(out["float32"])
    assert error < 0.02


def test_initialisation_does_not_depend_on_the_mesh():
    blueprint = Blueprint.create(CONFIGS["moe"], VOCAB)
    params = blueprint.init(jax.random.key(0))
    split = blueprint.init(jax.random.key(0), make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}))
    assert not split["decoder.embedding"].is_fully_replicated
    for name, p in params.items():
        np.testing.assert_array_equal(p, split[name], err_msg=name)
    w = np.asarray(params["decoder.blocks.segments.0.1.mlp.experts.w_in"])
    np.testing.assert_allclose(w.std(), 32**-0.5, rtol=0.1)
    assert len(np.unique(w)) > 0.99 * w.size, "experts or layers share their start"
