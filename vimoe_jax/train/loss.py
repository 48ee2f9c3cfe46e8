"""Cross-entropy over a large vocabulary, without holding all of its logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

# Logits that may exist at once (elements); above it, tokens are taken in chunks.
_MAX_LOGITS = 1 << 26


@struct.dataclass
class TokenLoss:
    """Sums over a batch's weighted tokens (divide by `weight` for means)."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    weight: Float[Array, ""]


@jax.named_scope("cross_entropy")
def cross_entropy(
    hidden: Float[Array, "B S D"],
    matrix: Float[Array, "V D"],
    targets: Int[Array, "B S"],
    weights: Float[Array, "B S"],
) -> TokenLoss:
    """Summed -log softmax(hidden · matrixᵀ)[target], times the weights; float32.

    Beyond 2^26 logits, chunks of tokens are scanned and their logits computed again in the backward
    pass, so that no more than that exist at any time.
    """
    tokens, vocab = targets.size, matrix.shape[0]
    matrix = matrix.astype(hidden.dtype)
    flat = (hidden.reshape(tokens, -1), targets.reshape(-1), weights.reshape(-1))
    chunks = -(-tokens * vocab // _MAX_LOGITS)
    if chunks == 1:
        return _sums(matrix, *flat)
    padding = -tokens % chunks
    padded = [jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)) for a in flat]
    chunked = [a.reshape(chunks, -1, *a.shape[1:]) for a in padded]

    def body(total: TokenLoss, chunk) -> tuple[TokenLoss, None]:
        return jax.tree.map(jnp.add, total, _sums(matrix, *chunk)), None

    zero = TokenLoss(*(jnp.zeros((), jnp.float32) for _ in range(3)))
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), zero, chunked)[0]


def _sums(
    matrix: Float[Array, "V D"],
    hidden: Float[Array, "T D"],
    targets: Int[Array, "T"],
    weights: Float[Array, "T"],
) -> TokenLoss:
    logits = jnp.einsum("td,vd->tv", hidden, matrix, preferred_element_type=jnp.float32)
    right = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - right
    # A tie counts as right only if nothing is larger: cheaper than argmax, the same otherwise.
    correct = (right >= jax.lax.stop_gradient(logits).max(-1)).astype(jnp.float32)
    return TokenLoss(jnp.sum(loss * weights), jnp.sum(correct * weights), jnp.sum(weights))
