"""What gates and activations do over a sequence: shares at the ends, histograms by step."""

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
        saturated: by gate, share of its values below 0.05 or above 0.95; `[time]`.
        mean: by gate, mean value; `[time]`.
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
    """Share of each gate's values that are stuck near 0 or 1, at every step.

    There the sigmoid's derivative is below 0.05, and little gradient reaches the gate.

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
        TypeError: no single layer.
        ValueError: the layer has no gates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import analysis, recurrent
        >>> layer = recurrent.lstm(4)
        >>> params, state = layer.init(jax.random.key(0), features=2)
        >>> seen = analysis.gate_saturation(layer, params, state, jnp.zeros((3, 6, 2)))
        >>> sorted(seen.saturated), float(seen.saturated["input"].max())
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
    """Where the values of each step lie.

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
    """Histogram of activations at every step, over batch and units.

    Args:
        values: outputs of a layer, its carry, or what else there is at each step, batch-major.
        bins: number of bins of equal width; the last contains its upper edge.
        limits: ends of the range; tanh's are -1 and 1.
        lengths: `[batch]`, steps that count of each sequence; `None`: all.

    Returns:
        `ActivationHistogram`; shares are 0 at a step that no sequence reaches.

    Raises:
        ValueError: `limits` not increasing, `bins` no positive integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> y = jnp.array([[[-0.9, 0.9]], [[0.8, 3.0]]])  # batch 2, one step, two units
        >>> seen = analysis.activation_histogram(y, bins=2)
        >>> seen.share.tolist(), seen.above.tolist()
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
    values = jnp.swapaxes(values.astype(stat_dtype(values.dtype)), 0, 1)
    steps, batch, units = values.shape
    live = _sequences.padding(lengths, steps, batch)
    if live is None:
        live = jnp.ones((steps, batch, 1), bool)
    weight = jnp.broadcast_to(live, values.shape).reshape(steps, -1).astype(values.dtype)
    edges = jnp.linspace(low, high, bins + 1).astype(values.dtype)

    def count(v: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        place = jnp.searchsorted(edges, v, side="right") - 1
        place = jnp.where(v == edges[-1], bins - 1, place)
        # Bin -1 would be the last one: everything outside gets a place of its own.
        slot = jnp.where(place < 0, bins, jnp.where(place >= bins, bins + 1, place))
        found = jnp.zeros(bins + 2, v.dtype).at[slot].add(counts)
        found = found / jnp.maximum(jnp.sum(counts), 1)
        return found[:bins], found[bins], found[bins + 1]

    share, below, above = jax.vmap(count)(values.reshape(steps, batch * units), weight)
    return ActivationHistogram(share, edges, below, above)
