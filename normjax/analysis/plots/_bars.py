"""Plots over named or numbered items: transformations, identities, layers, eigenvalues, bins."""

from __future__ import annotations

from typing import Any

import numpy as np

from normjax.analysis._gates import ActivationHistogram
from normjax.analysis._identities import NormIdentities, WeightIdentities
from normjax.analysis._invariance import Invariance
from normjax.analysis._lanczos import HessianSpectrum
from normjax.analysis._shift import CovariateShift, GradientShift
from normjax.analysis.plots._style import INK, SIZE, counted, joined, legend, rule, start

# A change of exactly 0 is drawn here: above are rounding errors in float32, below in float64.
FLOOR = 1e-9


def plot_invariance(result: Invariance, ax: Any = None, *, label: str | None = None) -> Any:
    """Plot the relative change under each transformation, of the output and of the gradient.

    Filled markers are the output, open markers the gradient. Invariances are the points far on
    the left, at the level of rounding; a change of 0 is drawn at 1e-9.

    Args:
        result: what `invariance` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: name of the method in the legend.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.

    Example:
        >>> import jax, normjax as nj
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> x = jax.random.normal(jax.random.key(0), (8, 4))
        >>> ax = plots.plot_invariance(analysis.invariance(nj.batch_norm(), x), label="batch norm")
        >>> [text.get_text() for text in ax.get_yticklabels()][0]
        'data rescale'
    """
    ax, look = start(result, Invariance, ax)
    measured = {k: v for k, v in result._asdict().items() if v is not None}
    # A series is drawn a little below the one before, so that markers do not cover each other.
    heights = np.arange(len(measured)) + 0.16 * look.place
    for field, filled in (("output", True), ("gradient", False)):
        values = [float(getattr(change, field)) for change in measured.values()]
        ax.plot(
            np.maximum(values, FLOOR),
            heights,
            linestyle="none",
            marker=look.marker,
            markersize=9 if filled else 8,
            color=look.color,
            markerfacecolor=look.color if filled else "none",
            markeredgewidth=1.8,
            label=joined(label, field) if label is None else (label if filled else None),
            gid=look.gid,
        )
    ax.set_xscale("log")
    ax.set_xlim(FLOOR / 2, max(10.0, ax.get_xlim()[1]))
    ax.set_yticks(range(len(measured)), [k.replace("_", " ") for k in measured])
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    ax.set_xlabel("relative change (filled: output; open: gradient)")
    legend(ax, above=True)
    return ax


def plot_norm_identities(
    result: NormIdentities, ax: Any = None, *, label: str | None = None
) -> Any:
    """Plot the residual of each identity, one point per set, on a logarithmic axis.

    Args:
        result: what `norm_identities` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: name of the method in the legend.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.

    Example:
        >>> import jax, normjax as nj
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> x = jax.random.normal(jax.random.key(0), (8, 4))
        >>> plots.plot_norm_identities(analysis.norm_identities(nj.batch_norm(), x)).get_yscale()
        'log'
    """
    ax, look = start(result, NormIdentities, ax)
    names = {
        "mean": "mean of dx\n(0)",
        "orthogonal": "cosine of dx\nand x (0)",
        "projection": "distance from\nformula (0)",
        "damping": r"$\Vert dx\Vert^2\sigma^2/\Vert g\Vert^2$" + "\n(at most 1)",
    }
    for i, field in enumerate(names):
        values = np.maximum(np.ravel(np.asarray(getattr(result, field), np.float64)), FLOOR)
        # The points of one identity side by side, each series a little to the right of the last.
        across = i + 0.16 * look.place + np.linspace(-0.06, 0.06, len(values))
        ax.plot(
            across,
            values,
            linestyle="none",
            marker=look.marker,
            markersize=6,
            color=look.color,
            alpha=0.7,
            label=label if i == 0 else None,
            gid=look.gid,
        )
    ax.set_yscale("log")
    rule(ax, 1.0)
    ax.set_xticks(range(len(names)), list(names.values()))
    ax.set_xlim(-0.5, len(names) - 0.3)
    ax.set_ylabel("residual (relative)")
    legend(ax)
    return ax


def plot_weight_identities(
    result: WeightIdentities, ax: Any = None, *, label: str | None = None
) -> Any:
    """Plot the growth of each weight vector in one step against the growth if orthogonal.

    Args:
        result: what `weight_identities` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: name of the method in the legend.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> loss = lambda w: jnp.sum(jnp.sin(w))
        >>> result = analysis.weight_identities(nj.weight_norm(), jnp.eye(3), loss)
        >>> plots.plot_weight_identities(result).get_ylabel()
        "measured growth ||v'|| / ||v||"
    """
    ax, look = start(result, WeightIdentities, ax)
    ax.plot(
        np.ravel(result.predicted_growth),
        np.ravel(result.growth),
        linestyle="none",
        marker=look.marker,
        markersize=8,
        color=look.color,
        label=label,
        gid=look.gid,
    )
    if look.place == 0:
        ax.axline((1, 1), slope=1, color=INK, lw=1.2, linestyle=(0, (2, 3)), zorder=1)
    ax.set(xlabel=r"growth if orthogonal, $\sqrt{1+c^2}$", ylabel="measured growth ||v'|| / ||v||")
    legend(ax)
    return ax


