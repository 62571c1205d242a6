"""Measures saturation of gates and histograms of activations at every step of a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact, Integer

from normjax._internal import _checks
from normjax.base import Stats
from normjax.recurrent import Recurrent, _sequences
from normjax.recurrent._checks import check_single
from normjax.statistics._shapes import stat_dtype
from normjax.statistics._types import Array, PyTree


class GateSaturation(NamedTuple):
    """Gates of a recurrent layer through time.

    Attributes:
        saturated: for each gate, the share of its values below 0.05 or above 0.95; `[time]`.
        mean: for each gate, its mean value; `[time]`.
        hidden_norm: L2 norm of the hidden state, mean over the batch; `[time]`.
    """

    saturated: Mapping[str, Float[Array, " time"]]
    mean: Mapping[str, Float[Array, " time"]]
    hidden_norm: Float[Array, " time"]


def gate_saturation(
    layer: Recurrent,
    params: PyTree,
    state: PyTree,
    x: Inexact[Array, "batch time features"],
    *,
    stats: Stats = "batch",
    **keywords: Any,
) -> GateSaturation:
    """Return the share of each gate's values that are near 0 or 1, at every step.

    There the derivative of the sigmoid is below 0.05, and little gradient reaches the gate.

    Args:
        layer: a recurrent layer with gates.
        params: its parameters.
        state: its state.
        x: inputs, in the layer's layout.
        stats: `"batch"` or `"running"`.
        keywords: other arguments of `layer.info`, such as `lengths` or `key`.

    Returns:
        `GateSaturation`.

    Raises:
        TypeError: `layer` is not a single recurrent layer.
        ValueError: the layer has no gates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import analysis, recurrent
        >>> layer = recurrent.lstm(4)
        >>> params, state = layer.init(jax.random.key(0), features=2)
        >>> gates = analysis.gate_saturation(layer, params, state, jnp.zeros((3, 6, 2)))
        >>> sorted(gates.saturated), float(gates.saturated["input"].max())
        (['forget', 'input', 'output'], 0.0)

    Reference:
        Karpathy, Johnson, Fei-Fei, "Visualizing and Understanding Recurrent Networks", 2015,
        section 4.2.
    """
    check_single(layer, "gate_saturation")
    info = layer.info(params, state, x, stats=stats, **keywords)
    if not info.gates:
        raise ValueError(
            f"{layer.factory} has no gates: look at its activations, "
            "activation_histogram(y) of the outputs y"
        )
    return GateSaturation(info.saturated, info.gates, info.hidden_norm)


class ActivationHistogram(NamedTuple):
    """Histogram of the values of each step.

    Attributes:
        share: share of the step's values in each bin; `[time, bins]`.
        edges: ends of the bins; `[bins + 1]`.
        below: share below the first edge; `[time]`.
        above: share above the last edge; `[time]`.
    """

    share: Float[Array, "time bins"]
    edges: Float[Array, " edges"]
    below: Float[Array, " time"]
    above: Float[Array, " time"]


def activation_histogram(
    values: Inexact[Array, "batch time units"],
    *,
    bins: int = 40,
    limits: tuple[float, float] = (-1.0, 1.0),
    lengths: Integer[Array, " batch"] | None = None,
) -> ActivationHistogram:
    """Return the histogram of activations at every step, over batch and units.

    Args:
        values: outputs of a layer or other values at each step, batch-major.
        bins: number of bins of equal width; the last contains its upper edge.
        limits: ends of the range; -1 and 1 are those of tanh.
        lengths: `[batch]`, number of steps of each sequence that count; `None`: all.

    Returns:
        `ActivationHistogram`; shares are 0 at a step that no sequence reaches.

    Raises:
        TypeError: `values` is not floating.
        ValueError: `limits` are not increasing, or `bins` is not a positive integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> y = jnp.array([[[-0.9, 0.9]], [[0.8, 3.0]]])  # batch 2, one step, two units
        >>> histogram = analysis.activation_histogram(y, bins=2)
        >>> histogram.share.tolist(), histogram.above.tolist()
        ([[0.25, 0.5]], [0.25])

    Reference:
        Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural
        networks", 2010, section 3.
    """
    _checks.positive_int("bins", bins)
    low, high = limits
    if not low < high:
        raise ValueError(f"limits={limits} must increase: write limits=(-1.0, 1.0)")
    values = _checks.floating(values, "activation_histogram")
    values = jnp.swapaxes(values.astype(stat_dtype(values.dtype)), 0, 1)  # [time, batch, units]
    steps, batch, units = values.shape
    live = _sequences.padding(lengths, steps, batch)
    if live is None:
        live = jnp.ones((steps, batch, 1), bool)
    weight = jnp.broadcast_to(live, values.shape).reshape(steps, -1).astype(values.dtype)
    edges = jnp.linspace(low, high, bins + 1).astype(values.dtype)

    def count(v: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        index = jnp.searchsorted(edges, v, side="right") - 1
        index = jnp.where(v == edges[-1], bins - 1, index)
        # Index -1 would be the last bin: values below and above get bins of their own.
        slot = jnp.where(index < 0, bins, jnp.where(index >= bins, bins + 1, index))
        shares = jnp.zeros(bins + 2, v.dtype).at[slot].add(counts)
        shares = shares / jnp.maximum(jnp.sum(counts), 1)
        return shares[:bins], shares[bins], shares[bins + 1]

    share, below, above = jax.vmap(count)(values.reshape(steps, batch * units), weight)
    return ActivationHistogram(share, edges, below, above)
