"""Group normalization, over space and a group of channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Call, Norm
from normjax.norms._per_sample import PerSampleNorm, spatial_axes, spatial_axes_argument
from normjax.statistics import _core, _merge, _segments
from normjax.statistics._shapes import broadcast_affine
from normjax.statistics._types import Moments, PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class GroupNorm(PerSampleNorm):
    """Group normalization as a value; made by `group_norm`."""

    factory: ClassVar[str] = "group_norm"
    segmented: ClassVar[bool] = True

    groups: int | None = None
    group_size: int | None = None
    axes: int | Sequence[int] | None = None
    impl: _core.Impl = "xla"

    def __post_init__(self) -> None:
        """Check the fields; by default the channels are divided into 32 groups."""
        super().__post_init__()
        groups = groups_argument(self.groups, self.group_size, self.factory)
        _checks.set_field(self, "groups", groups)
        _checks.set_field(self, "axes", spatial_axes_argument(self.axes))
        _checks.one_of("impl", self.impl, get_args(_core.Impl))

    def averaged(self, ndim: int) -> tuple[int, ...]:
        """Return the averaged axes of x split into `[..., groups, channels per group]`."""
        return (*self._space(ndim), ndim)

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[Any, PyTree]:
        """Return `(Affine, ())`, the affine of the shape of the channels."""
        self.count(shape[-1])
        return super().start(shape, dtype, key)

    def measure(self, params: Any, x: jax.Array, call: Call) -> Moments:
        """Measure each group of each sample."""
        del params
        groups = self.count(x.shape[-1])
        if self._has_kernel(x, call):  # measures single channels; merge those of a group
            channels = _core.moments(
                x, self._space(x.ndim), call.mask, impl="kernel", dtype=call.dtype
            )
            return _merge.merge_axis(jax.tree.map(lambda v: split(v, groups), channels), axis=-1)
        mask = split(call.mask, groups)
        if _segments.divides(call.segments, self.averaged(x.ndim)):
            return _segments.moments(split(x, groups), self.averaged(x.ndim), mask, call.segments)
        return _core.moments(split(x, groups), self.averaged(x.ndim), mask, dtype=call.dtype)

    def transform(
        self, params: Any, state: PyTree, measured: Moments, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize each group of each sample with its own statistics."""
        del state
        groups = self.count(x.shape[-1])
        scale, bias = broadcast_affine(params, self.features(x.ndim), x.shape)
        space = self._space(x.ndim)
        if self._has_kernel(x, call) and _core.is_one_affine(x, space, scale, bias):
            size = x.shape[-1] // groups
            # Back to one mean and variance per channel: [..., groups] becomes [..., channels].
            per_channel = jax.tree.map(lambda s: jnp.repeat(s, size, axis=-1), measured)
            return _core.normalize(
                x,
                per_channel,
                space,
                scale,
                bias,
                self.eps,
                call.mask,
                impl="kernel",
                dtype=call.dtype,
            )
        arguments = (
            split(x, groups),  # [..., groups, channels per group]
            measured,
            self.averaged(x.ndim),
            split(scale, groups),
            split(bias, groups),
            self.eps,
            split(call.mask, groups),
        )
        if _segments.divides(call.segments, self.averaged(x.ndim)):
            y = _segments.normalize(*arguments, call.segments)
        else:
            y = _core.normalize(*arguments)
        return y.reshape(x.shape)

    def count(self, channels: int) -> int:
        """Return the number of groups that `channels` are divided into."""
        return group_count(channels, self.groups, self.group_size, self.factory)

    def _has_kernel(self, x: jax.Array, call: Call) -> bool:
        """Whether a kernel is selected and can be used for this call."""
        if self.impl == "xla" or call.segments is not None:
            return False
        return _core.column_kernel(x, self._space(x.ndim), call.mask) is not None

    def _space(self, ndim: int) -> tuple[int, ...]:
        """Return the spatial axes."""
        return spatial_axes(self.axes, ndim, self.factory)


def split(v: Any, groups: int) -> Any:
    """Split the last axis into `[groups, channels per group]`, or `[1, 1]` if its size is 1."""
    if v is None:
        return None
    channels = v.shape[-1]
    # A mask or an affine that broadcasts over the channels still does so after the split.
    return v[..., None] if channels == 1 else v.reshape(*v.shape[:-1], groups, channels // groups)


def group_count(channels: int, groups: int | None, group_size: int | None, who: str) -> int:
    """Return the number of groups; raise if the setting does not divide the channels."""
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
    """Return the number of groups, 32 by default, or `None` if `group_size` is set."""
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
    impl: Literal["xla", "kernel"] = "xla",
) -> Norm:
    r"""Group normalization: over space and a group of channels of one sample; channels are last.

    $$y_{n,s,c} = \gamma_c\,\frac{x_{n,s,c} - \mu_{n,g(c)}}{\sqrt{\sigma^2_{n,g(c)} + \epsilon}}
      + \beta_c, \qquad g(c) = \lfloor c\,G / C \rfloor$$

    `groups=1` is layer norm over all axes but the batch, `group_size=1` is instance norm. Nothing
    depends on the batch, so there is no state. Scale and bias may have values for each sample, as
    in `layer_norm`.

    Args:
        groups: number of groups; by default 32, as in the paper, unless `group_size` is set.
        group_size: channels per group, instead of `groups`.
        axes: spatial axes, averaged over together with the channels of a group. `None`: all
            between the first and the last. All other axes but the last are batch axes, so x of
            shape `[time, batch, height, width, channels]` takes `axes=(2, 3)`; with `()` every
            position is normalized separately.
        eps: added to the variance; 1e-5 as in the authors' code (Flax: 1e-6).
        use_scale: whether there is a gamma, one per channel.
        use_bias: whether there is a beta, one per channel.
        scale_init: initial gamma; the paper uses 0 for the last norm of a residual block.
        bias_init: initial beta.
        impl: `"xla"`, or `"kernel"` to use the kernels of `normjax.kernels` where possible. An
            H100 has run them and not timed them; no TPU has run them. A CPU runs the plain
            formulas.

    Returns:
        A `Norm` with params `Affine` and no state.

    Raises:
        TypeError: `scale_init` or `bias_init` is not a plain number.
        ValueError: both `groups` and `group_size` are set, the one that is set does not divide the
            channels, or a number is outside its range.

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
    return GroupNorm(**locals())
