"""Layer-wise distillation from the dense parent (MoEBERT, Zuo et al. 2022, §3.3).

  L = CE + λ · [Σ_l MSE(X^l, X^l_parent) + ½ (KL(p‖q) + KL(q‖p))]

X^l are the hidden states after layer l of the tower and of the decoder, and what the decoder's
first layer is given (X^0, with which the connector is taught too); the mean is over the places that
are not padding and over features. p and q are the two models' next-token distributions; their
divergence is the mean over answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vimoe_jax.base import struct
from vimoe_jax.base.errors import UserError
from vimoe_jax.data.batch import Batch
from vimoe_jax.model.blueprint import Blueprint, Params
from vimoe_jax.model.loss import TokenLoss
from vimoe_jax.model.stack import Stack, merge, unstack
from vimoe_jax.model.tokens import Layout
from vimoe_jax.model.vlm import VLM, Output


@struct.dataclass
class States:
    """What distillation compares.

    Attributes:
      vision: after each layer of the tower.
      decoder: before the first layer of the decoder, then after each.
      hidden: the text tokens' final hidden states.
      matrix: the output head.
      layout: of the batch's streams.
    """

    vision: list[Float[Array, "I P Dv"]]
    decoder: list[Float[Array, "B S D"]]
    hidden: Float[Array, "B T D"]
    matrix: Float[Array, "V D"]
    layout: Layout


def forward(model: VLM, batch: Batch, key: jax.Array | None = None) -> tuple[Output, States]:
    """The model's teacher-forced pass, with the states that distillation compares.

    Args:
      model: what `Blueprint.model` gave, for this call only.
      batch: as the model takes it.
      key: given in training only.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    kept: dict[str, list[jax.Array]] = {}
    for part in ("vision", "decoder"):
        stack = getattr(model, part).blocks
        getattr(model, part).blocks = _Recorded(stack, lambda x, part=part: kept.update({part: x}))
    out = model(batch, key=key)
    matrix = model.decoder.output_matrix()
    layout = model.layout(batch.tokens, batch.pictures.shape[1])
    vision = kept.get("vision", [])[1:]  # not run for text alone
    return out, States(vision, kept["decoder"], out.hidden, matrix, layout)


class _Recorded(nnx.Module):
    """A `Stack` that tells its input and every layer's output, and works as it does otherwise."""

    def __init__(self, stack: Stack, tell: Callable[[list[jax.Array]], None]):
        self.stack, self.plan, self.tell = stack, stack.plan, tell

    def __call__(self, apply: Any, x: jax.Array, caches: Any = None, key: Any = None) -> Any:
        def recorded(layer: nnx.Module, x: jax.Array, cache: Any, key: Any) -> Any:
            x, cache, report = apply(layer, x, cache, key)
            return x, cache, (report, x)

        last, caches, both = self.stack.run(recorded, x, caches, key)
        self.tell([x, *unstack(self.plan, [[pair[1] for pair in unit] for unit in both])])
        return last, caches, merge([[pair[0] for pair in unit] for unit in both])


@struct.dataclass
class Distance:
    """How far a model is from its parent.

    Attributes:
      states: Σ_l MSE(X^l, X^l_parent).
      logits: ½ (KL(p‖q) + KL(q‖p)).
    """

    states: Float[Array, ""]
    logits: Float[Array, ""]

    def total(self) -> Float[Array, ""]:
        """What λ multiplies."""
        return self.states + self.logits


@jax.named_scope("distill")
def distance(ours: States, parents: States, batch: Batch) -> Distance:
    """Compares a model with its parent; no gradient reaches the parent.

    Args:
      ours: the model's states.
      parents: its dense parent's, on the same batch.
      batch: `segments` say what is padding, `weights` which are answer tokens.
    """
    parents = jax.lax.stop_gradient(parents)
    layout, valid = ours.layout, batch.segments != 0
    states = jnp.zeros((), jnp.float32)
    for a, b in zip(ours.vision, parents.vision, strict=True):
        pictures = layout.has_picture(a.shape[1]).reshape(-1, 1)
        states += _mse(a, b, jnp.broadcast_to(pictures, a.shape[:2]))
    for a, b in zip(ours.decoder, parents.decoder, strict=True):
        states += _mse(a, b, valid)
    return Distance(states, _divergence(ours, parents, layout.text(batch.weights)))


