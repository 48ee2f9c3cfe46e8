"""A stream of picture patches and text: what stands where, and what reaches it back."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval as pe

from tests import streams
from tests.model.test_vlm import CONFIGS, PATCHES, VOCAB, random_params, rows, text_of
from vimoe_jax.data.batch import PICTURE, SHARED
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.model.tokens import Layout

P = 3


def stream(rng, most, text):
    """A row with at most `most` pictures anywhere between its text tokens."""
    count = int(rng.integers(0, most + 1))
    cuts = sorted(rng.integers(0, text + 1, count).tolist())
    row, start = [], 0
    for cut in [*cuts, text]:
        row += rng.integers(5, 50, cut - start).tolist()
        if len(row) < count * P + text or cut != text:
            row += [PICTURE] * P
        start = cut
    row = [t for t in row][: most * P + text]
    return row + [0] * (most * P + text - len(row))


@hypothesis.given(seed=st.integers(0, 10**6), most=st.integers(0, 3), text=st.integers(1, 9))
@hypothesis.settings(deadline=None, max_examples=60)
def test_a_stream_is_a_permutation_of_its_entries(seed, most, text):
    rng = np.random.default_rng(seed)
    tokens = np.array([stream(rng, most, text) for _ in range(4)], np.int32)
    hypothesis.assume(((tokens == PICTURE).sum(1) <= most * P).all())
    layout = Layout.create(jnp.asarray(tokens), most * P)
    entry, place = np.asarray(layout.entry), np.asarray(layout.place)
    for row in range(4):
        assert sorted(entry[row]) == list(range(most * P + text))
        np.testing.assert_array_equal(entry[row][place[row]], np.arange(most * P + text))
        at = tokens[row] == PICTURE
        # Pictures in order, then text in order; what a row does not have is at its end.
        np.testing.assert_array_equal(entry[row][at], np.arange(at.sum()))
        np.testing.assert_array_equal(entry[row][~at][:text], most * P + np.arange(text))
    np.testing.assert_array_equal(
        np.asarray(layout.has_picture(P)).sum(1), (tokens == PICTURE).sum(1) // P
    )


def plain(layout, pictures, text):
    """By indexing, whose gradient autodiff scatters."""
    entries = jnp.concatenate([pictures, text], 1)
    return jnp.take_along_axis(entries, layout.entry[..., None], 1)


def test_merging_and_picking_and_their_gradients():
    rng = np.random.default_rng(0)
    a = [PICTURE] * P + [7, 8, 9, 10, 0] + [0] * P
    b = [7, 8] + [PICTURE] * P + [9] + [PICTURE] * P + [10, 11]
    c = [7, 8, 9, 10, 11] + [0] * (2 * P)
    layout = Layout.create(jnp.asarray([a, b, c], jnp.int32), 2 * P)
    pictures, text = (jnp.asarray(rng.normal(size=(3, n, 4)), jnp.float32) for n in (2 * P, 5))
    weight = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)

    def ours(pictures, text):
        x = layout.merge(pictures, text)
        return jnp.sum(jnp.sin(layout.text(x)) * weight) + jnp.sum(jnp.cos(x)), x

    def reference(pictures, text):
        x = plain(layout, pictures, text)
        picked = jnp.take_along_axis(x, layout.place[:, 2 * P :, None], 1)
        return jnp.sum(jnp.sin(picked) * weight) + jnp.sum(jnp.cos(x)), x

    got, want = (jax.grad(f, (0, 1), has_aux=True)(pictures, text) for f in (ours, reference))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-6, atol=1e-6), got, want)
    np.testing.assert_array_equal(got[1][1][2:5], got[1][1][2:5])
    np.testing.assert_array_equal(got[1][1, 2 : 2 + P], pictures[1, :P])


@pytest.fixture(scope="module", params=["untied", "moe everywhere", "routers"])
def built(request):
    blueprint = Blueprint.create(CONFIGS[request.param], VOCAB)
    return blueprint, random_params(blueprint)


def logits(blueprint, params, batch):
    forward = jax.jit(lambda p, b: (m := blueprint.build(p)).logits(m(b).hidden))
    return np.asarray(forward(params, batch))


def test_room_for_pictures_that_are_not_there_changes_nothing(built):
    """A row of one picture among rows of two and none, and alone."""
    blueprint, params = built
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    tokens, length = rng.integers(5, VOCAB, (3, 6)).astype(np.int32), np.array([6, 4, 5])
    pictures = [[image[0]], [image[1], image[2]], []]
    together = streams.batch_of(streams.prompts(pictures, tokens, length, PATCHES))
    found = logits(blueprint, params, together)
    for i, own in enumerate(pictures):
        one = slice(i, i + 1)
        alone = streams.batch_of(streams.prompts([own], tokens[one], length[one], PATCHES))
        np.testing.assert_allclose(
            found[i, : length[i]], logits(blueprint, params, alone)[0, : length[i]], atol=1e-5
        )


def test_a_picture_may_stand_inside_a_question(built):
    """Text before it does not see it, text behind it does; a segment's own stays its own."""
    blueprint, params = built
    batch = rows([[5, 4], [6]], total=12)
    first = text_of(batch).tokens[0, :2].copy()
    batch.tokens[0, : PATCHES + 2] = [*first, *[PICTURE] * PATCHES]
    batch.segments[0, : PATCHES + 2] = 1
    before = logits(blueprint, params, batch)
    batch.pictures[0] = 255 - batch.pictures[0]
    after = logits(blueprint, params, batch)
    moved = np.abs(after[0] - before[0]).max(-1)
    assert moved[:2].max() < 1e-5 < 1e-3 < moved[2:5].max()
    assert moved[5:9].max() < 1e-5, "the second segment saw the first one's picture"
    batch.segments[0, 2 : PATCHES + 2] = SHARED
    batch.pictures[0] = 255 - batch.pictures[0]
    shared = logits(blueprint, params, batch)
    assert np.abs(shared[0] - before[0])[5:9].max() > 1e-3, "now it does"


def test_text_alone_runs_no_tower(built):
    blueprint, params = built
    tokens, length = np.full((2, 6), 7, np.int32), np.array([6, 3])
    batch = streams.batch_of(streams.prompts([[], []], tokens, length, PATCHES))
    assert batch.pictures.shape[1] == 0
    jaxpr = jax.make_jaxpr(lambda p, b: blueprint.build(p)(b).hidden)(params, batch)
    assert logits(blueprint, params, batch).shape == (2, 6, VOCAB)

    def loss(params):
        return jnp.sum(jnp.sin(blueprint.build(params)(batch).hidden))

    buffers = {n: params[n] for n in blueprint.buffers()}
    learned = {n: p for n, p in params.items() if n not in buffers}
    grads = jax.jit(jax.grad(lambda p: loss({**p, **buffers})))(learned)
    assert not any(np.any(g) for n, g in grads.items() if not n.startswith("decoder."))
    _, used = pe.dce_jaxpr(jaxpr.jaxpr, [True])
    names = [n for n, needed in zip(sorted(params), used, strict=False) if needed]
    assert names and all(n.startswith("decoder.") for n in names)
