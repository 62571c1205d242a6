"""Filter response normalization, with its thresholded activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax._internal import _checks, _hints
from normjax.base import Affine, Hyper, Norm, Stats
from normjax.norms._affine import broadcast_one, check_affine
from normjax.norms._per_sample import PerSampleNorm, spatial_axes, spatial_axes_argument, widen
from normjax.statistics import _measure
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
    """The value behind `filter_response_norm`; see there."""

    factory: ClassVar[str] = "filter_response_norm"

    axes: tuple[int, ...] | None = None
    eps: float = 1e-6
    threshold: bool = True
    learn_eps: bool = False
    eps_init: float = 1e-4

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of space."""
        return spatial_axes(self.axes, ndim, self.factory)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the last axis."""
        return (ndim - 1,)

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[FilterResponseParams, PyTree]:
        """Return `(FilterResponse, ())`, each of the shape of the channels."""
        affine, state = super().init(shape, dtype, key=key)
        tau = jnp.zeros(shape[-1:], dtype) if self.threshold else None
        eps = jnp.full(shape[-1:], self.eps_init, dtype) if self.learn_eps else None
        return FilterResponseParams(affine.scale, affine.bias, tau, eps), state

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return the mean square over space."""
        if jnp.iscomplexobj(x) and self.threshold:
            raise TypeError(
                "filter_response_norm thresholds its output, and complex numbers have no order: "
                "write filter_response_norm(threshold=False)"
            )
        return _measure.mean_square(x, self.averaged(x.ndim), mask=mask)

    def transform(
        self,
        params: FilterResponseParams,
        state: PyTree,
        measured: Moments,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Divide each filter's response by its energy over space; threshold it."""
        x = jnp.asarray(x)
        kept, shape = self.features(x.ndim), x.shape
        if params.eps is not None:
            learned = jnp.abs(jnp.asarray(params.eps)).astype(measured.var.dtype)
            # The rank of the statistics, which are x's without the axes of space.
            over = self.averaged(x.ndim)
            learned = jnp.squeeze(broadcast_one(learned, kept, shape), over)
            measured = measured._replace(var=measured.var + learned)
        affine = Affine(params.scale, params.bias)
        # In the dtype of the statistics to the end: tau is compared before anything is rounded.
        y = super().transform(
            affine, state, measured, widen(x, mask), stats=stats, mask=mask, hyper=hyper
        )
        if params.threshold is not None:
            y = jnp.maximum(y, broadcast_one(params.threshold, kept, shape).astype(y.dtype))
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
    check_affine(eps, scale_init, bias_init)
    _checks.positive("eps_init", eps_init)
    return FilterResponseNorm(
        axes=spatial_axes_argument(axes),
        eps=eps,
        threshold=threshold,
        learn_eps=learn_eps,
        eps_init=eps_init,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
    )
