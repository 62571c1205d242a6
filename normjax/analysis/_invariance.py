"""Measures the invariances of a normalization to rescaling and shifts of data and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from normjax._internal import _checks
from normjax.analysis._tree_math import length, minus, probe, ratio
from normjax.base import DirectionAndGain, Norm, Reparam, Stats
from normjax.statistics._shapes import stat_dtype
from normjax.statistics._types import Array, PyTree

Method = Norm | Reparam | Callable[[jax.Array, jax.Array], jax.Array]


class Change(NamedTuple):
    """Change of output and gradient under one transformation T of weights or data.

    Attributes:
        output: ||f(T w) - f(w)|| / ||f(w)||; 0 if f is invariant.
        gradient: relative distance of the gradient from the one that invariance implies: 1/s of
            the original after rescaling by s, unchanged after a shift.
        ratio: ||gradient at T w|| / ||gradient at w||; 1/s if f is invariant to rescaling by s.
    """

    output: Float[Array, ""]
    gradient: Float[Array, ""]
    ratio: Float[Array, ""]


class Invariance(NamedTuple):
    """A `Change` for each transformation; those of the weight are `None` if there is no weight.

    Attributes:
        weight_rescale: multiplies the whole matrix by one number.
        weight_vector_rescale: multiplies each output's weight vector by its own number.
        weight_recentre: adds one vector to every output's weight vector.
        data_rescale: multiplies all data by one number.
        data_shift: adds one number to all data.
        feature_rescale: multiplies each feature of the data by its own number.
        feature_shift: adds one vector to every sample (re-centring of the data set).
        sample_rescale: multiplies each sample by its own number.
        sample_shift: adds to each sample its own number, the same for all features.
    """

    weight_rescale: Change | None
    weight_vector_rescale: Change | None
    weight_recentre: Change | None
    data_rescale: Change
    data_shift: Change
    feature_rescale: Change
    feature_shift: Change
    sample_rescale: Change
    sample_shift: Change


def invariance(
    method: Method,
    x: Inexact[Array, "batch *space features"],
    w: Inexact[Array, "features outputs"] | None = None,
    *,
    scale: float = 3.0,
    shift: float = 2.0,
    stats: Stats = "batch",
) -> Invariance:
    r"""Measure how rescaling and shifting data and weights change output and gradient.

    $$f(x, W) = \text{norm}(x W), \qquad f(x, \text{norm}(W)), \qquad
      f(T w) = f(w) \;\Rightarrow\; \nabla f(w) = A^T\, \nabla f(T w), \quad T w = A w + b$$

    Each transformation is applied and its effect measured, so the result includes the effects of
    eps, half precision and running statistics. In exact arithmetic, with statistics of the batch,
    the changes in the paper's table are 0 for:

    | | batch norm | weight norm | layer norm | RMS norm |
    | --- | --- | --- | --- | --- |
    | `weight_rescale` | yes | yes | yes | yes |
    | `weight_vector_rescale` | yes | yes | no | no |
    | `weight_recentre` | no | no | yes | no |
    | `data_rescale` | yes | no | yes | yes |
    | `feature_shift` | yes | no | no | no |
    | `sample_rescale` | no | no | yes | yes |

    Where a transformation has several factors, their logarithms are evenly spaced from `scale` to
    1 / `scale`; several shifts are evenly spaced from `shift` to 0.

    Args:
        method: a `Norm`, applied to `x @ w`, or to `x` without `w`; a `Reparam` of `w`, of which
            `v` is transformed and the gain is constant; or any function `f(x, w) -> y`, such as
            `lambda x, w: dense.apply({"kernel": w}, (), x)[0]`.
        x: data, samples first and features last.
        w: weight matrix, outputs last.
        scale: factor of rescaling, positive and not 1.
        shift: size of shifts, relative to the root mean square of the shifted array.
        stats: `"batch"` or `"running"`, for a `Norm` or `Reparam`.

    Returns:
        `Invariance`. The gradient is that of a fixed random combination of the outputs, with
        respect to the array that is transformed, the weight or the data.

    Raises:
        TypeError: `method` is not one of the three, or is a `Reparam` that does not store a `v`.
        ValueError: `scale` is 1 or not positive, or `method` is a `Reparam` and there is no `w`.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import analysis
        >>> x = jax.random.normal(jax.random.key(0), (8, 4))
        >>> w = jax.random.normal(jax.random.key(1), (4, 6))
        >>> report = analysis.invariance(nj.layer_norm(eps=1e-12), x, w)
        >>> float(report.weight_recentre.output) < 1e-5, float(report.data_shift.output) < 1e-5
        (True, False)
        >>> round(float(report.weight_rescale.ratio), 3)  # weights times 3, gradient over 3
        0.333

    Reference:
        Ba, Kiros, Hinton, "Layer Normalization", 2016, section 5.1 and table 1; Zhang, Sennrich,
        "Root Mean Square Layer Normalization", 2019, table 1.
    """
    _checks.positive("scale", scale)
    if scale == 1:
        raise ValueError("scale=1 changes nothing: write scale=3.0")
    _checks.number("shift", shift)
    x = _checks.floating(x, "invariance")
    w = None if w is None else _checks.floating(w, "invariance")
    function = _as_function(method, x, w, stats)

    # Factors and shifts of each transformation, as vectors along one axis of the array.
    def factors(n: int, like: jax.Array) -> jax.Array:
        return (scale ** jnp.linspace(1.0, -1.0, n)).astype(like.dtype)

    def shifts(n: int, like: jax.Array) -> jax.Array:
        rms = length(like) / jnp.sqrt(jnp.asarray(like.size, stat_dtype(like.dtype)))
        return (shift * rms * jnp.linspace(1.0, 0.0, n).astype(rms.dtype)).astype(like.dtype)

    def by(axis: int, v: jax.Array, ndim: int) -> jax.Array:
        shape = [1] * ndim
        shape[axis] = v.size
        return v.reshape(shape)

    def rescaled(v: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
        return v * factor, factor

    def shifted(v: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        return v + offset, jnp.ones((1,) * v.ndim, v.dtype)

    # Without a weight its three changes stay None.
    of_weight: dict[str, Change | None] = dict.fromkeys(Invariance._fields[:3])
    if w is not None:
        on_w = _Measure(lambda v: function(x, v), w)
        of_weight = {
            "weight_rescale": on_w(*rescaled(w, by(0, factors(1, w), w.ndim))),
            "weight_vector_rescale": on_w(*rescaled(w, by(-1, factors(w.shape[-1], w), w.ndim))),
            "weight_recentre": on_w(*shifted(w, by(0, shifts(w.shape[0], w), w.ndim))),
        }
    on_x = _Measure(lambda v: function(v, w), x)
    n, features = x.shape[0], x.shape[-1]
    return Invariance(
        **of_weight,
        data_rescale=on_x(*rescaled(x, by(0, factors(1, x), x.ndim))),
        data_shift=on_x(*shifted(x, by(0, shifts(1, x), x.ndim))),
        feature_rescale=on_x(*rescaled(x, by(-1, factors(features, x), x.ndim))),
        feature_shift=on_x(*shifted(x, by(-1, shifts(features, x), x.ndim))),
        sample_rescale=on_x(*rescaled(x, by(0, factors(n, x), x.ndim))),
        sample_shift=on_x(*shifted(x, by(0, shifts(n, x), x.ndim))),
    )


class _Measure:
    """Compares output and gradient of a function at one point with those at another."""

    def __init__(self, function: Callable[[jax.Array], jax.Array], at: jax.Array):
        @jax.jit  # one compilation for all transformations
        def value_and_gradient(at: jax.Array) -> tuple[jax.Array, jax.Array]:
            y, back = jax.vjp(function, at)
            return y, back(probe(y))[0]

        self.value_and_gradient = value_and_gradient
        self.y, self.gradient = value_and_gradient(at)

    def __call__(self, at: jax.Array, factor: jax.Array) -> Change:
        y, gradient = self.value_and_gradient(at)
        # Invariance to T w = factor * w implies gradient(T w) * factor = gradient(w).
        expected = length(self.gradient)
        return Change(
            ratio(length(minus(y, self.y)), length(self.y)),
            ratio(length(minus(gradient * factor, self.gradient)), expected),
            ratio(length(gradient), expected),
        )


def _as_function(
    method: Any, x: jax.Array, w: jax.Array | None, stats: Stats
) -> Callable[[jax.Array, Any], jax.Array]:
    """Return the method, one of three kinds, as a function `f(x, w)`."""
    if isinstance(method, Norm):

        def layer(x: jax.Array, w: Any) -> jax.Array:
            return x if w is None else jnp.matmul(x, w, precision="highest")

        shape = jax.eval_shape(layer, x, w).shape
        params, state = method.init(shape, x.dtype, key=jax.random.key(0))
        return lambda x, w: method.apply(params, state, layer(x, w), stats=stats)[0]
    if isinstance(method, Reparam):
        if w is None:
            raise ValueError(f"{method!r} normalizes a weight: write invariance(method, x, w)")
        stored, state = method.init(w)
        if not isinstance(stored, DirectionAndGain):
            raise TypeError(
                f"{method!r} stores no v: give invariance a function f(x, w) -> y instead"
            )

        def normed(x: jax.Array, v: PyTree) -> jax.Array:
            weight, _ = method.apply(stored._replace(v=v), state, stats=stats)
            return jnp.matmul(x, weight, precision="highest")

        return normed
    if not callable(method):
        raise TypeError(f"{method!r} is no Norm, no Reparam and no function f(x, w) -> y")
    return method