def plot_covariate_shift(
    result: CovariateShift, ax: Any = None, *, label: str | None = None
) -> Any:
    """Plot the change of mean and spread of each layer's input.

    Args:
        result: what `covariate_shift` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: prefix of the names in the legend.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> x = jnp.array([[-1.0], [1.0]])
        >>> plots.plot_covariate_shift(analysis.covariate_shift([x], [x + 1])).get_xlabel()
        'layer'
    """
    ax = _by_layer(
        result,
        CovariateShift,
        ax,
        label,
        {"mean": "mean, in standard deviations", "spread": "log of standard deviation"},
    )
    ax.set_ylabel("change of the layer's input (no unit)")
    ax.set_ylim(bottom=0)
    legend(ax)
    return ax


def plot_gradient_shift(result: GradientShift, ax: Any = None, *, label: str | None = None) -> Any:
    """Plot how much updating the earlier layers changed and turned each layer's gradient.

    Args:
        result: what `gradient_shift` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: prefix of the names in the legend.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.

    Example:
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> result = analysis.gradient_shift(lambda w: (w[1] * w[0]) ** 2, [1.0, 2.0], [1.5, 2.5])
        >>> plots.plot_gradient_shift(result).get_xlabel()
        'layer'
    """
    ax = _by_layer(
        result,
        GradientShift,
        ax,
        label,
        {"relative": r"$\Vert G-G'\Vert/\Vert G\Vert$", "cosine": r"cosine of $G$ and $G'$"},
    )
    ax.set_ylabel("G before, G' after the earlier\nlayers' step (no unit)")
    legend(ax)
    return ax


def plot_hessian_spectrum(
    result: HessianSpectrum, ax: Any = None, *, label: str | None = None
) -> Any:
    """Plot the eigenvalues, largest first, with error bars for their bounds.

    Args:
        result: what `hessian_spectrum` returned.
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
        >>> result = analysis.hessian_spectrum(lambda w: jnp.sum(w**4), jnp.arange(3.0))
        >>> plots.plot_hessian_spectrum(result).get_ylabel()
        'eigenvalue of the Hessian'
    """
    ax, look = start(result, HessianSpectrum, ax)
    values = np.asarray(result.values, np.float64)
    ax.errorbar(
        np.arange(1, len(values) + 1) + 0.12 * look.place,
        values,
        yerr=np.asarray(result.bound, np.float64),
        fmt=look.marker,
        markersize=7,
        color=look.color,
        elinewidth=1.6,
        capsize=3,
        label=label,
    )[0].set_gid(look.gid)
    rule(ax, 0.0)
    ax.set_ylabel("eigenvalue of the Hessian")
    counted(ax, "Ritz value, largest first")
    legend(ax)
    return ax


def plot_activation_histogram(
    result: ActivationHistogram, ax: Any = None, *, label: str | None = None
) -> Any:
    """Plot the histogram of every step as a column of colours, dark for few values.

    Args:
        result: what `activation_histogram` returned.
        ax: Axes to draw on; `None` creates a figure.
        label: title of the plot.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `result` is not from that function.

    Example:
        >>> import jax
        >>> from normjax import analysis
        >>> from normjax.analysis import plots
        >>> y = jax.random.uniform(jax.random.key(0), (4, 6, 8))
        >>> plots.plot_activation_histogram(analysis.activation_histogram(y)).get_ylabel()
        'activation'
    """
    ax, look = start(result, ActivationHistogram, ax)
    share = 100 * np.asarray(result.share, np.float64)
    edges = np.asarray(result.edges, np.float64)
    mesh = ax.pcolormesh(np.arange(len(share) + 1) + 0.5, edges, share.T, cmap="cividis", vmin=0)
    mesh.set_gid(look.gid)
    ax.grid(False)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_label("share of the step's values (%)", color=INK, fontsize=SIZE - 1)
    bar.ax.tick_params(colors=INK, labelsize=SIZE - 2)
    bar.outline.set_visible(False)
    ax.set(ylabel="activation", title=label or "")
    counted(ax, "time step t")
    return ax


def _by_layer(result: Any, kind: type, ax: Any, label: str | None, fields: dict[str, str]) -> Any:
    """Plot two fields of a result, given with their names, as lines over layers."""
    ax, look = start(result, kind, ax)
    for (field, name), style, marker in zip(
        fields.items(), ("-", (0, (4, 2))), ("o", "s"), strict=True
    ):
        values = np.asarray(getattr(result, field), np.float64)
        ax.plot(
            np.arange(1, len(values) + 1),
            values,
            marker=marker,
            markersize=8,
            label=joined(label, name),
            **{**look.line, "linestyle": style},
        )
    counted(ax, "layer")
    return ax
