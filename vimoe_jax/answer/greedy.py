"""Batched greedy decoding with a key-value cache, compiled as one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from vimoe_jax.model.blueprint import Blueprint, Params
from vimoe_jax.model.tokens import TokenKind
from vimoe_jax.model.vlm import VLM
from vimoe_jax.parallel.rules import use_mesh


@struct.dataclass
class _Loop:
    """Carried from token to token: Z = P + S + max_new_tokens places a row."""

    count: Int[Array, ""]
    token: Int[Array, "B"]
    done: Bool[Array, "B"]
    output: Int[Array, "B N"]
    caches: list


def make_greedy(
    blueprint: Blueprint, mesh: Mesh, *, max_new_tokens: int, eos_id: int, pad_id: int
) -> Callable[[Params, Mapping[str, jax.Array]], Int[Array, "B N"]]:
    """The decoder, not yet compiled: `jax.jit(make_greedy(…))(params, batch)`.

    `batch` holds `image` (B, H, W, 3) uint8, `tokens` (B, S) int32 right-padded prompts, `length`
    (B,) int32 and `valid` (B,) bool. The result (B, max_new_tokens) is each row's answer up to and
    without the end token, then `pad_id`. The loop ends when every valid row has ended.

    A row's prompt is padded on the right: its new tokens are written behind the padding (the same
    place for all rows) but take the positions that follow its own prompt.
    """

    def decode(params: Params, batch: Mapping[str, jax.Array]) -> Int[Array, "B N"]:
        with use_mesh(mesh):
            model = blueprint.build(blueprint.cast(params))
            prompt = model.num_patches + batch["tokens"].shape[1]
            state, seen = _prefill(model, batch, max_new_tokens, eos_id, pad_id)

            def step(loop: _Loop) -> _Loop:
                place = jnp.arange(seen.shape[1])
                new = (place >= prompt) & (place < prompt + loop.count)
                mask = (seen | new)[:, None]
                positions = (model.num_patches + batch["length"] + loop.count - 1)[:, None]
                alive = (~loop.done)[:, None]
                kind = jnp.full(alive.shape, TokenKind.ANSWER, jnp.int32)
                hidden, caches, _ = model.decoder(
                    model.decoder.embed(loop.token[:, None]),
                    positions,
                    mask,
                    alive,
                    kind,
                    caches=loop.caches,
                    offset=prompt + loop.count - 1,
                    ids=loop.token[:, None],
                )
                token = jnp.argmax(model.logits(hidden[:, 0]), -1).astype(jnp.int32)
                return _advance(loop, token, caches, eos_id, pad_id)

            def going(loop: _Loop) -> jax.Array:
                return (loop.count < max_new_tokens) & ~loop.done.all()

            return jax.lax.while_loop(going, step, state).output

    return decode


def _prefill(
    model: VLM, batch: Mapping[str, jax.Array], max_new: int, eos_id: int, pad_id: int
) -> tuple[_Loop, Bool[Array, "B Z"]]:
    """Runs picture and prompt; returns the loop after its first token, and which places count."""
    patches, (rows, length) = model.num_patches, batch["tokens"].shape
    prompt, total = patches + length, patches + length + max_new
    picture, _ = model.encode(batch["image"], batch["valid"])
    x = jnp.concatenate([picture, model.decoder.embed(batch["tokens"])], 1)
    place = jnp.arange(total)
    seen = (place < patches + batch["length"][:, None]) & batch["valid"][:, None]
    own = place[:prompt, None] >= place
    # As in training, a padding place sees itself.
    mask = (own & seen[:, None]) | (place[:prompt, None] == place)
    kind = jnp.where(place[:prompt] < patches, TokenKind.IMAGE, TokenKind.QUESTION)
    hidden, caches, _ = model.decoder(
        x,
        jnp.broadcast_to(place[:prompt], (rows, prompt)),
        mask,
        seen[:, :prompt],
        jnp.broadcast_to(kind, (rows, prompt)).astype(jnp.int32),
        caches=model.decoder.empty_cache(rows, total),
        offset=0,
        ids=model.ids(batch["tokens"]),
    )
    last = jnp.maximum(patches + batch["length"] - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    token = jnp.argmax(model.logits(hidden), -1).astype(jnp.int32)
    start = _Loop(
        count=jnp.zeros((), jnp.int32),
        token=token,
        done=~batch["valid"],
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
