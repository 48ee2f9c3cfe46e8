"""The MoE layer in a Flax model of one's own: a classifier of points, trained for 200 steps.

    python examples/moe_layer.py

Takes half a minute on a CPU. Prints the accuracy and how evenly the experts are used.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import vimoe_jax as vm
from vimoe_jax.moe.block import weighted_losses

OPTIONS = vm.MoEOptions(num_experts=8, experts_per_token=2, group_size=64, capacity_factor=1.5)


class Classifier(nnx.Module):
    """Two numbers to one of two classes, through a mixture of experts."""

    def __init__(self, rngs: nnx.Rngs):
        self.inside = nnx.Linear(2, 16, rngs=rngs)
        mlp = dict(activation="swiglu", bias=False, dtype=jnp.float32, rngs=rngs)
        self.moe = vm.MoE(OPTIONS, 16, 32, 16, **mlp)
        self.outside = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x, key=None):
        """(B, 2) to logits (B, 2) and the layer's report; a key means training."""
        h = self.inside(x)
        valid = jnp.ones(x.shape[:1], bool)  # no padding here
        kind = jnp.zeros(x.shape[:1], jnp.int32)  # one kind of token
        y, report = self.moe(h, valid, kind, num_kinds=1, key=key)
        return self.outside(h + y), report


def points(key, count):
    """Points in a square; the class says which of two spirals is nearer."""
    x = jax.random.uniform(key, (count, 2), minval=-3.0, maxval=3.0)
    angle = jnp.arctan2(x[:, 1], x[:, 0]) + 2 * jnp.linalg.norm(x, axis=1)
    return x, (jnp.sin(angle) > 0).astype(jnp.int32)


def main(steps: int = 200) -> tuple[float, float]:
    """Trains; returns the accuracy on new points and the load of the busiest expert."""
    graph, params = nnx.split(Classifier(nnx.Rngs(0)))
    tx = optax.adam(1e-2)
    state = tx.init(params)

    @jax.jit
    def step(params, state, key):
        batch_key, noise_key = jax.random.split(key)
        x, label = points(batch_key, 256)

        def loss(params):
            logits, report = nnx.merge(graph, params)(x, noise_key)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
            return entropy + weighted_losses(OPTIONS, report)

        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, jax.random.key(i))
    x, label = points(jax.random.key(10**6), 2048)
    logits, report = jax.jit(lambda p, x: nnx.merge(graph, p)(x))(params, x)
    accuracy = float((logits.argmax(-1) == label).mean())
    return accuracy, float(report.max_load())


if __name__ == "__main__":
    accuracy, load = main()
    print(f"accuracy {accuracy:.1%}, busiest expert {load:.2f} × the mean load")
