"""Filter response normalization, with its thresholded activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax._internal import _checks, _hints
from normjax._internal._exportable import exportable
from normjax.base import Call, Norm
from normjax.norms._per_sample import PerSampleNorm, spatial_axes, spatial_axes_argument
from normjax.statistics import _core
from normjax.statistics._shapes import broadcast_parameter, widen
from normjax.statistics._types import Array, Moments, PyTree


@exportable
class FilterResponseParams(NamedTuple):
    """Parameters of `filter_response_norm`, one number per channel; `None` if not used.

    Attributes:
        scale: gamma.
        bias: beta.
        threshold: tau of the thresholded linear unit that follows.
        eps: the learned part of eps; its absolute value is added.
    """

    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None
    threshold: Num[Array, "*features"] | None
    eps: Num[Array, "*features"] | None


@dataclasses.dataclass(frozen=True, repr=False)
class FilterResponseNorm(PerSampleNorm):
    """Filter response normalization as a value; made by `filter_response_norm`."""

    factory: ClassVar[str] = "filter_response_norm"

    axes: int | Sequence[int] | None = None
    eps: float = 1e-6
    threshold: bool = True
    learn_eps: bool = False
    eps_init: float = 1e-4

    def __post_init__(self) -> None:
        """Check the fields and bring `axes` into canonical form."""
        super().__post_init__()
        _checks.positive("eps_init", self.eps_init)
        _checks.set_field(self, "axes", spatial_axes_argument(self.axes))

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the spatial axes."""
        return spatial_axes(self.axes, ndim, self.factory)

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[FilterResponseParams, PyTree]:
        """Return `(FilterResponseParams, ())`, each of the shape of the channels."""
        affine, state = super().start(shape, dtype, key)
        tau = jnp.zeros(shape[-1:], dtype) if self.threshold else None
        eps = jnp.full(shape[-1:], self.eps_init, dtype) if self.learn_eps else None
        return FilterResponseParams(affine.scale, affine.bias, tau, eps), state

    def measure(self, params: FilterResponseParams, x: jax.Array, call: Call) -> Moments:
        """Measure the mean square over space."""
        del params
        if jnp.iscomplexobj(x) and self.threshold:
            raise TypeError(
                "filter_response_norm thresholds its output, and complex numbers have no order: "
                "write filter_response_norm(threshold=False)"
            )
        return _core.mean_square(x, self.averaged(x.ndim), call.mask)

    def transform(
        self,
        params: FilterResponseParams,
        state: PyTree,
        measured: Moments,
        x: jax.Array,
        call: Call,
    ) -> jax.Array:
        """Divide each filter's response by its root mean square over space, then threshold it."""
        channels = self.features(x.ndim)
        if params.eps is not None:
            learned = jnp.abs(jnp.asarray(params.eps)).astype(measured.var.dtype)
            # To the shape of the statistics: that of x without its spatial axes.
            learned = broadcast_parameter(learned, channels, x.shape)
            learned = jnp.squeeze(learned, self.averaged(x.ndim))
            measured = measured._replace(var=measured.var + learned)
        # In the dtype of the statistics until the end: compare with tau before rounding.
        y = super().transform(params, state, measured, widen(x, call.mask), call)
        if params.threshold is not None:
            tau = broadcast_parameter(params.threshold, channels, x.shape)
            y = jnp.maximum(y, tau.astype(y.dtype))
        return y.astype(x.dtype)


@_hints.with_hints()
def filter_response_norm(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-6,
    threshold: bool = True,
    learn_eps: bool = False,
    eps_init: float = 1e-4,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""Filter response normalization with its thresholded linear unit; channels are last.

    $$y = \gamma\,\frac{x}{\sqrt{\nu^2 + \epsilon + |\epsilon_l|}} + \beta, \qquad
      \nu^2 = \tfrac1N \sum_{\text{space}} x^2, \qquad z = \max(y, \tau)$$

    It does not centre x, so the threshold tau is learned instead of ReLU's 0, and no other
    activation follows.

    Args:
        axes: spatial axes, averaged over. `None`: all between the first and the last; x of shape
            `[batch, channels]` has none and needs a learned eps.
        eps: added to the mean square, not learned.
        threshold: whether the thresholded linear unit follows; tau is initially 0.
        learn_eps: whether a second eps is learned for each channel; the paper recommends it
            if there is little or no space to average over.
        eps_init: initial value of the learned eps; the default is the paper's.
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: initial gamma.
        bias_init: initial beta.

    Returns:
        A `Norm` with params `FilterResponseParams` and no state.

    Raises:
        TypeError: x is complex and there is a threshold.
        ValueError: a number is outside its range, or `axes` name the channels.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.filter_response_norm()
        >>> params, state = norm.init((1, 2, 1))
        >>> y, state = norm.apply(params, state, jnp.array([[[1.0], [-7.0]]]), stats="batch")
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [0.2, 0.0]

    Reference:
        Singh, Krishnan, "Filter Response Normalization Layer: Eliminating Batch Dependence in
        the Training of Deep Neural Networks", 2019.
    """
    return FilterResponseNorm(**locals())
