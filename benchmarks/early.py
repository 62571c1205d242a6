"""What running statistics are worth after few updates, by what `debias` makes of their start.

    python -m benchmarks.early [--quick] [--json=FILE]

A BN-LSTM of 64 units learns scikit-learn's digits, row by row (8 steps) or pixel by pixel (64).
Each kind of average runs beside the same training and is evaluated at the same weights, as are
population statistics over the training set. The figures are test accuracies in percent.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

import normjax as nj
from benchmarks import _measure
from normjax import recurrent

HIDDEN, BATCH, TRAIN = 64, 100, 1400
STEPS = {"rows": 8, "pixels": 64}
KINDS = {"plain": False, "debiased": True, "warmup": "warmup"}
ARMS = {
    f"{kind} {decay}": {"debias": debias, "decay": decay}
    for decay in (0.99, 0.9)
    for kind, debias in KINDS.items()
}
ARMS["last batch"] = {"decay": 0.0}  # the least delay that there is: one update


def data(order: str, seed: int) -> tuple[jax.Array, jax.Array]:
    """Return images `[example, time, features]` and their labels, shuffled."""
    images = datasets.load_digits()
    shuffled = np.random.default_rng(seed).permutation(len(images.target))
    x = (images.images[shuffled] / 16).reshape(len(shuffled), STEPS[order], -1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(images.target[shuffled])


def measure(order: str, seed: int, updates: Sequence[int]) -> dict[int, dict[str, float]]:
    """Train, and return at each number of updates the accuracy of each arm and `population`."""
    x, labels = data(order, seed)
    layers = {n: recurrent.bn_lstm(HIDDEN, STEPS[order], **arm) for n, arm in ARMS.items()}
    key, key_head = jax.random.split(jax.random.key(seed))
    made = {name: layer.init(key, x.shape[-1]) for name, layer in layers.items()}
    head = 0.1 * jax.random.normal(key_head, (HIDDEN, 10))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(1e-3, decay=0.9))

    def logits(name: str, params: Any, state: Any, x: jax.Array, stats: str) -> Any:
        (_, carry), state = layers[name].apply(params[0], state, x, stats=stats)
        return layers[name].output(carry) @ params[1], state

    @jax.jit
    def update(params: Any, states: Any, opt: Any, x: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            new = {}
            for name in layers:  # the same outputs, and each its own averages
                z, new[name] = logits(name, params, states[name], x, "batch")
            return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean(), new

        gradient, states = jax.grad(loss, has_aux=True)(params)
        change, opt = optimizer.update(gradient, opt, params)
        return optax.apply_updates(params, change), states, opt

    @jax.jit
    def accuracies(params: Any, states: Any) -> dict[str, jax.Array]:
        def accuracy(name: str, state: Any) -> jax.Array:
            z, _ = logits(name.replace("population", plain), params, state, x[TRAIN:], "running")
            return 100 * jnp.mean(jnp.argmax(z, -1) == labels[TRAIN:])

        return {name: accuracy(name, state) for name, state in states.items()}

    plain = next(iter(layers))
    params, states = (made[plain][0], head), {name: state for name, (_, state) in made.items()}
    opt = optimizer.init(params)
    rng = np.random.default_rng(seed)
    found = {}
    for done in range(1, max(updates) + 1):
        batch = rng.choice(TRAIN, BATCH, replace=False)
        params, states, opt = update(params, states, opt, x[batch], labels[batch])
        if done in updates:
            population = nj.population_statistics(
                layers[plain], params[0], states[plain], [x[: TRAIN // 2], x[TRAIN // 2 : TRAIN]]
            )
            by_arm = accuracies(params, states | {"population": population})
            found[done] = {name: float(value) for name, value in by_arm.items()}
    return found


def records(asked: Any) -> list[dict[str, Any]]:
    """Every order, seed and number of updates."""
    orders, seeds, updates = (["rows"], 1, (2, 3)) if asked.quick else (STEPS, 3, (96, 200))
    return [
        {"order": order, "seed": seed, "updates": done, "accuracy": found}
        for order in orders
        for seed in range(seeds)
        for done, found in measure(order, seed, updates).items()
    ]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Mean, least and most of the seeds."""
    names = ("population", *ARMS)
    lines = [f"| | {' | '.join(names)} |", f"| :--- |{' ---: |' * len(names)}"]
    for order, done in dict.fromkeys((r["order"], r["updates"]) for r in found):
        rows = [r["accuracy"] for r in found if (r["order"], r["updates"]) == (order, done)]
        of_arms = ([row[name] for row in rows] for name in names)
        cells = (f"{statistics.mean(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in of_arms)
        lines.append(f"| {order}, {done} updates | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    _measure.launch("benchmarks.early", records, show=table)
