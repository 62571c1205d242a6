"""Mixtures of norms: EvoNorm's searched layers, switchable norm's learned blend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num

from normjax import _checks, _moments, _words
from normjax._affine import check_affine, place, place_one
from normjax._group import GroupNorm, group_count, groups_argument, split
from normjax._one_sample import OneSample, space, space_argument, wide
from normjax.base import Affine, Array, AxisName, Collect, Hyper, Moments, Norm, Running, Stats


class Evo(NamedTuple):
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
class _ChannelStats(OneSample):
    """What B0 and switchable norm share: running batch statistics of each channel."""

    stateful: ClassVar[bool] = True
    hypers: ClassVar[tuple[str, ...]] = ("decay",)

    axes: tuple[int, ...] | None = None
    decay: float = 0.9
    correction: int = 0

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes of space."""
        return space(self.axes, ndim, self.factory, empty=False)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the last axis."""
        return (ndim - 1,)

    def moments(
        self, params: Any, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> Moments:
        """Measure each channel over batch and space, over all devices of `axis_name`."""
        del params
        return _moments.moments(x, None, mask=mask, axis_name=axis_name)

    def update(
        self, state: Running | Collect, seen: Moments | None, *, stats: Stats, hyper: Hyper = None
    ) -> Running | Collect:
        """Move the running average; never toward an empty or non-finite batch."""
        decay = (hyper or {}).get("decay", self.decay)
        return _moments.observe(state, seen, stats=stats, decay=decay, correction=self.correction)


@dataclasses.dataclass(frozen=True, repr=False)
class EvoNormB0(_ChannelStats):
    """The value behind `evo_norm_b0`; see there."""

    factory: ClassVar[str] = "evo_norm_b0"

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Evo, Running]:
        """Return `(Evo, Running)` of the shape of the channels; `key` is not used."""
        affine, _ = super().init(shape, dtype, key=key)
        params = Evo(affine.scale, affine.bias, jnp.ones(shape[-1:], dtype))
        return params, _moments.start(shape[-1:], dtype)

    def transform(
        self,
        params: Evo,
        state: Running | Collect,
        seen: Moments | None,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Divide by the larger of the batch's deviation and the sample's plus v x."""
        del hyper
        x, kept = _real(x, self.factory), (jnp.ndim(x) - 1,)
        d = wide(x, mask)
        batch = _moments.source(state, seen, stats).var
        over = self.averaged(x.ndim)
        own = _moments.moments(x, over, mask=mask).var
        others = [a for a in range(x.ndim) if a not in over]
        slope = place_one(params.slope, kept, x.shape).astype(d.dtype)
        instance = _moments.expand(jnp.sqrt(own + self.eps), others, x.ndim)
        batch = _moments.expand(jnp.sqrt(batch + self.eps), kept, x.ndim)
        y = d / jnp.maximum(batch.astype(d.dtype), slope * d + instance)
        at = place(Affine(params.scale, params.bias), kept, x.shape)
        return _moments.affine(y, at.scale, at.bias).astype(x.dtype)


