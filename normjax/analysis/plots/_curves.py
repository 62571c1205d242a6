"""Plots over time steps, training steps or step sizes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from normjax._internal import _checks
from normjax.analysis._gates import GateSaturation
from normjax.analysis._landscape import GradientPredictiveness
from normjax.analysis._stationarity import Stationarity
from normjax.analysis._through_time import GradientThroughTime, JacobianThroughTime
from normjax.analysis.plots._style import (
    COLOURS,
    STYLES,
    counted,
    joined,
    legend,
    positive,
    rule,
    start,
)


def plot_gradient_through_time(
    result: GradientThroughTime, ax: Any = None, *, label: str | None = None
) -> Any:
    """Plot the gradient norm of every step on a logarithmic axis, with gaps where it is 0.

    Args:
        result: what `gradient_through_time` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: name of the series in the legend.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> norm = jnp.array([1e-3, 1e-2, 1e-1])
        >>> result = analysis.GradientThroughTime(norm, jnp.ones((1, 3, 2)), jnp.zeros(()))
        >>> plots.plot_gradient_through_time(result, label="LSTM").get_yscale()
        'log'
    """
    ax, look = start(result, GradientThroughTime, ax)
    norm = positive(result.norm)
    ax.plot(np.arange(1, len(norm) + 1), norm, label=label, **look.line)
    ax.set_yscale("log")
    ax.set_ylabel(r"$\Vert\partial L/\partial h_t\Vert_2$, mean over the batch")
    counted(ax, "time step t")
    legend(ax)
    return ax


def plot_jacobian_through_time(
    result: JacobianThroughTime,
    ax: Any = None,
    *,
    label: str | None = None,
    which: Literal["step", "product"] = "product",
) -> Any:
    """Plot singular values through time: the median, in a band from the smallest to the largest.

    If there are several systems, the median over them is drawn.

    Args:
        result: what `jacobian_through_time` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: name of the series in the legend.
        which: `"step"`, dh_{t+1}/dh_t, or `"product"`, dh_T/dh_t.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.
        ValueError: `which` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> result = analysis.JacobianThroughTime(jnp.ones((2, 5, 3)), jnp.ones((2, 5, 3)))
        >>> plots.plot_jacobian_through_time(result, which="step").get_xlabel()
        'time step t'
    """
    _checks.one_of("which", which, ("step", "product"))
    ax, look = start(result, JacobianThroughTime, ax)
    # [systems, time - 1, size] to the median over systems.
    values = np.median(np.asarray(getattr(result, which), np.float64), axis=0)
    time = np.arange(1, len(values) + 1)
    ax.set_yscale("log")
    ax.plot(time, positive(np.median(values, axis=1)), label=label, **look.line)
    ax.fill_between(
        time, positive(values.min(1)), positive(values.max(1)), color=look.color, alpha=0.18, lw=0
    )
    rule(ax, 1.0)
    what = {
        "step": r"$\partial h_{t+1}/\partial h_t$",
        "product": r"$dh_T/dh_t$",
    }[which]
    ax.set_ylabel(f"singular values of {what}\n(least, median, largest)")
    counted(ax, "time step t")
    legend(ax)
    return ax


def plot_gradient_predictiveness(
    result: GradientPredictiveness,
    ax: Any = None,
    *,
    label: str | None = None,
    what: Literal["loss", "gradient_change", "cosine", "smoothness"] = "gradient_change",
) -> Any:
    """Plot one quantity over the step size, or its range over training.

    Args:
        result: what `gradient_predictiveness` returned, or several results stacked along a leading
            axis of training steps. The range over step sizes is then a band, and the line is its
            median, or for `"smoothness"` its largest value.
        ax: Axes to draw on; `None` creates a figure.
        label: name of the series in the legend.
        what: the field to draw.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.
        ValueError: `what` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> eta = jnp.array([0.1, 0.2, 0.4])
        >>> result = analysis.gradient_predictiveness(lambda w: jnp.sum(w**4), jnp.ones(2), eta)
        >>> plots.plot_gradient_predictiveness(result, what="loss").get_ylabel()
        'loss after the step'
    """
    names = {
        "loss": "loss after the step",
        "gradient_change": r"$\Vert\nabla L(w-\eta g)-g\Vert_2$",
        "cosine": r"cosine of $\nabla L(w-\eta g)$ and $g$",
        "smoothness": r"change of gradient / distance, $\beta$",
    }
    _checks.one_of("what", what, names)
    ax, look = start(result, GradientPredictiveness, ax)
    values = np.asarray(getattr(result, what), np.float64)
    if values.ndim == 1:
        ax.plot(result.step_sizes, values, label=label, marker=look.marker, **look.line)
        ax.set_xscale("log")
        ax.set_xlabel(r"step size $\eta$")
    else:  # stacked results, [training steps, step sizes]
        steps = np.arange(1, len(values) + 1)
        high = values.max(1)
        middle = high if what == "smoothness" else np.median(values, axis=1)
        ax.plot(steps, middle, label=label, **look.line)
        ax.fill_between(steps, values.min(1), high, color=look.color, alpha=0.18, lw=0)
        counted(ax, r"measurement during training (band: range over $\eta$)")
    ax.set_ylabel(names[what])
    legend(ax)
    return ax


def plot_gate_saturation(
    result: GateSaturation, ax: Any = None, *, label: str | None = None
) -> Any:
    """Plot the share of saturated values of each gate through time.

    Args:
        result: what `gate_saturation` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: prefix of the names of the gates in the legend.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> share = {"forget": jnp.array([0.0, 0.1, 0.3])}
        >>> ax = plots.plot_gate_saturation(analysis.GateSaturation(share, share, jnp.ones(3)))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['forget gate']
    """
    ax, look = start(result, GateSaturation, ax)
    for i, (name, share) in enumerate(result.saturated.items(), look.place):
        share = np.asarray(share, np.float64)
        ax.plot(
            np.arange(1, len(share) + 1),
            100 * share,
            color=COLOURS[i % len(COLOURS)],
            linestyle=STYLES[i % len(STYLES)],
            lw=2.2,
            label=joined(label, f"{name} gate"),
            gid=f"normjax-{i}",
        )
    ax.set_ylabel("values below 0.05 or above 0.95 (%)")
    counted(ax, "time step t")
    ax.set_ylim(bottom=0)
    legend(ax)
    return ax


def plot_stationarity(result: Stationarity, ax: Any = None, *, label: str | None = None) -> Any:
    """Plot the distance of each step's mean and spread from their stationary values.

    The horizontal line is the tolerance, the vertical line the step after which both stay below.

    Args:
        result: what `stationarity` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: prefix of the names in the legend.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> mean = jnp.exp(-jnp.arange(20.0))[:, None]
        >>> result = analysis.stationarity(nj.Running(mean, jnp.ones((20, 1))))
        >>> plots.plot_stationarity(result).get_ylabel()
        'distance from stationary (no unit)'
    """
    ax, look = start(result, Stationarity, ax)
    time = np.arange(1, len(np.asarray(result.mean)) + 1)
    drawn = {
        "mean, in standard deviations": (result.mean, "-"),
        "log of standard deviation": (result.spread, (0, (4, 2))),
    }
    for name, (values, style) in drawn.items():
        ax.plot(
            time,
            positive(values),
            label=joined(label, name),
            **{**look.line, "linestyle": style},
        )
    ax.set_yscale("log")
    rule(ax, float(result.tolerance))
    ax.axvline(int(result.steps), color=look.color, lw=1.2, linestyle=(0, (2, 3)))
    ax.set_ylabel("distance from stationary (no unit)")
    counted(ax, "time step t")
    legend(ax)
    return ax
