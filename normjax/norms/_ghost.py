"""Ghost batch norm: virtual batches inside a large one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._batch import BatchNorm
from normjax.statistics import _core, _kinds, _shapes
from normjax.statistics._types import Array, Moments, PyTree


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
    """Ghost batch normalization as a value; made by `ghost_batch_norm`."""

    factory: ClassVar[str] = "ghost_batch_norm"

    size: int = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges and axes that name nothing."""
        super().__post_init__()
        _checks.positive_int("size", self.size)

    def measure(self, params: Affine, x: jax.Array, call: Call) -> Any:
        """Measure each virtual batch; only what is kept is pooled over `axis_name`."""
        del params
        xs, masks, axes, _ = self._split(x, call.mask)
        groups = _core.moments(xs, axes, masks)
        whole = _core.pool(_kinds.merge_axis(groups), call.axis_name, self.axis_index_groups)
        return GhostMoments(groups, whole)

    def transform(
        self, params: Affine, state: PyTree, measured: Any, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize each virtual batch alone, or all with the running statistics."""
        if call.stats == "running":
            return super().transform(params, state, None, x, call)
        xs, masks, axes, join = self._split(x, call.mask)
        features = tuple(a + 1 for a in self.feature_axes(x.ndim))
        scale, bias = (
            None if v is None else _shapes.expand(v, features, xs.ndim)
            for v in (params.scale, params.bias)
        )
        return join(_core.normalize(xs, measured.groups, axes, scale, bias, self.eps, masks))

    def update(self, state: PyTree, measured: Any, call: Call) -> Any:
        """Move the running average by the whole batch, as batch norm does."""
        whole = None if measured is None else measured.whole
        return super().update(state, whole, call)

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
    return GhostBatchNorm(**locals())
