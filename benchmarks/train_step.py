"""A step of training: a classifier of the last output, its gradients and Adam.

    python -m benchmarks.train_step [--only=T784] [--rounds=15] [--quick] [--json=FILE]

Parameters, statistics and Adam's moments are donated and carried from call to call, as in a
training loop; the batch is the same one each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _layers, _measure
from benchmarks.norms import draw

CLASSES = 10


BATCH = (3, 4)  # the arguments of a step that have an entry for each sequence


def contender(
    library: str,
    steps: int,
    batch: int,
    features: int,
    hidden: int,
    place: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda args: args,
) -> _measure.Contender:
    """One JAX layer under a linear classifier; `place` puts the arguments on devices."""
    x = jnp.asarray(draw((batch, steps, features), 0))
    labels = jnp.asarray(np.random.RandomState(2).randint(0, CLASSES, batch), jnp.int32)
    apply, layer, state = _layers.LAYERS[library](x, hidden)
    head = {
        "kernel": jnp.asarray(draw((hidden, CLASSES), 3)) * hidden**-0.5,
        "bias": jnp.zeros(CLASSES),
    }
    adam = optax.adam(1e-3)

    def loss_of(params: Any, state: Any, x: Any, labels: Any) -> Any:
        y, state = apply(params["layer"], state, x)
        logits = y[:, -1] @ params["head"]["kernel"] + params["head"]["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), state

    def step(params: Any, state: Any, moments: Any, x: Any, labels: Any) -> Any:
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, state), slope = grad(params, state, x, labels)
        change, moments = adam.update(slope, moments, params)
        return optax.apply_updates(params, change), state, moments, loss

    params = {"layer": layer, "head": head}
    args = place((params, state, adam.init(params), x, labels))
    return _measure.of_jax(library, step, args, carried=3)


MODULE = "benchmarks.train_step"

if __name__ == "__main__":
    _layers.launch(MODULE, "training step")
