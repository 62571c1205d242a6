"""EvoNorm B0 and S0."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax._internal import _hints
from normjax.base import Affine, Hyper, Norm, Stats
from normjax.norms._affine import broadcast_affine, broadcast_one, check_affine
from normjax.norms._channel_stats import ChannelStatsNorm, channel_stats, require_real
from normjax.norms._group import GroupNorm, group_count, groups_argument, split
from normjax.norms._per_sample import spatial_axes_argument, widen
from normjax.statistics import _formulas, _measure, _normalize, _running, _shapes
from normjax.statistics._types import Accumulator, Array, Moments, Running


class EvoNormParams(NamedTuple):
    """Parameters of the EvoNorms, one number a channel.

    Attributes:
        scale: gamma.
        bias: beta.
        slope: v, the weight of x inside the nonlinearity.
    """

    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None
    slope: Num[Array, "*features"]


@dataclasses.dataclass(frozen=True, repr=False)
class EvoNormB0(ChannelStatsNorm):
    """The value behind `evo_norm_b0`; see there."""

    factory: ClassVar[str] = "evo_norm_b0"

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[EvoNormParams, Running]:
        """Return `(Evo, Running)` of the shape of the channels; `key` is not used."""
        affine, _ = super().init(shape, dtype, key=key)
        params = EvoNormParams(affine.scale, affine.bias, jnp.ones(shape[-1:], dtype))
        return params, _running.initial_running(shape[-1:], dtype)

    def transform(
        self,
        params: EvoNormParams,
        state: Running | Accumulator,
        measured: Moments | None,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Divide by the larger of the batch's deviation and the sample's plus v x."""
        del hyper
        x, kept = require_real(x, self.factory), (jnp.ndim(x) - 1,)
        d = widen(x, mask)
        batch = _running.select(state, measured, stats).var
        over = self.averaged(x.ndim)
        own = _measure.moments(x, over, mask=mask).var
        others = [a for a in range(x.ndim) if a not in over]
        slope = broadcast_one(params.slope, kept, x.shape).astype(d.dtype)
        instance = _shapes.expand(jnp.sqrt(own + self.eps), others, x.ndim)
        batch = _shapes.expand(jnp.sqrt(batch + self.eps), kept, x.ndim)
        y = d / jnp.maximum(batch.astype(d.dtype), slope * d + instance)
        at = broadcast_affine(Affine(params.scale, params.bias), kept, x.shape)
        return _formulas.affine(y, at.scale, at.bias).astype(x.dtype)


@_hints.with_hints()
def evo_norm_b0(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    decay: float = 0.9,
    correction: int = 0,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""EvoNorm-B0, norm and activation in one, with batch statistics; channels are last.

    $$y = \gamma\,\frac{x}{\max\big(\sqrt{\sigma^2_{b,w,h} + \epsilon},\;
      v x + \sqrt{\sigma^2_{w,h} + \epsilon}\big)} + \beta$$

    The batch's variance is replaced by the running one in evaluation; the sample's never is.
    The mean is kept too, though nothing reads it: variances of batches pool only with it.

    Args:
        axes: axes of space, those of one sample's variance. `None`: all between the first and
            the last. The batch's variance is over all but the last.
        eps: added to both variances.
        decay: weight of the old running value, in [0, 1]; 0.9 as in the authors' code. May be
            given at each call as `hyper={"decay": d}`.
        correction: variance that is *stored*: 0 the biased one, 1 times n/(n-1).
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: start of gamma.
        bias_init: start of beta.

    Returns:
        A `Norm` with params `Evo` and state `Running`.

    Raises:
        TypeError: complex x, which has no maximum.
        ValueError: a number outside its range; x without space.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.evo_norm_b0()
        >>> params, state = norm.init((1, 2, 1))
        >>> y, state = norm.apply(params, state, jnp.array([[[-1.0], [3.0]]]), stats="batch")
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [-0.5, 0.6]

    Reference:
        Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers", 2020.
    """
    return EvoNormB0(
        **channel_stats(axes, eps, decay, correction, scale_init, bias_init),
        use_scale=use_scale,
        use_bias=use_bias,
    )


@dataclasses.dataclass(frozen=True, repr=False)
class EvoNormS0(GroupNorm):
    """The value behind `evo_norm_s0`; see there."""

    factory: ClassVar[str] = "evo_norm_s0"

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Any, Any]:
        """Return `(Evo, ())`, each of the shape of the channels; `key` is not used."""
        affine, state = super().init(shape, dtype, key=key)
        return EvoNormParams(affine.scale, affine.bias, jnp.ones(shape[-1:], dtype)), state

    def transform(
        self,
        params: Any,
        state: Any,
        measured: Moments,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Divide the swish of x by the deviation of its group; x is not centred."""
        del state, stats, hyper
        x, kept = require_real(x, self.factory), (jnp.ndim(x) - 1,)
        d = widen(x, mask)
        slope = broadcast_one(params.slope, kept, x.shape).astype(d.dtype)
        swish = d * jax.nn.sigmoid(slope * d)
        groups = group_count(x.shape[-1], self.groups, self.group_size, self.factory)
        at = broadcast_affine(Affine(params.scale, params.bias), kept, x.shape)
        y = _normalize.normalize(
            split(swish, groups),
            measured._replace(mean=jnp.zeros_like(measured.mean)),
            self.averaged(x.ndim),
            scale=split(at.scale, groups),
            bias=split(at.bias, groups),
            eps=self.eps,
        )
        return y.reshape(x.shape).astype(x.dtype)


@_hints.with_hints()
def evo_norm_s0(
    *,
    groups: int | None = None,
    group_size: int | None = None,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
) -> Norm:
    r"""EvoNorm-S0, norm and activation in one, over one sample; channels are last.

    $$y = \gamma\,\frac{x\,\mathrm{sigmoid}(v x)}{\sqrt{\sigma^2_{w,h,c/g} + \epsilon}} + \beta$$

    Args:
        groups: number of groups; 32, the paper's, if no `group_size` is given.
        group_size: channels of a group, in place of `groups`.
        axes: axes of space; as in `group_norm`.
        eps: added to the variance.
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: start of gamma.
        bias_init: start of beta.

    Returns:
        A `Norm` with params `Evo` and no state.

    Raises:
        TypeError: complex x.
        ValueError: both `groups` and `group_size`, or one that does not divide the channels.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.evo_norm_s0(groups=1)
        >>> params, state = norm.init((1, 2, 1))
        >>> y, state = norm.apply(params, state, jnp.array([[[-1.0], [3.0]]]), stats="batch")
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [-0.134, 1.429]

    Reference:
        Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers", 2020.
    """
    groups = groups_argument(groups, group_size, "evo_norm_s0")
    check_affine(eps, scale_init, bias_init)
    return EvoNormS0(
        groups=groups,
        group_size=group_size,
        axes=spatial_axes_argument(axes),
        eps=eps,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
    )
