"""Ghost batch norm: virtual batches inside a large one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax._internal import _checks, _hints
from normjax.base import Affine, Hyper, Norm, Stats
from normjax.norms._batch import BatchNorm, batch_norm, fields_of
from normjax.statistics import _kinds, _measure, _normalize, _shapes
from normjax.statistics._types import Array, AxisName, Moments, PyTree


class GhostMoments(NamedTuple):
    """What `ghost_batch_norm` measures: each virtual batch, and all of them together.

    Attributes:
        groups: `[groups, *features]`, moments of each virtual batch of this device.
        whole: `[*features]`, moments of the whole batch over all devices.
    """

    groups: Moments
    whole: Moments


@dataclasses.dataclass(frozen=True, repr=False)
class GhostBatchNorm(BatchNorm):
    """The value behind `ghost_batch_norm`; see there."""

    factory: ClassVar[str] = "ghost_batch_norm"

    size: int = dataclasses.field(kw_only=True)

    def moments(
        self, params: Affine, x: Array, *, mask: Array | None = None, axis_name: AxisName = None
    ) -> Any:
        """Measure each virtual batch; only what is kept is pooled over `axis_name`."""
        del params
        xs, masks, axes, _ = self._split(jnp.asarray(x), mask)
        groups = _measure.moments(xs, axes, mask=masks)
        whole = _measure.pool(_kinds.merge_axis(groups), axis_name, self.axis_index_groups)
        return GhostMoments(groups, whole)

    def transform(
        self,
        params: Affine,
        state: PyTree,
        measured: Any,
        x: Array,
        *,
        stats: Stats,
        mask: Array | None = None,
        hyper: Hyper = None,
    ) -> jax.Array:
        """Normalize each virtual batch by itself, or all with the kept statistics."""
        if stats == "running":
            return super().transform(params, state, None, x, stats=stats, mask=mask)
        x = jnp.asarray(x)
        xs, masks, axes, join = self._split(x, mask)
        kept = tuple(a + 1 for a in self._kept(x.ndim))
        scale, bias = (
            None if v is None else _shapes.expand(v, kept, xs.ndim)
            for v in (params.scale, params.bias)
        )
        return join(
            _normalize.normalize(
                xs, measured.groups, axes, scale=scale, bias=bias, eps=self.eps, mask=masks
            )
        )

    def update(self, state: PyTree, measured: Any, *, stats: Stats, hyper: Hyper = None) -> Any:
        """Move the running average by the whole batch, as batch norm does."""
        whole = None if measured is None else measured.whole
        return super().update(state, whole, stats=stats, hyper=hyper)

    def _split(self, x: jax.Array, mask: Array | None) -> tuple[Any, Any, tuple[int, ...], Any]:
        """Return x and mask as `[groups, members, ...]`, axes to average there, and the way back.

        The groups are as even as can be, so that no remainder of one sample is normalized
        with itself; shorter ones are padded with masked copies.
        """
        axes = _checks.resolve_axes(self.axes, x.ndim)
        if 0 not in axes:
            raise ValueError(
                f"axes={self.axes} leaves out axis 0, the batch, which ghost_batch_norm divides: "
                "write axes=(0, ...) with the batch first"
            )
        batch = x.shape[0]
        count = max(-(-batch // self.size), 1)
        members = -(-batch // count)
        axes = tuple(a + 1 for a in axes)
        if mask is not None:
            mask = jnp.broadcast_to(mask, (batch, *mask.shape[1:]))
        if count * members == batch:

            def split(v: jax.Array) -> jax.Array:
                return v.reshape(count, members, *v.shape[1:])

            masks = None if mask is None else split(jnp.asarray(mask))
            return split(x), masks, axes, lambda y: y.reshape(x.shape)
        sizes = [batch // count + (g < batch % count) for g in range(count)]
        starts = np.cumsum([0, *sizes[:-1]])
        slot = np.arange(members)
        real = slot < np.array(sizes)[:, None]
        where = np.where(real, starts[:, None] + slot, starts[:, None])
        there = jnp.asarray(real).reshape(real.shape + (1,) * (x.ndim - 1))
        masks = there if mask is None else there & jnp.asarray(mask)[where]
        return x[where], masks, axes, lambda y: y[real.nonzero()]


@_hints.with_hints()
def ghost_batch_norm(
    *,
    size: int,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    decay: float = 0.99,
    correction: int = 0,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Norm:
    r"""Ghost batch normalization: the statistics of small virtual batches inside a large one.

    $$y = \gamma\,\frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} + \beta
      \quad\text{for } x \text{ in virtual batch } g$$

    The running statistics are those of the whole batch, merged exactly, so evaluation is that
    of `batch_norm`. A batch that `size` does not divide is cut into as few virtual batches as
    `size` allows, as even as can be: 10 at size 4 gives 4, 3 and 3. Virtual batches never span
    devices; `axis_name` pools what is kept.

    Args:
        size: most samples in a virtual batch; the paper's is 128.
        axes: as in `batch_norm`, with axis 0 among them.
        eps: added to the variance.
        decay: weight of the old running value, in [0, 1]; also `hyper={"decay": d}`.
        correction: as in `batch_norm`.
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: start of gamma.
        bias_init: start of beta.
        axis_index_groups: as in `batch_norm`, for what is kept.

    Returns:
        A `Norm` with params `Affine` and state `Running`.

    Raises:
        ValueError: a number outside its range; axes without the batch.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.ghost_batch_norm(size=2)
        >>> params, state = norm.init((1, 1))
        >>> x = jnp.array([[0.0], [2.0], [10.0], [30.0]])
        >>> y, state = norm.apply(params, state, x, stats="batch")
        >>> [round(v, 3) for v in y.ravel().tolist()]
        [-1.0, 1.0, -1.0, 1.0]

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the generalization
        gap in large batch training of neural networks", 2017, algorithm 1.
    """
    _checks.positive_int("size", size)
    plain = batch_norm(
        axes=axes,
        eps=eps,
        decay=decay,
        correction=correction,
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=scale_init,
        bias_init=bias_init,
        axis_index_groups=axis_index_groups,
    )
    return GhostBatchNorm(**fields_of(plain), size=size)
