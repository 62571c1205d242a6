"""Measures what a normalization does: pure functions that return named tuples of arrays.

Each has a counterpart in `normjax.analysis.plots`: `plots.plot_invariance(...)` draws the result
of `invariance(...)`. Only `plots` needs matplotlib, and only when it draws.
"""

from normjax.analysis._gates import (
    ActivationHistogram,
    GateSaturation,
    activation_histogram,
    gate_saturation,
)
from normjax.analysis._identities import (
    NormIdentities,
    WeightIdentities,
    norm_identities,
    weight_identities,
)
from normjax.analysis._invariance import Change, Invariance, invariance
from normjax.analysis._lanczos import HessianSpectrum, hessian_spectrum
from normjax.analysis._landscape import GradientPredictiveness, gradient_predictiveness
from normjax.analysis._shift import (
    CovariateShift,
    GradientShift,
    covariate_shift,
    gradient_shift,
)
from normjax.analysis._stationarity import Stationarity, stationarity
from normjax.analysis._through_time import (
    GradientThroughTime,
    JacobianThroughTime,
    gradient_through_time,
    jacobian_through_time,
)

__all__ = [
    "ActivationHistogram",
    "Change",
    "CovariateShift",
    "GateSaturation",
    "GradientPredictiveness",
    "GradientShift",
    "GradientThroughTime",
    "HessianSpectrum",
    "Invariance",
    "JacobianThroughTime",
    "NormIdentities",
    "Stationarity",
    "WeightIdentities",
    "activation_histogram",
    "covariate_shift",
    "gate_saturation",
    "gradient_predictiveness",
    "gradient_shift",
    "gradient_through_time",
    "hessian_spectrum",
    "invariance",
    "jacobian_through_time",
    "norm_identities",
    "stationarity",
    "weight_identities",
]
