"""Batched greedy decoding with a key-value cache, compiled as one function."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from vimoe_jax.base import struct
from vimoe_jax.data.batch import Prompts
from vimoe_jax.model.blueprint import Blueprint, Params
from vimoe_jax.model.tokens import Places, TokenKind
from vimoe_jax.model.vlm import VLM
from vimoe_jax.parallel.rules import use_mesh


@struct.dataclass
class _Loop:
    """Carried from token to token: Z = S + max_new_tokens places per row."""

    count: Int[Array, ""]
    token: Int[Array, "B"]
    done: Bool[Array, "B"]
    output: Int[Array, "B N"]
    caches: list


def make_greedy(
    blueprint: Blueprint, mesh: Mesh, *, max_new_tokens: int, eos_id: int, pad_id: int
) -> Callable[[Params, Prompts], Int[Array, "B N"]]:
    """The decoder, not yet compiled: `jax.jit(make_greedy(…))(params, prompts)`.

    The result (B, max_new_tokens) is each row's answer up to and without the end token, then
    `pad_id`. The loop ends when every valid row has ended.

    A row's prompt is padded on the right: its new tokens are written behind the padding (the same
    place for all rows) but take the positions that follow its own prompt.
    """

    def decode(params: Params, prompts: Prompts) -> Int[Array, "B N"]:
        with use_mesh(mesh):
            model = blueprint.model(params)
            prompt = prompts.tokens.shape[1]
            state, seen = _prefill(model, prompts, max_new_tokens, eos_id, pad_id)

            def step(loop: _Loop) -> _Loop:
                place = jnp.arange(seen.shape[1])
                new = (place >= prompt) & (place < prompt + loop.count)
                token, alive = loop.token[:, None], (~loop.done)[:, None]
                hidden, caches, _ = model.decoder(
                    model.decoder.embed(token),
                    (prompts.length + loop.count - 1)[:, None],
                    (seen | new)[:, None],
                    Places(alive, jnp.full(alive.shape, TokenKind.ANSWER, jnp.int32), token),
                    caches=loop.caches,
                    offset=prompt + loop.count - 1,
                )
                token = jnp.argmax(model.logits(hidden[:, 0]), -1).astype(jnp.int32)
                return _advance(loop, token, caches, eos_id, pad_id)

            def going(loop: _Loop) -> jax.Array:
                return (loop.count < max_new_tokens) & ~loop.done.all()

            return jax.lax.while_loop(going, step, state).output

    return decode


def _prefill(
    model: VLM, prompts: Prompts, max_new: int, eos_id: int, pad_id: int
) -> tuple[_Loop, Bool[Array, "B Z"]]:
    """Runs pictures and prompt; returns the loop after its first token, and which places count."""
    rows, prompt = prompts.tokens.shape
    layout = model.layout(prompts.tokens, prompts.pictures.shape[1])
    x, _ = model.embed(prompts.pictures, prompts.tokens, layout)
    place = jnp.arange(prompt + max_new)
    seen = (place < prompts.length[:, None]) & prompts.valid[:, None]
    own = place[:prompt, None] >= place
    # As in training, a padding place sees itself.
    mask = (own & seen[:, None]) | (place[:prompt, None] == place)
    kind = jnp.where(layout.is_picture, TokenKind.IMAGE, TokenKind.QUESTION).astype(jnp.int32)
    hidden, caches, _ = model.decoder(
        x,
        jnp.broadcast_to(place[:prompt], (rows, prompt)),
        mask,
        model.places(prompts.tokens, layout, seen[:, :prompt], kind),
        caches=model.decoder.empty_cache(rows, prompt + max_new),
        offset=0,
    )
    last = jnp.maximum(prompts.length - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    token = jnp.argmax(model.logits(hidden), -1).astype(jnp.int32)
    start = _Loop(
        count=jnp.zeros((), jnp.int32),
        token=token,
        done=~prompts.valid,
        output=jnp.full((rows, max_new), pad_id, jnp.int32),
        caches=caches,
    )
    return _advance(start, token, caches, eos_id, pad_id), seen


def _advance(loop: _Loop, token: Int[Array, "B"], caches: list, eos_id: int, pad_id: int) -> _Loop:
    """Appends a token to the rows that have not ended."""
    done = loop.done | (token == eos_id)
    written = jnp.where(done, pad_id, token)
    output = jax.lax.dynamic_update_slice_in_dim(loop.output, written[:, None], loop.count, 1)
    return _Loop(loop.count + 1, token, done, output, caches)
