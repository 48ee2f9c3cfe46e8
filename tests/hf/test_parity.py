"""Stock transformers and ours on the same weights: logits, and greedily decoded tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import streams
from tests.hf import peers
from tests.hf.test_names import EXPERTS, model
from vimoe_jax.answer.greedy import make_greedy
from vimoe_jax.hf.load import load
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.run.checkpoint import load_params
from vimoe_jax.run.workdir import reopen

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer

VOCAB = 55
EVERY_2 = dataclasses.replace(EXPERTS, num_experts=5, experts_per_token=2)
MODELS = {
    "dense": (model(), {}),
    "untied": (model(tie_embeddings=False, rope_theta=1e6, norm_eps=1e-5), {}),
    "llama": (model(qk_norm=False, tie_embeddings=False), {}),
    "every_2": (model(moe=EVERY_2), dict(decoder_sparse_step=2, mlp_only_layers=[])),
    "every_2_plain": (
        model(moe=dataclasses.replace(EVERY_2, renormalize=False), tie_embeddings=False),
        dict(decoder_sparse_step=2, mlp_only_layers=[]),
    ),
    "last": (model(moe=MoEOptions(num_experts=3, mlp_dim=20, placement=(2, 3))), {}),
}


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request, tmp_path_factory):
    """The stock model, and the run that was loaded from its files."""
    c, more = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    theirs = peers.llava(c, VOCAB, text_more=more)
    theirs.save_pretrained(folder)
    peers.tokenizer(folder)
    load([folder], folder / "run")
    run = reopen(folder / "run", [])
    return c, theirs, run, load_params(run)


def draw(c, rows, most, seed):
    """Pictures, right-padded prompts and their lengths."""
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (rows, c.image_size, c.image_size, 3), np.uint8)
    length = draw.integers(1, most + 1, rows).astype(np.int32)
    length[0] = most
    tokens = draw.integers(5, VOCAB, (rows, most)).astype(np.int32)
    tokens[np.arange(most) >= length[:, None]] = 0
    return image, tokens, length


def for_theirs(c, image, tokens, length, side):
    """The same batch as transformers wants it: P `<image>` tokens first, padded on a side."""
    patches = c.num_patches
    rows, most = tokens.shape
    ids = np.zeros((rows, patches + most), np.int64)
    mask = np.zeros_like(ids)
    for i, n in enumerate(length):
        row = np.concatenate([np.full(patches, 4), tokens[i, :n]])
        at = slice(0, len(row)) if side == "right" else slice(ids.shape[1] - len(row), None)
        ids[i, at], mask[i, at] = row, 1
    pixels = (image.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    return dict(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        pixel_values=torch.tensor(np.ascontiguousarray(pixels)),
    )


def test_the_configuration_is_that_of_the_model(pair):
    c, _, run, _ = pair
    found = run.config.model
    assert found.vision == c.vision and found.image_size == c.image_size
    expected = dataclasses.replace(c.decoder, vocab_size=64)
    if c.decoder.moe.placement == (2, 3):
        expected = dataclasses.replace(
            expected, moe=dataclasses.replace(c.decoder.moe, placement=(2, 3))
        )
    assert found.decoder == expected


def test_logits(pair):
    c, theirs, run, params = pair
    image, tokens, length = draw(c, 5, 7, seed=1)
    with torch.no_grad():
        expected = theirs(**for_theirs(c, image, tokens, length, "right")).logits.numpy()
    used = np.arange(tokens.shape[1]) < length[:, None]
    batch = streams.batch_of(
        streams.prompts([[one] for one in image], tokens, length, c.num_patches)
    )

    @jax.jit
    def ours(params, batch):
        vlm = run.blueprint.build(params)
        return vlm.logits(vlm(batch).hidden)

    found = np.asarray(ours(params, batch))[..., :VOCAB]
    patches = expected.shape[1] - tokens.shape[1]
    np.testing.assert_allclose(found[used], expected[:, patches:][used], atol=1e-4)


def test_several_pictures_and_none(pair):
    """Rows of 2, 0 and 1 pictures, together as we take them and one by one as they do."""
    c, theirs, run, params = pair
    image, tokens, length = draw(c, 3, 7, seed=4)
    pictures = [[image[0], image[1]], [], [image[2]]]
    batch = streams.batch_of(streams.prompts(pictures, tokens, length, c.num_patches))
    vlm = jax.jit(lambda p, b: (m := run.blueprint.build(p)).logits(m(b).hidden))
    found = np.asarray(vlm(params, batch))[..., :VOCAB]
    for i, own in enumerate(pictures):
        ids = [4] * (c.num_patches * len(own)) + tokens[i, : length[i]].tolist()
        pixels = [(one.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1) for one in own]
        inputs = dict(pixel_values=torch.tensor(np.stack(pixels))) if own else {}
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor([ids]), **inputs).logits[0].numpy()
        start = c.num_patches * len(own)
        np.testing.assert_allclose(found[i, : length[i]], expected[start:], atol=1e-4)


def test_greedy_decoding(pair):
    c, theirs, run, params = pair
    image, tokens, length = draw(c, 50, 6, seed=2)
    new = 8
    with torch.no_grad():
        expected = theirs.generate(
            **for_theirs(c, image, tokens, length, "left"),
            max_new_tokens=new, do_sample=False, eos_token_id=1, pad_token_id=0,
        )[:, -new:].numpy()  # fmt: skip
    decode = make_greedy(run.blueprint, run.mesh, max_new_tokens=new, eos_id=1, pad_id=0)
    batch = streams.prompts([[one] for one in image], tokens, length, c.num_patches)
    found = np.asarray(jax.jit(decode)(params, jax.tree.map(jnp.asarray, batch)))
    expected = np.where(np.cumsum(expected == 1, 1) > 0, 0, expected)
    np.testing.assert_array_equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) > 10