@_words.told()
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
        **_channel_stats(axes, eps, decay, correction, scale_init, bias_init),
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
        return Evo(affine.scale, affine.bias, jnp.ones(shape[-1:], dtype)), state

    def transform(
        self,
        params: Any,
        state: Any,
        seen: Moments,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Divide the swish of x by the deviation of its group; x is not centred."""
        del state, stats, hyper
        x, kept = _real(x, self.factory), (jnp.ndim(x) - 1,)
        d = wide(x, mask)
        slope = place_one(params.slope, kept, x.shape).astype(d.dtype)
        swish = d * jax.nn.sigmoid(slope * d)
        groups = group_count(x.shape[-1], self.groups, self.group_size, self.factory)
        at = place(Affine(params.scale, params.bias), kept, x.shape)
        y = _moments.normalize(
            split(swish, groups),
            seen._replace(mean=jnp.zeros_like(seen.mean)),
            self.averaged(x.ndim),
            scale=split(at.scale, groups),
            bias=split(at.bias, groups),
            eps=self.eps,
        )
        return y.reshape(x.shape).astype(x.dtype)


@_words.told()
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
        axes=space_argument(axes),
        eps=eps,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
    )


class Switch(NamedTuple):
    """Parameters of `switchable_norm`.

    Attributes:
        scale: gamma, one a channel, or `None`.
        bias: beta, one a channel, or `None`.
        mean_weight: `[3]`, logits of instance, layer and batch mean, in this order.
        var_weight: `[3]`, logits of their variances.
    """

    scale: Num[Array, "*features"] | None
    bias: Num[Array, "*features"] | None
    mean_weight: Num[Array, "3"]
    var_weight: Num[Array, "3"]


@dataclasses.dataclass(frozen=True, repr=False)
class SwitchableNorm(_ChannelStats):
    """The value behind `switchable_norm`; see there."""

    factory: ClassVar[str] = "switchable_norm"

    decay: float = 0.997

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Switch, Running]:
        """Return `(Switch, Running)`; all three start with equal weight; `key` is not used."""
        affine, _ = super().init(shape, dtype, key=key)
        # Logits are real even where x is complex.
        ones = jnp.ones((3,), jnp.finfo(dtype).dtype)
        return Switch(affine.scale, affine.bias, ones, ones), _moments.start(shape[-1:], dtype)

    def transform(
        self,
        params: Switch,
        state: Running | Collect,
        seen: Moments | None,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Blend the statistics of three norms, then normalize once."""
        over = self.averaged(jnp.ndim(x))
        own = _moments.moments(x, over, mask=mask)
        # A sample's layer statistics are its instance statistics pooled: one pass for both.
        layer = _moments.merge_axis(own, -1)
        batch = _moments.source(state, seen, stats)

        def blend(logits: Array, instance: Array, layer: Array, batch: Array) -> jax.Array:
            instance = jnp.asarray(instance)
            real = jnp.finfo(instance.dtype).dtype
            a, b, c = jax.nn.softmax(jnp.asarray(logits).astype(real)).astype(instance.dtype)
            batch = _moments.expand(batch, (instance.ndim - 1,), instance.ndim)
            return a * instance + b * layer[..., None] + c * batch.astype(instance.dtype)

        blended = Moments(
            blend(params.mean_weight, own.mean, layer.mean, batch.mean),
            blend(params.var_weight, own.var, layer.var, batch.var),
            own.count,
        )
        affine = Affine(params.scale, params.bias)
        return super().transform(affine, state, blended, x, stats=stats, mask=mask, hyper=hyper)


@_words.told()
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
) -> Norm:
    r"""Switchable normalization: instance, layer and batch norm, their weights learned.

    $$y = \gamma\,\frac{x - \sum_k w_k \mu_k}{\sqrt{\sum_k w'_k \sigma_k^2 + \epsilon}} + \beta,
      \qquad k \in \{\text{IN}, \text{LN}, \text{BN}\}$$

    The weights are softmax of three logits each, all 1 at the start; means and variances have
    their own. In evaluation the batch's statistics are the running ones. All variances are
    the biased ones of the paper's equations (the authors' code takes unbiased ones).

    Args:
        axes: axes of space. `None`: all between the first and the last; channels are last.
        eps: added to the blended variance.
        decay: weight of the old running value, in [0, 1]; 0.997 as in the authors' code. May
            be given at each call as `hyper={"decay": d}`.
        correction: variance that is *stored*: 0 the biased one, 1 times n/(n-1).
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: start of gamma.
        bias_init: start of beta.

    Returns:
        A `Norm` with params `Switch` and state `Running`.

    Raises:
        ValueError: a number outside its range; x without space.

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
    return SwitchableNorm(
        **_channel_stats(axes, eps, decay, correction, scale_init, bias_init),
        use_scale=use_scale,
        use_bias=use_bias,
    )


def _channel_stats(
    axes: Any, eps: float, decay: float, correction: int, scale_init: float, bias_init: float
) -> dict[str, Any]:
    """Check the arguments that B0 and switchable norm share."""
    check_affine(eps, scale_init, bias_init)
    _checks.fraction("decay", decay, hint=": it is the weight of the old value")
    _checks.one_of("correction", correction, (0, 1))
    return {
        "axes": _checks.axes(axes),
        "eps": eps,
        "decay": decay,
        "correction": correction,
        "scale_init": scale_init,
        "bias_init": bias_init,
    }


def _real(x: Array, who: str) -> jax.Array:
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"{who} has a nonlinearity of real numbers and got {x.dtype}: write x.real and x.imag "
            "as two channels"
        )
    return x