def _mse(
    a: Float[Array, "B S D"], b: Float[Array, "B S D"], valid: Bool[Array, "B S"]
) -> Float[Array, ""]:
    square = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean(-1)
    return jnp.sum(square * valid) / jnp.maximum(valid.sum(), 1)


def _divergence(ours: States, parents: States, weights: Float[Array, "B T"]) -> Float[Array, ""]:
    """½ Σ_v (p_v - q_v)(log p_v - log q_v), which is the symmetric KL: mean over answer tokens.

    One row's logits exist at a time, in the backward pass too.
    """

    @jax.checkpoint
    def row(total: jax.Array, xs: Any) -> tuple[jax.Array, None]:
        ours_x, parents_x, w = xs
        p, q = (
            jax.nn.log_softmax(
                jnp.einsum("sd,vd->sv", x, m.astype(x.dtype), preferred_element_type=jnp.float32)
            )
            for x, m in ((ours_x, ours.matrix), (parents_x, parents.matrix))
        )
        both = 0.5 * jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), -1)
        return total + jnp.sum(both * w), None

    start = jnp.zeros((), jnp.float32)
    total, _ = jax.lax.scan(row, start, (ours.hidden, parents.hidden, weights))
    return total / jnp.maximum(weights.sum(), 1)


def parent_states(blueprint: Blueprint, params: Params, batch: Batch) -> States:
    """The parent's states on a batch, with evaluation's routing; no gradient.

    Args:
      blueprint: of the parent.
      params: its parameters, on the mesh.
      batch: on the mesh.
    """
    params = jax.lax.stop_gradient(params)
    _, states = forward(blueprint.model(params), batch)
    return states


def loss(
    model: VLM, batch: Batch, key: jax.Array, parent: Blueprint | None, params: Params | None
) -> tuple[TokenLoss, Output, Float[Array, ""]]:
    """The training step's pass: cross-entropy, the model's output, its distance from its parent.

    Args:
      model: what `Blueprint.model` gave, for this call only.
      batch: as the model takes it.
      key: of training.
      parent: None if there is none: the plain pass, at distance 0.
      params: the parent's parameters, on the mesh.
    """
    if parent is None or params is None:
        return *model.loss(batch, key=key), jnp.zeros((), jnp.float32)
    out, ours = forward(model, batch, key)
    apart = distance(ours, parent_states(parent, params, batch), batch).total()
    return model.token_loss(out.hidden, batch), out, apart


def load_parent(run: Any) -> tuple[Blueprint, Params] | None:
    """The parent that `config.train.distill` names, on a run's mesh; None if it names none.

    Args:
      run: the `Run` that is taught.

    Raises:
      UserError: no such workdir, or its model's sizes are not the run's.
    """
    from vimoe_jax.run import checkpoint
    from vimoe_jax.run.workdir import reopen

    options = run.config.train.distill
    if not options.parent:
        return None
    field = "config.train.distill.parent"
    try:
        parent = reopen(Path(options.parent), [], one_device=True)
        _check(parent.blueprint, run.blueprint, f"{field}: {options.parent}")
        directory = Path(options.parent) / "checkpoints"
        if not directory.is_dir():
            raise UserError(f"{directory}: no such folder; was this run trained?")
        checkpoints = checkpoint.Checkpoints(directory, parent.config.checkpoint, read_only=True)
        try:
            return parent.blueprint, checkpoints.read_params(parent.blueprint.abstract(run.mesh))
        finally:
            checkpoints.close()
    except UserError as e:
        message = str(e)
        raise UserError(message if message.startswith(field) else f"{field}: {message}") from None


def _check(parent: Blueprint, child: Blueprint, name: str) -> None:
    """That states and logits of the two can be compared."""
    for field in ("image_size", "patch_size", "vision.width", "vision.depth", "decoder.width"):
        _equal(field, parent.config, child.config, name)
    _equal("decoder.depth", parent.config, child.config, name)
    if parent.vocab_size != child.vocab_size:
        raise UserError(f"{name} has {parent.vocab_size} tokens, this run {child.vocab_size}")


def _equal(field: str, parent: Any, child: Any, name: str) -> None:
    for part in field.split("."):
        parent, child = getattr(parent, part), getattr(child, part)
    if parent != child:
        raise UserError(f"{name} has model.{field} = {parent}, this run {child}")
