"""The compiled steps: one optimizer step, and one batch of validation loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vimoe_jax.base import struct
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.data.batch import Batch
from vimoe_jax.model.blueprint import Blueprint, Params
from vimoe_jax.model.loss import TokenLoss
from vimoe_jax.model.vlm import Reports
from vimoe_jax.moe.report import MoEReport
from vimoe_jax.parallel.rules import AnyMesh, use_mesh
from vimoe_jax.run.state import Health, TrainState
from vimoe_jax.train import distill, health, optim


@struct.dataclass
class StepMetrics:
    """What a step reports, all on device.

    Attributes:
      tokens: loss and right answers, summed over answer tokens.
      text_tokens: text tokens that are not padding.
      aux_loss: weighted auxiliary losses, summed over layers, and the distance from the parent.
      grad_norm: global norm before clipping.
      learning_rate: peak parts' rate of this step.
      moe: the MoE layers' reports by part, summed over microbatches.
      health: after this step.
    """

    tokens: TokenLoss
    text_tokens: Float[Array, ""]
    aux_loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    moe: Reports
    health: Health


def make_train_step(
    c: Config,
    blueprint: Blueprint,
    tx: optax.GradientTransformation,
    mesh: AnyMesh,
    parent: Blueprint | None = None,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The optimizer step, not yet compiled: `jax.jit(step, donate_argnums=0)`.

    The loss is the mean over all answer tokens of the global batch, whatever the microbatches hold,
    plus the microbatches' mean auxiliary loss. A step whose loss or gradients are bad changes the
    step number and the health only (`vimoe_jax.train.health`).

    With a `parent` the step takes its parameters as a third argument, and learns from it too
    (`vimoe_jax.train.distill`).

    Raises:
      UserError: the configuration names a parent that is not given.
    """
    if c.train.distill.parent and parent is None:
        raise UserError("config.train.distill.parent: this command learns from no parent")
    schedule = optim.schedule(c.optim, c.train.steps)
    accumulate = c.train.accumulate

    def loss_fn(params: Params, frozen: Params, batch: Batch, scale, key, teacher):
        model = blueprint.model({**params, **frozen})
        tokens, out, distance = distill.loss(model, batch, key, parent, teacher)
        aux_loss = (out.aux_loss + c.train.distill.weight * distance) / accumulate
        loss = tokens.loss * scale + aux_loss
        return loss, (tokens, aux_loss, _mean_losses(out.moe, accumulate))

    def step(
        state: TrainState, batch: Batch, teacher: Params | None = None
    ) -> tuple[TrainState, StepMetrics]:
        with use_mesh(mesh):
            key = jax.random.fold_in(jax.random.key(c.seed), state.step)
            scale = 1 / jnp.maximum(batch.weights.sum(), 1)
            of_loss = jax.grad(functools.partial(loss_fn, teacher=teacher), has_aux=True)

            def gradient(batch: Batch, key: jax.Array) -> Any:
                return of_loss(state.params, state.frozen, batch, scale, key)

            grads, (tokens, aux_loss, moe) = _accumulated(gradient, batch, key, accumulate)
            with jax.named_scope("optimizer"):
                updates, opt_state = tx.update(grads, state.opt_state, state.params)
                params = optax.apply_updates(state.params, updates)
                trained = {part: r for part, r in moe.items() if c.optim.rate(part) > 0}
                frozen = {**state.frozen, **blueprint.rebalanced(state.frozen, trained)}
            grad_norm = optax.global_norm(grads)
            loss = tokens.loss * scale + aux_loss
            bad, healthy = health.examine(state.health, loss, grad_norm, c.train)
            new = health.keep_if(
                bad,
                state,
                dataclasses.replace(state, params=params, frozen=frozen, opt_state=opt_state),
            )
            new = dataclasses.replace(new, step=state.step + 1, health=healthy)
        metrics = StepMetrics(
            tokens=tokens,
            text_tokens=batch.text().sum().astype(jnp.float32),
            aux_loss=aux_loss,
            grad_norm=grad_norm,
            learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
            moe=moe,
            health=healthy,
        )
        return new, metrics

    return step


def make_loss_step(blueprint: Blueprint, mesh: AnyMesh) -> Callable[[Params, Batch], TokenLoss]:
    """The validation loss of one batch, with evaluation's routing."""

    def step(params: Params, batch: Batch) -> TokenLoss:
        with use_mesh(mesh):
            return blueprint.model(params).loss(batch)[0]

    return step


def _accumulated(
    gradient: Callable[[Batch, jax.Array], Any], batch: Batch, key: jax.Array, count: int
) -> Any:
    """The sum of `gradient(batch, key)` over microbatches, one after the other."""
    if count == 1:
        return gradient(batch, key)
    xs = (_microbatches(batch, count), jax.random.split(key, count))

    def add(total: Any, one: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(*one)), None

    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], xs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, xs)[0]


def _microbatches(batch: Batch, count: int) -> Batch:
    """(B, …) -> (count, B/count, …), rows dealt out in turn: each device keeps its own rows."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def _mean_losses(reports: Reports, accumulate: int) -> Reports:
    """Divides reported losses, so that microbatches sum to their mean; counts add up as is."""

    def divide(report: MoEReport) -> MoEReport:
        return dataclasses.replace(
            report, losses={n: v / accumulate for n, v in report.losses.items()}
        )

    return {part: divide(report) for part, report in reports.items()}
