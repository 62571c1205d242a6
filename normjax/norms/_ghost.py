"""Ghost batch normalization: normalizes small virtual batches inside a large one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax._internal import _checks, _hints, _single
from normjax._internal._exportable import exportable
from normjax.base import Affine, Call, Norm
from normjax.norms._batch import BatchNorm
from normjax.statistics import _core, _merge, _shapes
from normjax.statistics._types import Array, Debias, Moments, PyTree


@exportable
class GhostMoments(NamedTuple):
    """Statistics that `ghost_batch_norm` measures: of each virtual batch and of the whole batch.

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
        """Check the fields and bring axes and groups into canonical form."""
        super().__post_init__()
        _checks.positive_int("size", self.size)

    def measure(self, params: Affine, x: jax.Array, call: Call) -> Any:
        """Measure each virtual batch; only the running statistics are pooled over `axis_name`."""
        del params
        xs, masks, axes, _ = self._split(x, call.mask)
        groups = _core.moments(xs, axes, masks, dtype=call.dtype)
        own = _merge.merge_axis(groups)
        whole = _core.pool(own, call.axis_name, self.axis_index_groups, call.at_once)
        return GhostMoments(groups, whole)

    def transform(
        self, params: Affine, state: PyTree, measured: Any, x: jax.Array, call: Call
    ) -> jax.Array:
        """Normalize each virtual batch with its own statistics, or all with the running ones."""
        if call.stats == "running":
            return super().transform(params, state, None, x, call)
        xs, masks, axes, join = self._split(x, call.mask)
        # The smallest virtual batch has so many samples.
        if not self.allow_single and x.shape[0] // xs.shape[0] == 1:
            smallest = jax.tree.map(lambda leaf: leaf[-1], measured.groups)
            one = (1, *x.shape[1:])
            _single.check(self.factory, one, smallest, None, None, of=" of each virtual batch")
        # xs is [groups, members, ...]: every axis of x moved back by one.
        features = tuple(a + 1 for a in self.feature_axes(x.ndim))
        scale, bias = (
            None if v is None else _shapes.expand(v, features, xs.ndim)
            for v in (params.scale, params.bias)
        )
        return join(_core.normalize(xs, measured.groups, axes, scale, bias, self.eps, masks))

    def update(self, state: PyTree, measured: Any, call: Call) -> Any:
        """Update the running average with the whole batch, as batch norm does."""
        whole = None if measured is None else measured.whole
        return super().update(state, whole, call)

    def _split(self, x: jax.Array, mask: Array | None) -> tuple[Any, Any, tuple[int, ...], Any]:
        """Return x and mask as `[groups, members, ...]`, the axes to average, and the inverse.

        The groups are as even as possible, so that no single sample is left over and normalized
        with itself; shorter groups are padded with masked copies.
        """
        axes = _checks.resolve_axes(self.axes, x.ndim)
        if 0 not in axes:
            raise ValueError(
                f"axes={self.axes} leaves out axis 0, the batch, which ghost_batch_norm divides: "
                "write axes=(0, ...) with the batch first"
            )
        batch = x.shape[0]
        if not isinstance(batch, int):
            raise ValueError(
                f"ghost_batch_norm divides the batch, whose size is the symbol {batch}: export it "
                'with a batch of known size, or with stats="running"'
            )
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
        # Uneven groups: gather them by an index [groups, members]; a padded slot repeats the first
        # sample of its group and is masked.
        sizes = [batch // count + (g < batch % count) for g in range(count)]
        starts = np.cumsum([0, *sizes[:-1]])
        slot = np.arange(members)
        real = slot < np.array(sizes)[:, None]
        index = np.where(real, starts[:, None] + slot, starts[:, None])
        unpadded = jnp.asarray(real).reshape(real.shape + (1,) * (x.ndim - 1))
        masks = unpadded if mask is None else unpadded & jnp.asarray(mask)[index]
        return x[index], masks, axes, lambda y: y[real.nonzero()]


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
    allow_single: bool = False,
    compensated: bool = False,
    debias: Debias = False,
) -> Norm:
    r"""Ghost batch normalization: normalizes each small virtual batch of a large batch separately.

    $$y = \gamma\,\frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} + \beta
      \quad\text{for } x \text{ in virtual batch } g$$

    The running statistics are those of the whole batch, merged exactly, so in evaluation it is
    `batch_norm`. A batch that is not a multiple of `size` is split into as few virtual batches
    as possible, of sizes as even as possible: 10 at size 4 gives 4, 3 and 3. Virtual batches
    never span devices; `axis_name` pools the running statistics.

    Args:
        size: maximum number of samples in a virtual batch; 128 in the paper.
        axes: as in `batch_norm`; must include axis 0.
        eps: added to the variance.
        decay: weight of the old running value, in [0, 1]; also `hyper={"decay": d}`.
        correction: as in `batch_norm`.
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: initial gamma.
        bias_init: initial beta.
        axis_index_groups: as in `batch_norm`, for the running statistics.
        allow_single: as in `batch_norm`; also of a virtual batch.
        compensated: as in `batch_norm`.
        debias: as in `batch_norm`.

    Returns:
        A `Norm` with params `Affine` and state `Running`.

    Raises:
        TypeError: `scale_init` or `bias_init` is not a plain number.
        ValueError: a number is outside its range, or `axes` do not include the batch.

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
