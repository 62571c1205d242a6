"""Norms that whiten the batch: `decorrelated_batch_norm`, `iterative_norm`."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._affine import check_affine, check_running, initial_affine
from normjax.norms._inverse_root import inverse_root, newton_inverse_root
from normjax.norms._whitening_matrix import Whitening, _ridge, whiten
from normjax.statistics import _core, _formulas, _running, _shapes
from normjax.statistics._types import Array, Debias, PyTree, RunningCov, SecondMoments


@dataclasses.dataclass(frozen=True, repr=False)
class WhiteningNorm(Norm):
    """Base class of whitening norms; `matrix` computes a whitening matrix from a covariance."""

    stateful: ClassVar[bool] = True
    hyper_names: ClassVar[tuple[str, ...]] = ("decay",)

    group_size: int | None = None
    axes: int | Sequence[int] | None = None
    eps: float = 1e-5
    decay: float = 0.9
    correction: int = 0
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0
    axis_index_groups: Sequence[Sequence[int]] | None = None
    allow_single: bool = False
    compensated: bool = False
    debias: Debias = False

    @abc.abstractmethod
    def matrix(self, cov: jax.Array) -> jax.Array:
        """Return the whitening matrices of covariances that already include eps."""

    def __post_init__(self) -> None:
        """Check the fields and bring axes and groups into canonical form."""
        if self.group_size is not None:
            _checks.positive_int("group_size", self.group_size)
        check_affine(self.scale_init, self.bias_init, self.eps)
        check_running(self.decay, self.correction, self.debias)
        _checks.set_field(self, "axes", _checks.axes(self.axes))
        _checks.set_field(self, "axis_index_groups", _checks.groups(self.axis_index_groups))

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[Affine, RunningCov]:
        """Return `(Affine, RunningCov)`; the mean is `[*sets, groups, group_size]`."""
        del key
        averaged = self._axes(len(shape))
        features = tuple(size for a, size in enumerate(shape) if a not in averaged)
        groups = (*features[:-1], *self._groups(features[-1]))
        wide = _shapes.stat_dtype(dtype)
        # The initial covariance of each group is the identity.
        eyes = jnp.broadcast_to(jnp.eye(groups[-1], dtype=wide), (*groups, groups[-1]))
        running = RunningCov(jnp.zeros(groups, wide), eyes)
        running = _running.extended(running, self.compensated, self.debias)
        return initial_affine(self, features, dtype), running

    def measure(self, params: Affine, x: jax.Array, call: Call) -> SecondMoments:
        """Measure mean and covariance of each group over all devices of `axis_name`."""
        del params
        groups = self.axis_index_groups if call.axis_name is not None else None
        return _core.second_moments(
            self._split(x),
            self._axes(x.ndim),
            self._split_mask(call.mask, x),
            call.axis_name,
            groups,
        )

    def transform(
        self,
        params: Affine,
        state: PyTree,
        measured: SecondMoments | None,
        x: jax.Array,
        call: Call,
    ) -> jax.Array:
        """Whiten with this batch's covariance or the running one."""
        axes = self._axes(x.ndim)
        m = _running.select(state, measured, call.stats)
        # Matrices are [*sets, groups, group_size, group_size]: each group is whitened on its own.
        fit = Whitening(self.matrix(_ridge(m.cov, self.eps)), m.mean)
        wide = x.astype(_shapes.stat_dtype(x.dtype))
        y = whiten(self._split(wide), fit, axes, mask=self._split_mask(call.mask, x)).reshape(
            x.shape
        )
        remaining = [a for a in range(x.ndim) if a not in axes]
        scale, bias = (
            None if v is None else _shapes.expand(v, remaining, x.ndim)
            for v in (params.scale, params.bias)
        )
        return _formulas.affine(y, scale, bias).astype(x.dtype)

    def update(self, state: PyTree, measured: SecondMoments | None, call: Call) -> PyTree:
        """Update the running statistics, skipping empty and nonfinite batches."""
        decay = (call.hyper or {}).get("decay", self.decay)
        return _running.accumulate(
            state,
            measured,
            stats=call.stats,
            decay=decay,
            correction=self.correction,
            debias=self.debias,
        )

    def _axes(self, ndim: int) -> tuple[int, ...]:
        """Return the averaged axes; raise if the last one is among them."""
        axes = _checks.resolve_axes(self.axes, ndim)
        if ndim - 1 in axes:
            raise ValueError(
                f"axes={self.axes} averages over the last axis, whose covariance is whitened: move "
                "the features last, jnp.moveaxis(x, features, -1)"
            )
        return axes

    def _groups(self, features: int) -> tuple[int, int]:
        """Return the number of groups and their size."""
        size = self.group_size or max(features, 1)
        if features % size:
            divisor = [d for d in range(1, size) if features % d == 0][-1]
            raise ValueError(
                f"group_size={size} does not divide {features} features: write, for example, "
                f"group_size={divisor}"
            )
        return features // size, size

    def _split(self, x: jax.Array) -> jax.Array:
        """Split the last axis: `[..., features]` becomes `[..., groups, group_size]`."""
        return x.reshape(*x.shape[:-1], *self._groups(x.shape[-1]))

    def _split_mask(self, mask: Array | None, x: jax.Array) -> jax.Array | None:
        if mask is None:
            return None
        mask = jnp.asarray(mask)
        # A mask of size 1 on the last axis broadcasts over the features, and does so when split.
        whole = mask.shape[-1] != 1 or x.shape[-1] == 1
        return self._split(mask) if whole else mask[..., None]


