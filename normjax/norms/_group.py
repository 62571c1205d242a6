"""Group normalization."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Affine, Norm
from normjax.norms import _dispatch
from normjax.norms._affine import broadcast_affine, check_affine
from normjax.norms._per_sample import PerSampleNorm, spatial_axes, spatial_axes_argument
from normjax.statistics import _kinds, _measure, _normalize
from normjax.statistics._types import Array, Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class GroupNorm(PerSampleNorm):
    """The value behind `group_norm`; see there."""

    factory: ClassVar[str] = "group_norm"

    groups: int | None = None
    group_size: int | None = None
    axes: tuple[int, ...] | None = None
    impl: _dispatch.Impl = "xla"

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the axes averaged over once the channels are `[groups, channels of a group]`."""
        return (*self._space(ndim), ndim)

    def _space(self, ndim: int) -> tuple[int, ...]:
        return spatial_axes(self.axes, ndim, self.factory)

    def features(self, ndim: int) -> tuple[int, ...]:
        """Return the last axis."""
        return (ndim - 1,)

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[Affine, PyTree]:
        """Return `(Affine, ())`, the affine of the shape of the channels; `key` is not used."""
        group_count(shape[-1], self.groups, self.group_size, self.factory)
        return super().init(shape, dtype, key=key)

    def measure(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Return mean and variance of each group of each sample."""
        groups = group_count(x.shape[-1], self.groups, self.group_size, self.factory)
        channels = _dispatch.kernel_moments(self, x, self._space(x.ndim), mask)
        if channels is not None:
            apart = jax.tree.map(lambda v: split(v, groups), channels)
            return _kinds.merge_axis(apart, axis=-1)
        return _measure.moments(split(x, groups), self.averaged(x.ndim), mask=split(mask, groups))

    def by_kernel(
        self, params: Affine, measured: Moments, x: jax.Array, mask: Array | None
    ) -> jax.Array | None:
        """Normalize each channel with its group's statistics."""
        if self.impl == "xla":
            return None
        size = x.shape[-1] // measured.mean.shape[-1]
        each = jax.tree.map(lambda s: jnp.repeat(s, size, axis=-1), measured)
        return _dispatch.kernel_standardize(self, params, each, x, self._space(x.ndim), mask)

    def normalized(
        self, params: Affine, measured: Moments, x: jax.Array, mask: Array | None
    ) -> jax.Array:
        """Return x with each group of each sample normalized by itself."""
        groups = group_count(x.shape[-1], self.groups, self.group_size, self.factory)
        at = broadcast_affine(params, self.features(x.ndim), x.shape)
        y = _normalize.normalize(
            split(x, groups),
            measured,
            self.averaged(x.ndim),
            scale=split(at.scale, groups),
            bias=split(at.bias, groups),
            eps=self.eps,
            mask=split(mask, groups),
        )
        return y.reshape(x.shape)


def split(v: Any, groups: int) -> Any:
    """Split the last axis into `[groups, channels of a group]`, or two of size 1 if it is 1."""
    if v is None:
        return None
    channels = v.shape[-1]
    # A mask or an affine that only broadcasts over the channels stays one that broadcasts.
    return v[..., None] if channels == 1 else v.reshape(*v.shape[:-1], groups, channels // groups)


def group_count(channels: int, groups: int | None, group_size: int | None, who: str) -> int:
    """Return the number of groups, refusing channels that it does not divide."""
    parts = groups or group_size
    assert parts is not None
    if channels % parts:
        name = "groups" if groups else "group_size"
        fit = [n for n in range(1, channels + 1) if channels % n == 0]
        raise ValueError(
            f"{who}({name}={parts}) does not divide the {channels} channels of the last axis: "
            f"write {name}={min(fit, key=lambda n: abs(n - parts))} (divisors: {fit})"
        )
    return groups or channels // parts


def groups_argument(groups: int | None, group_size: int | None, who: str) -> int | None:
    """Return the argument `groups` of a factory, where exactly one of the two counts."""
    if groups is not None and group_size is not None:
        raise ValueError(
            f"{who} got groups={groups} and group_size={group_size}: write one of them"
        )
    if group_size is not None:
        _checks.positive_int("group_size", group_size)
        return None
    groups = 32 if groups is None else groups
    _checks.positive_int("groups", groups)
    return groups


@_hints.with_hints()
def group_norm(
    *,
    groups: int | None = None,
    group_size: int | None = None,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    impl: _dispatch.Impl = "xla",
) -> Norm:
    r"""Group normalization: space and a group of channels of one sample; channels are last.

    $$y_{n,s,c} = \gamma_c\,\frac{x_{n,s,c} - \mu_{n,g(c)}}{\sqrt{\sigma^2_{n,g(c)} + \epsilon}}
      + \beta_c, \qquad g(c) = \lfloor c\,G / C \rfloor$$

    Its ends are layer norm over all but the batch (`groups=1`) and instance norm
    (`group_size=1`). Nothing depends on the batch, so there is no state. The affine may be
    given per sample, as in `layer_norm`.

    Args:
        groups: number of groups; 32, the paper's, if no `group_size` is given.
        group_size: channels of a group, in place of `groups`.
        axes: axes of space, averaged over together with the channels of a group. `None`: all
            between the first and the last. Every axis that is not named is a batch axis, so
            x of `[time, batch, height, width, channels]` takes `axes=(2, 3)`; `()` keeps every
            position apart.
        eps: added to the variance; 1e-5 is that of the authors' code (Flax: 1e-6).
        use_scale: whether there is a gamma, one a channel.
        use_bias: whether there is a beta, one a channel.
        scale_init: start of gamma; the paper starts the last one of a residual block at 0.
        bias_init: start of beta.
        impl: `"xla"`, or `"kernel"`: kernels of ours where they serve (`normjax.kernels`), which
            no device has tried yet and a CPU interprets, slowly.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        ValueError: both `groups` and `group_size`, or one that does not divide the channels; a
            number outside its range.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.group_norm(groups=2)
        >>> params, state = norm.init((1, 1, 4))
        >>> y, state = norm.apply(params, state, jnp.array([[[1.0, 3, 20, 60]]]), stats="batch")
        >>> [round(v, 3) for v in y[0, 0].tolist()]
        [-1.0, 1.0, -1.0, 1.0]

    Reference:
        Wu, He, "Group Normalization", 2018.
    """
    groups = groups_argument(groups, group_size, "group_norm")
    check_affine(eps, scale_init, bias_init)
    return GroupNorm(
        groups=groups,
        group_size=group_size,
        axes=spatial_axes_argument(axes),
        eps=eps,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
        impl=_dispatch.check(impl),
    )
