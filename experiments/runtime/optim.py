"""Builds the optimizer of a run, its learning rate at each step, and the average of parameters.

`config.optim` says all of it. The learning rate is the highest of its schedule. Weight decay is
decoupled from the gradient and leaves out norms, biases and other vectors, unless
`config.optim.decay_norms` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import normjax
from experiments.config.defaults import default

Tree = Any
DECOUPLED = ("adamw", "lamb")  # optimizers that take weight_decay
USUAL: dict[str, Any] = default().optim.to_dict()


def optimizer(optim: Mapping[str, Any], rate: Any = None) -> optax.GradientTransformation:
    """Clip by the global norm, then apply the optimizer of `config.optim`.

    A traced `rate` replaces the learning rate of the config. L2 and L1 penalties,
    `l2 / 2 |w|^2 + l1 |w|_1` over kernels, enter as gradients before clipping.
    """
    optim = {**USUAL, **optim}
    rate = optim["learning_rate"] if rate is None else rate
    decay, eps = optim["decay"], optim["eps"]
    momentum = optim["momentum"] or None
    if optim["name"] == "rmsprop":
        # The paper says 0.9; the authors' script has decay_rate=0.5 and no momentum.
        rule = optax.rmsprop(rate, decay=decay, eps=eps, momentum=momentum)
    elif optim["name"] == "sgd":
        rule = optax.sgd(rate, momentum=momentum, nesterov=optim["nesterov"])
    else:
        how: dict[str, Any] = {"b1": decay, "b2": optim["b2"], "eps": eps}
        if optim["name"] in DECOUPLED:
            how["weight_decay"] = optim["weight_decay"]
            how["mask"] = None if optim["decay_norms"] else decayed
        rule = getattr(optax, optim["name"])(rate, **how)
    before = [penalty(optim["l2"], optim["l1"])] if optim["l2"] or optim["l1"] else []
    if optim["clip_norm"]:
        before.append(optax.clip_by_global_norm(optim["clip_norm"]))
    return optax.chain(*before, rule) if before else rule


def penalty(l2: float, l1: float) -> optax.GradientTransformation:
    """Add the gradient of `l2 / 2 |w|^2 + l1 |w|_1` for weights, but not for biases and norms."""

    def add(updates: Tree, params: Tree) -> Tree:
        def one(path: Any, g: jax.Array, w: jax.Array) -> jax.Array:
            return g if normjax.is_norm_param(path) else g + l2 * w + l1 * jnp.sign(w)

        return jax.tree_util.tree_map_with_path(one, updates, params)

    return optax.stateless(add)


def decayed(params: Tree) -> Tree:
    """Return for each array whether weight decay applies: no norm, no bias and no other vector."""
    return jax.tree_util.tree_map_with_path(
        lambda path, w: w.ndim > 1 and not normjax.is_norm_param(path), params
    )


def describe_decay(optim: Mapping[str, Any], params: Tree) -> str:
    """Say in a line which parameters are decayed, and how to change that; "" without decay."""
    if optim["name"] not in DECOUPLED or not optim["weight_decay"]:
        return ""
    if optim["decay_norms"]:
        return f"weight decay {optim['weight_decay']:g} of all parameters, norms and biases too"
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(decayed(params)), strict=True)
    sizes = {True: 0, False: 0}
    for w, decays in leaves:
        sizes[decays] += w.size
    return (
        f"weight decay {optim['weight_decay']:g} of {sizes[True]:,} weights, not of "
        f"{sizes[False]:,} parameters of norms, biases and other vectors "
        "(config.optim.decay_norms=True: of all)"
    )


def schedule(optim: Mapping[str, Any]) -> optax.Schedule | None:
    """Return the factor of the learning rate at each step, at most 1; None if it is always 1."""
    optim = {**USUAL, **optim}
    kind, steps, warmup = optim["schedule"], optim["schedule_steps"], optim["warmup"]
    if kind == "constant" and not warmup:
        return None
    if kind == "one_cycle":  # from 1/25 up and down to 1/10,000 of that, as in Smith's
        up = warmup / steps if warmup else 0.3
        return optax.cosine_onecycle_schedule(steps, 1.0, pct_start=up)
    rest = max(1, steps - warmup)
    if kind == "cosine":
        after = optax.cosine_decay_schedule(1.0, rest)
    elif kind == "linear":
        after = optax.linear_schedule(1.0, 0.0, rest)
    elif kind == "step":
        drops = {round(part * steps) - warmup: optim["factor"] for part in parts(optim["drops"])}
        after = optax.piecewise_constant_schedule(1.0, drops)
    else:
        after = optax.constant_schedule(1.0)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup])


def parts(drops: str) -> tuple[float, ...]:
    """Read "0.5,0.75"."""
    return tuple(float(word) for word in drops.split(","))


def average(ema: Tree, params: Tree, decay: float, step: jax.Array) -> Tree:
    """Return the next average of parameters, with the decay min(decay, (1 + step) / (10 + step)).

    So the first steps, whose parameters are far from the last ones, are soon forgotten.
    """
    now = step.astype(jnp.float32)
    new = 1 - jnp.minimum(decay, (1 + now) / (10 + now))
    return jax.tree.map(lambda old, w: old + new.astype(w.dtype) * (w - old), ema, params)