@dataclasses.dataclass(frozen=True, repr=False)
class DecorrelatedBatchNorm(WhiteningNorm):
    """Decorrelated batch normalization as a value; made by `decorrelated_batch_norm`."""

    factory: ClassVar[str] = "decorrelated_batch_norm"

    def matrix(self, cov: jax.Array) -> jax.Array:
        """Return the symmetric inverse root."""
        return inverse_root(cov, self.eps)


@dataclasses.dataclass(frozen=True, repr=False)
class IterativeNorm(WhiteningNorm):
    """Iterative normalization as a value; made by `iterative_norm`."""

    factory: ClassVar[str] = "iterative_norm"

    use_scale: bool = False
    use_bias: bool = False
    iterations: int = 5

    def __post_init__(self) -> None:
        """Check the fields and bring axes and groups into canonical form."""
        super().__post_init__()
        _checks.positive_int("iterations", self.iterations)

    def matrix(self, cov: jax.Array) -> jax.Array:
        """Return an approximation of the inverse root by Newton's method."""
        return newton_inverse_root(cov, self.iterations)


@_hints.with_hints()
def decorrelated_batch_norm(
    *,
    group_size: int | None = None,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    decay: float = 0.9,
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
    r"""Decorrelated batch normalization: whitens the features over the batch.

    $$y = \gamma \odot (\Sigma_B + \epsilon I)^{-1/2}(x - \mu_B) + \beta$$

    The inverse root is the symmetric one (ZCA), which does not permute the features from batch
    to batch. Its gradient is finite even at equal eigenvalues, where the gradient through
    eigenvectors is not. In float32 the gradient is good to about 1e-7 v / eps^0.5 where the batch
    has no more vectors than features, and to 1e-7 v / eps where features are linearly dependent,
    with v the largest variance. Where either holds, take second derivatives forward over reverse:
    reverse mode twice is then wrong in float32.

    The state is the running mean and the running *covariance*, not an average of whitening
    matrices. Covariances of disjoint batches merge exactly, so devices, microbatches and
    `population_statistics` give the covariance of all the data; an average of inverse roots is
    not the inverse root of any covariance. Evaluation computes one inverse root per call.

    Args:
        group_size: number of neighbouring features that are whitened together; must divide their
            number. `None` is all of them. A covariance needs more vectors than features, so small
            groups suit small batches.
        axes: axes averaged over, not the last; `None` is all but the last.
        eps: added to the variances.
        decay: weight of the old running statistics, in [0, 1]; also `hyper={"decay": d}`.
        correction: covariance that is stored: 0 the biased one, 1 the biased one times n/(n-1).
        use_scale: whether there is a gamma for each feature.
        use_bias: whether there is a beta.
        scale_init: initial gamma.
        bias_init: initial beta.
        axis_index_groups: as in `batch_norm`.
        allow_single: as in `batch_norm`.
        compensated: as in `batch_norm`.
        debias: as in `batch_norm`.

    Returns:
        A `Norm` with params `Affine` and state `RunningCov`.

    Raises:
        TypeError: `scale_init` or `bias_init` is not a plain number.
        ValueError: a number is outside its range, or groups or axes do not fit x.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> norm = nj.decorrelated_batch_norm(group_size=2)
        >>> params, state = norm.init((1, 4))
        >>> x = jax.random.normal(jax.random.key(0), (32, 4))
        >>> y, state = norm.apply(params, state, x, stats="batch")
        >>> bool(jnp.allclose(nj.second_moments(y[:, :2]).cov, jnp.eye(2), atol=1e-3))
        True

    Reference:
        Huang, Yang, Lang, Deng, "Decorrelated Batch Normalization", 2018.
    """
    return DecorrelatedBatchNorm(**locals())


@_hints.with_hints()
def iterative_norm(
    *,
    group_size: int | None = None,
    iterations: int = 5,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    decay: float = 0.9,
    correction: int = 0,
    use_scale: bool = False,
    use_bias: bool = False,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    allow_single: bool = False,
    compensated: bool = False,
    debias: Debias = False,
) -> Norm:
    r"""Iterative normalization: whitens over the batch by a few steps of Newton's method.

    $$S = \Sigma / \mathrm{tr}\,\Sigma, \quad P_0 = I, \quad
      P_{k+1} = \tfrac12(3 P_k - P_k^3 S), \quad
      y = \frac{P_T}{\sqrt{\mathrm{tr}\,\Sigma}}\,(x - \mu_B), \quad
      \Sigma = \Sigma_B + \epsilon I$$

    It needs matrix products only. A few iterations whiten the directions of large variance and
    leave the others small, so the noise of the batch is not amplified there. The state is the
    running covariance, for the reasons given in `decorrelated_batch_norm`; evaluation runs the
    same iterations on it.

    Args:
        group_size: number of neighbouring features that are whitened together; must divide their
            number. `None` is all of them. The authors' ImageNet runs use 64.
        iterations: T, number of Newton steps.
        axes: axes averaged over, not the last; `None` is all but the last.
        eps: added to the variances.
        decay: weight of the old running statistics, in [0, 1]; also `hyper={"decay": d}`.
        correction: covariance that is stored: 0 the biased one, 1 the biased one times n/(n-1).
        use_scale: whether there is a gamma; off is the default of the authors' layer, and their
            models turn it on.
        use_bias: whether there is a beta; the same.
        scale_init: initial gamma.
        bias_init: initial beta.
        axis_index_groups: as in `batch_norm`.
        allow_single: as in `batch_norm`.
        compensated: as in `batch_norm`.
        debias: as in `batch_norm`.

    Returns:
        A `Norm` with params `Affine` and state `RunningCov`.

    Raises:
        TypeError: `scale_init` or `bias_init` is not a plain number.
        ValueError: a number is outside its range, or groups or axes do not fit x.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> norm = nj.iterative_norm()
        >>> params, state = norm.init((1, 2))
        >>> x = jax.random.normal(jax.random.key(0), (32, 2))
        >>> y, state = norm.apply(params, state, x, stats="batch")
        >>> bool(jnp.allclose(nj.second_moments(y).cov, jnp.eye(2), atol=1e-2))
        True

    Reference:
        Huang, Zhou, Zhu, Liu, Shao, "Iterative Normalization: Beyond Standardization towards
        Efficient Whitening", 2019, algorithm 1.
    """
    return IterativeNorm(**locals())
