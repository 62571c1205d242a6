"""Plots the results of `normjax.analysis`: one `plot_...` function for each of its functions.

Each takes a result and optionally an `ax`, and returns the Axes. Called again on the same `ax`
with another `label`, it adds a series in the next colour. The colours are those of Okabe and Ito,
which can be distinguished with any colour vision, and line styles and markers differ too. Text
and axes are in a grey that is readable on white and on black, and new figures are transparent.

    from normjax.analysis import plots
    ax = plots.plot_stationarity(analysis.stationarity(state["norm_h"]), label="BN-LSTM")

Matplotlib is imported when the first plot is drawn: `pip install 'normjax[plots]'`.
"""

from normjax.analysis.plots._bars import (
    plot_activation_histogram,
    plot_covariate_shift,
    plot_gradient_shift,
    plot_hessian_spectrum,
    plot_invariance,
    plot_norm_identities,
    plot_weight_identities,
)
from normjax.analysis.plots._curves import (
    plot_gate_saturation,
    plot_gradient_predictiveness,
    plot_gradient_through_time,
    plot_jacobian_through_time,
    plot_stationarity,
)
from normjax.analysis.plots._style import COLOURS, new_axes

__all__ = [
    "COLOURS",
    "new_axes",
    "plot_activation_histogram",
    "plot_covariate_shift",
    "plot_gate_saturation",
    "plot_gradient_predictiveness",
    "plot_gradient_shift",
    "plot_gradient_through_time",
    "plot_hessian_spectrum",
    "plot_invariance",
    "plot_jacobian_through_time",
    "plot_norm_identities",
    "plot_stationarity",
    "plot_weight_identities",
]
