"""Pictures of what `normjax.analysis` returns: one `plot_...` for each function.

Each takes the result, an `ax` of yours or none, and returns the Axes; called again on the same
`ax` with another `label` it adds a second series in the next colour. Colours are Okabe and Ito's,
told apart with any colour vision, with line styles and markers that differ too; text and axes are
a grey that reads on white and on black, and new figures have no background.

    from normjax.analysis import plots
    ax = plots.plot_stationarity(analysis.stationarity(state["norm_h"]), label="BN-LSTM")

matplotlib is imported when the first picture is drawn: `pip install 'normjax[plots]'`.
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
