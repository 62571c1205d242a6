"""Norms of responses: by neighbouring channels, by the energy of a filter, by competition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax import _checks, _moments, _words
from normjax._affine import check_affine, place, place_one
from normjax._one_sample import OneSample, space, space_argument, wide
from normjax.base import Affine, Array, AxisName, Hyper, Moments, Norm, PyTree, Stats


@dataclasses.dataclass(frozen=True, repr=False)
class LocalResponseNorm(Norm):
    """The value behind `local_response_norm`; see there."""

    factory: ClassVar[str] = "local_response_norm"

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    over: Literal["sum", "mean"] = "sum"

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Return `((), ())`: nothing is learned and nothing kept."""
        del shape, dtype, key
        return (), ()

    def moments(
        self, params: PyTree, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> jax.Array:
        """Return the sum of squares around each channel, of the shape of x."""
        del params, axis_name
        x = _checks.floating(x, self.factory)
        return _moments.window_square(x, self.size, mask=_checks.mask(mask, x.shape))

    def transform(
        self,
        params: PyTree,
        state: PyTree,
        seen: jax.Array,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Divide each response by the power of those around it."""
        del params, state, stats, hyper
        x = jnp.asarray(x)
        alpha = self.alpha / self.size if self.over == "mean" else self.alpha
        y = _moments.affine(wide(x, mask), None, None, mul=(self.k + alpha * seen) ** -self.beta)
        return y.astype(x.dtype)


@_words.told()
def local_response_norm(
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    over: Literal["sum", "mean"] = "sum",
) -> Norm:
    r"""Local response normalization over neighbouring channels; channels are last.

    $$y_c = x_c \Big/ \Big(k + \alpha \sum_{c' = c - \lfloor n/2 \rfloor}
      ^{c + \lfloor (n-1)/2 \rfloor} x_{c'}^2\Big)^{\beta}$$

    The defaults are the paper's. Nothing is learned and nothing kept.

    Args:
        size: number n of channels in a window; beyond the edge they count as 0. For even n
            the window reaches one channel further down than up, as PyTorch's does.
        alpha: weight of the squares.
        beta: power of the denominator.
        k: constant of the denominator, positive (PyTorch's and TensorFlow's default is 1).
        over: what alpha weighs: `"sum"`, the sum over the window (the paper, TensorFlow), or
            `"mean"`, that sum over n (Caffe, PyTorch).

    Returns:
        A `Norm` without params and state, both `()`.

    Raises:
        ValueError: a number outside its range, unknown `over`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.local_response_norm(size=3, alpha=1.0, beta=1.0, k=1.0)
        >>> y, _ = norm.apply((), (), jnp.array([[1.0, 2.0, 0.0]]), stats="batch")
        >>> [round(v, 3) for v in y[0].tolist()]
        [0.167, 0.333, 0.0]

    Reference:
        Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural
        Networks", 2012.
    """
    _checks.positive_int("size", size)
    _checks.positive("alpha", alpha, zero=True)
    _checks.positive("beta", beta, zero=True)
    _checks.positive("k", k)
    _checks.one_of("over", over, ("sum", "mean"))
    return LocalResponseNorm(size=size, alpha=alpha, beta=beta, k=k, over=over)


class FilterResponse(NamedTuple):
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
class FilterResponseNorm(OneSample):
    """The value behind `filter_response_norm`; see there."""

    factory: ClassVar[str] = "filter_response_norm"

    axes: tuple[int, ...] | None = None
    eps: float = 1e-6
    threshold: bool = True
    learn_eps: bool = False
    eps_init: float = 1e-4

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of space."""
        return space(self.axes, ndim, self.factory)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the last axis."""
        return (ndim - 1,)

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[FilterResponse, PyTree]:
        """Return `(FilterResponse, ())`, each of the shape of the channels."""
        affine, state = super().init(shape, dtype, key=key)
        tau = jnp.zeros(shape[-1:], dtype) if self.threshold else None
        eps = jnp.full(shape[-1:], self.eps_init, dtype) if self.learn_eps else None
        return FilterResponse(affine.scale, affine.bias, tau, eps), state

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return the mean square over space."""
        if jnp.iscomplexobj(x) and self.threshold:
            raise TypeError(
                "filter_response_norm thresholds its output, and complex numbers have no order: "
                "write filter_response_norm(threshold=False)"
            )
        return _moments.mean_square(x, self.averaged(x.ndim), mask=mask)

    def transform(
        self,
        params: FilterResponse,
        state: PyTree,
        seen: Moments,
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
            learned = jnp.abs(jnp.asarray(params.eps)).astype(seen.var.dtype)
            # The rank of the statistics, which are x's without the axes of space.
            over = self.averaged(x.ndim)
            learned = jnp.squeeze(place_one(learned, kept, shape), over)
            seen = seen._replace(var=seen.var + learned)
        affine = Affine(params.scale, params.bias)
        # In the dtype of the statistics to the end: tau is compared before anything is rounded.
        y = super().transform(
            affine, state, seen, wide(x, mask), stats=stats, mask=mask, hyper=hyper
        )
        if params.threshold is not None:
            y = jnp.maximum(y, place_one(params.threshold, kept, shape).astype(y.dtype))
        return y.astype(x.dtype)


@_words.told()
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
        axes=space_argument(axes),
        eps=eps,
        threshold=threshold,
        learn_eps=learn_eps,
        eps_init=eps_init,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
    )


@dataclasses.dataclass(frozen=True, repr=False)
class GlobalResponseNorm(OneSample):
    """The value behind `global_response_norm`; see there."""

    factory: ClassVar[str] = "global_response_norm"

    axes: tuple[int, ...] | None = None
    eps: float = 1e-6
    scale_init: float = 0.0

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of space."""
        return space(self.axes, ndim, self.factory)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the last axis."""
        return (ndim - 1,)

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return the mean square over space."""
        return _moments.mean_square(x, self.averaged(x.ndim), mask=mask)

    def transform(
        self,
        params: Affine,
        state: PyTree,
        seen: Moments,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Scale each channel by its share of the response, and add x back."""
        del state, stats, hyper
        x = jnp.asarray(x)
        kept = [a for a in range(x.ndim) if a not in self.averaged(x.ndim)]
        energy = seen.var * seen.count
        # The root has no slope at 0; a dead channel takes 0, as a norm's subgradient does.
        alive = energy > 0
        length = jnp.where(alive, jnp.sqrt(jnp.where(alive, energy, 1)), 0)
        typical = _moments.moments(length, -1, mask=seen.count > 0).mean
        share = length / (typical[..., None] + self.eps)
        at = place(params, self.features(x.ndim), x.shape)
        d = wide(x, mask)
        y = _moments.affine(d, at.scale, at.bias, mul=_moments.expand(share, kept, x.ndim))
        return (y + d).astype(x.dtype)


@_words.told()
def global_response_norm(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-6,
    scale_init: float = 0.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""Global response normalization of ConvNeXt V2: channels compete; channels are last.

    $$y = \gamma \odot x \odot n + \beta + x, \qquad
      n_c = \frac{\lVert x_{\cdot,c} \rVert_2}{\tfrac1C \sum_{c'} \lVert x_{\cdot,c'} \rVert_2
      + \epsilon}$$

    The length is taken over space. Gamma and beta start at 0, so that it starts as identity.

    Args:
        axes: axes of space. `None`: all between the first and the last.
        eps: added to the mean length.
        scale_init: start of gamma.
        bias_init: start of beta.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        ValueError: a number outside its range, axes that name the channels.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.global_response_norm(scale_init=1.0)
        >>> params, state = norm.init((1, 1, 2))
        >>> y, state = norm.apply(params, state, jnp.array([[[1.0, 3.0]]]), stats="batch")
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [1.5, 7.5]

    Reference:
        Woo, Debnath, Hu, Chen, Liu, Kweon, Xie, "ConvNeXt V2: Co-designing and Scaling ConvNets
        with Masked Autoencoders", 2023.
    """
    check_affine(eps, scale_init, bias_init)
    return GlobalResponseNorm(
        axes=space_argument(axes), eps=eps, scale_init=scale_init, bias_init=bias_init
    )
