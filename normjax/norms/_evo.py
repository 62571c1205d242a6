"""EvoNorm B0 and S0: norm and activation in one layer."""

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
from normjax.norms._channel_stats import ChannelStatsNorm, require_real
from normjax.norms._group import GroupNorm, split
from normjax.statistics import _core, _formulas, _running, _shapes
from normjax.statistics._shapes import broadcast_affine, broadcast_parameter, widen
from normjax.statistics._types import Accumulator, Array, Debias, Moments, Running


@exportable
class EvoNormParams(NamedTuple):
    """Parameters of the EvoNorms, one number per channel.

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
    """EvoNorm B0 as a value; made by `evo_norm_b0`."""

    factory: ClassVar[str] = "evo_norm_b0"

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[EvoNormParams, Running]:
        """Return `(EvoNormParams, Running)` of the shape of the channels."""
        del key
        affine, running = self.start_channels(shape, dtype)
        return EvoNormParams(affine.scale, affine.bias, jnp.ones(shape[-1:], dtype)), running

    def transform(
        self,
        params: EvoNormParams,
        state: Running | Accumulator,
        measured: Moments | None,
        x: jax.Array,
        call: Call,
    ) -> jax.Array:
        """Divide by the batch's deviation or by the sample's plus v x, whichever is larger."""
        require_real(x, self.factory)
        channels, space = (x.ndim - 1,), self.space(x.ndim)
        d = widen(x, call.mask)
        of_batch = _running.select(state, measured, call.stats).var
        of_sample = _core.moments(x, space, call.mask).var
        remaining = [a for a in range(x.ndim) if a not in space]
        slope = broadcast_parameter(params.slope, channels, x.shape).astype(d.dtype)
        # [batch, 1, ..., channels] and [1, 1, ..., channels].
        instance = _shapes.expand(jnp.sqrt(of_sample + self.eps), remaining, x.ndim)
        batch = _shapes.expand(jnp.sqrt(of_batch + self.eps), channels, x.ndim)
        y = d / jnp.maximum(batch.astype(d.dtype), slope * d + instance)
        scale, bias = broadcast_affine(params, channels, x.shape)
        return _formulas.affine(y, scale, bias).astype(x.dtype)


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
    allow_single: bool = False,
    compensated: bool = False,
    debias: Debias = False,
) -> Norm:
    r"""EvoNorm-B0: norm and activation in one, with batch statistics; channels are last.

    $$y = \gamma\,\frac{x}{\max\big(\sqrt{\sigma^2_{b,w,h} + \epsilon},\;
      v x + \sqrt{\sigma^2_{w,h} + \epsilon}\big)} + \beta$$

    In evaluation the running variance replaces the batch's; the sample's variance is always
    computed. The state also has a running mean, which the output does not use but which is
    needed to pool the variances of several batches.

    Args:
        axes: spatial axes, over which one sample's variance is taken. `None`: all between the
            first and the last. The batch's variance is taken over all axes but the last.
        eps: added to both variances.
        decay: weight of the old running value, in [0, 1]; 0.9 as in the authors' code. May be
            given at each call as `hyper={"decay": d}`.
        correction: variance that is *stored*: 0 the biased one, 1 the biased one times n/(n-1).
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: initial gamma.
        bias_init: initial beta.
        allow_single: as in `batch_norm`.
        compensated: as in `batch_norm`.
        debias: as in `batch_norm`.

    Returns:
        A `Norm` with params `EvoNormParams` and state `Running`.

    Raises:
        TypeError: x is complex and has no maximum.
        ValueError: a number is outside its range, or x has no spatial axes.

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
    return EvoNormB0(**locals())


@dataclasses.dataclass(frozen=True, repr=False)
class EvoNormS0(GroupNorm):
    """EvoNorm S0 as a value; made by `evo_norm_s0`."""

    factory: ClassVar[str] = "evo_norm_s0"

    def start(self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None) -> tuple[Any, Any]:
        """Return `(EvoNormParams, ())`, each of the shape of the channels."""
        affine, state = super().start(shape, dtype, key)
        return EvoNormParams(affine.scale, affine.bias, jnp.ones(shape[-1:], dtype)), state

    def transform(
        self, params: Any, state: Any, measured: Moments, x: jax.Array, call: Call
    ) -> jax.Array:
        """Divide the swish of x by the deviation of its group; x is not centred."""
        del state
        require_real(x, self.factory)
        channels = (x.ndim - 1,)
        d = widen(x, call.mask)
        slope = broadcast_parameter(params.slope, channels, x.shape).astype(d.dtype)
        swish = d * jax.nn.sigmoid(slope * d)
        groups = self.count(x.shape[-1])
        scale, bias = broadcast_affine(params, channels, x.shape)
        y = _core.normalize(
            split(swish, groups),
            measured._replace(mean=jnp.zeros_like(measured.mean)),
            self.averaged(x.ndim),
            split(scale, groups),
            split(bias, groups),
            self.eps,
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
    r"""EvoNorm-S0: norm and activation in one, over one sample; channels are last.

    $$y = \gamma\,\frac{x\,\mathrm{sigmoid}(v x)}{\sqrt{\sigma^2_{w,h,c/g} + \epsilon}} + \beta$$

    Args:
        groups: number of groups; by default 32, as in the paper, unless `group_size` is set.
        group_size: channels per group, instead of `groups`.
        axes: spatial axes, as in `group_norm`.
        eps: added to the variance.
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: initial gamma.
        bias_init: initial beta.

    Returns:
        A `Norm` with params `EvoNormParams` and no state.

    Raises:
        TypeError: x is complex.
        ValueError: both `groups` and `group_size` are set, the one that is set does not divide the
            channels, or a number is outside its range.

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
    return EvoNormS0(**locals())
