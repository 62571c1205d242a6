"""Filter response normalization, with its thresholded activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax._internal import _checks, _hints
from normjax.base import Call, Norm
from normjax.norms._per_sample import PerSampleNorm, spatial_axes, spatial_axes_argument
from normjax.statistics import _core
from normjax.statistics._shapes import broadcast_parameter, widen
from normjax.statistics._types import Array, Moments, PyTree


class FilterResponseParams(NamedTuple):
    """Parameters of `filter_response_norm`, one number a channel; `None` where it has none.

    Attributes:
        scale: gamma.
        bias: beta.
        threshold: tau of the thresholded linear unit after it.
        eps: what is learned of eps; its absolute value counts.
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
        """Refuse numbers outside their ranges."""
        super().__post_init__()
        _checks.positive("eps_init", self.eps_init)
        _checks.set_field(self, "axes", spatial_axes_argument(self.axes))

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of space."""
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
        """Take the mean square over space."""
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
        """Divide each filter's response by its energy over space; threshold it."""
        channels = self.features(x.ndim)
        if params.eps is not None:
            learned = jnp.abs(jnp.asarray(params.eps)).astype(measured.var.dtype)
            # The rank of the statistics, which are x's without the axes of space.
            learned = broadcast_parameter(learned, channels, x.shape)
            learned = jnp.squeeze(learned, self.averaged(x.ndim))
            measured = measured._replace(var=measured.var + learned)
        # In the dtype of the statistics to the end: tau is compared before anything is rounded.
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

    It does not centre, so the activation's threshold tau is learned in place of ReLU's 0: no
    other activation follows it.

    Args:
        axes: axes of space, averaged over. `None`: all between the first and the last; x of
            `[batch, channels]` has none, and needs a learned eps.
        eps: added to the mean square, not learned.
        threshold: whether the thresholded linear unit follows, tau starting at 0.
        learn_eps: whether a further eps is learned for each channel; the paper advises it
            where there is little or no space to average over.
        eps_init: start of the learned eps; the paper's.
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: start of gamma.
        bias_init: start of beta.

    Returns:
        A `Norm` with params `FilterResponse` and no state.

    Raises:
        TypeError: complex x with a threshold.
        ValueError: a number outside its range, axes that name the channels.

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
