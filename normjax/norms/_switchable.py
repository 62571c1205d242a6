"""Switchable normalization: a learned mix of instance, layer and batch statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax._internal import _hints
from normjax._internal._exportable import exportable
from normjax.base import Call, Norm
from normjax.norms._channel_stats import ChannelStatsNorm
from normjax.statistics import _core, _merge, _running, _shapes
from normjax.statistics._shapes import broadcast_affine
from normjax.statistics._types import Accumulator, Array, Debias, Moments, Running


@exportable
class SwitchableNormParams(NamedTuple):
    """Parameters of `switchable_norm`.

    Attributes:
        scale: gamma, one per channel, or `None`.
        bias: beta, one per channel, or `None`.
        mean_weight: `[3]`, logits of instance, layer and batch mean, in this order.
        var_weight: `[3]`, logits of their variances.
    """

    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None
    mean_weight: Num[Array, "3"]
    var_weight: Num[Array, "3"]


@dataclasses.dataclass(frozen=True, repr=False)
class SwitchableNorm(ChannelStatsNorm):
    """Switchable normalization as a value; made by `switchable_norm`."""

    factory: ClassVar[str] = "switchable_norm"

    decay: float = 0.997

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[SwitchableNormParams, Running]:
        """Return `(SwitchableNormParams, Running)`; all three weights are initially equal."""
        del key
        affine, running = self.start_channels(shape, dtype)
        # Logits are real even if x is complex.
        # Two arrays, because a step that donates its params cannot donate one buffer twice.
        mean_weight, var_weight = (jnp.ones((3,), jnp.finfo(dtype).dtype) for _ in range(2))
        params = SwitchableNormParams(affine.scale, affine.bias, mean_weight, var_weight)
        return params, running

    def transform(
        self,
        params: SwitchableNormParams,
        state: Running | Accumulator,
        measured: Moments | None,
        x: jax.Array,
        call: Call,
    ) -> jax.Array:
        """Blend the statistics of three norms, then normalize once."""
        space = self.space(x.ndim)
        own = _core.moments(x, space, call.mask, dtype=call.dtype)  # [batch, channels]
        # Merging a sample's instance statistics gives its layer statistics: one pass for both.
        layer = _merge.merge_axis(own, -1)
        batch = _running.select(state, measured, call.stats)

        def blend(logits: Array, instance: Array, layer: Array, batch: Array) -> jax.Array:
            instance = jnp.asarray(instance)
            real = jnp.finfo(instance.dtype).dtype
            # [batch, channels], [batch] and [channels], blended into [batch, channels].
            a, b, c = jax.nn.softmax(jnp.asarray(logits).astype(real)).astype(instance.dtype)
            batch = _shapes.expand(batch, (instance.ndim - 1,), instance.ndim)
            return a * instance + b * layer[..., None] + c * batch.astype(instance.dtype)

        blended = Moments(
            blend(params.mean_weight, own.mean, layer.mean, batch.mean),
            blend(params.var_weight, own.var, layer.var, batch.var),
            own.count,
        )
        scale, bias = broadcast_affine(params, (x.ndim - 1,), x.shape)
        return _core.normalize(x, blended, space, scale, bias, self.eps, call.mask)


@_hints.with_hints()
def switchable_norm(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    decay: float = 0.997,
    correction: int = 0,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    allow_single: bool = False,
    compensated: bool = False,
    debias: Debias = False,
) -> Norm:
    r"""Switchable normalization: mixes instance, layer and batch norm by learned weights.

    $$y = \gamma\,\frac{x - \sum_k w_k \mu_k}{\sqrt{\sum_k w'_k \sigma_k^2 + \epsilon}} + \beta,
      \qquad k \in \{\text{IN}, \text{LN}, \text{BN}\}$$

    The weights are a softmax of three logits, all initially 1; means and variances have separate
    weights. In evaluation the running statistics replace the batch's. All variances are biased,
    as in the paper's equations (the authors' code uses unbiased ones).

    Args:
        axes: spatial axes. `None`: all between the first and the last; channels are last.
        eps: added to the blended variance.
        decay: weight of the old running value, in [0, 1]; 0.997 is the default of the authors' 1d
            class, their 2d class has 0.9. May be given at each call as `hyper={"decay": d}`.
        correction: variance that is *stored*: 0 the biased one, 1 the biased one times n/(n-1).
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: initial gamma.
        bias_init: initial beta.
        allow_single: as in `batch_norm`.
        compensated: as in `batch_norm`.
        debias: as in `batch_norm`.

    Returns:
        A `Norm` with params `SwitchableNormParams` and state `Running`.

    Raises:
        TypeError: `scale_init` or `bias_init` is not a plain number.
        ValueError: a number is outside its range, or x has no spatial axes.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.switchable_norm()
        >>> params, state = norm.init((1, 2, 1))
        >>> y, state = norm.apply(params, state, jnp.array([[[1.0], [3.0]]]), stats="batch")
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [-1.0, 1.0]

    Reference:
        Luo, Ren, Peng, Zhang, Li, "Differentiable Learning-to-Normalize via Switchable
        Normalization", 2018.
    """
    return SwitchableNorm(**locals())
