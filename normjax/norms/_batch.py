"""Batch normalization: statistics over the batch, with running averages for inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import jax

from normjax._internal import _checks, _hints
from normjax.base import Affine, Call, Norm
from normjax.norms._affine import check_affine, check_running, initial_affine
from normjax.statistics import _core, _running
from normjax.statistics._shapes import broadcast_affine
from normjax.statistics._types import Accumulator, Debias, Moments, Running


@dataclasses.dataclass(frozen=True, repr=False)
class BatchNorm(Norm):
    """Batch normalization as a value; made by `batch_norm`."""

    factory: ClassVar[str] = "batch_norm"
    stateful: ClassVar[bool] = True
    hyper_names: ClassVar[tuple[str, ...]] = ("decay",)

    axes: int | Sequence[int] | None = None
    eps: float = 1e-5
    decay: float = 0.99
    correction: int = 0
    use_scale: bool = True
    use_bias: bool = True
    scale_init: float = 1.0
    bias_init: float = 0.0
    axis_index_groups: Sequence[Sequence[int]] | None = None
    impl: _core.Impl = "xla"
    allow_single: bool = False
    compensated: bool = False
    debias: Debias = False

    def __post_init__(self) -> None:
        """Check the fields and bring axes and groups into canonical form."""
        check_affine(self.scale_init, self.bias_init, self.eps)
        check_running(self.decay, self.correction, self.debias)
        _checks.set_field(self, "axes", _checks.axes(self.axes))
        _checks.set_field(self, "axis_index_groups", _checks.groups(self.axis_index_groups))
        _checks.one_of("impl", self.impl, get_args(_core.Impl))

    def start(
        self, shape: tuple[int, ...], dtype: Any, key: jax.Array | None
    ) -> tuple[Affine, Running]:
        """Return `(Affine, Running)` of the shape of the features."""
        del key
        features = tuple(shape[a] for a in self.feature_axes(len(shape)))
        running = _running.initial_running(
            features, dtype, compensated=self.compensated, debiased=self.debias
        )
        return initial_affine(self, features, dtype), running

    def measure(self, params: Affine, x: jax.Array, call: Call) -> Moments:
        """Measure this batch over all devices of `axis_name`."""
        del params
        axes = _checks.resolve_axes(self.axes, x.ndim)
        # Groups of devices have a meaning only together with a device axis.
        groups = self.axis_index_groups if call.axis_name is not None else None
        return _core.moments(
            x,
            axes,
            call.mask,
            call.axis_name,
            groups,
            impl=self.impl,
            dtype=call.dtype,
            at_once=call.at_once,
        )

    def transform(
        self,
        params: Affine,
        state: Running | Accumulator,
        measured: Moments | None,
        x: jax.Array,
        call: Call,
    ) -> jax.Array:
        """Normalize with this batch's statistics or the running ones."""
        axes = _checks.resolve_axes(self.axes, x.ndim)
        features = tuple(a for a in range(x.ndim) if a not in axes)
        m = _running.select(state, measured, call.stats)
        of_features = tuple(x.shape[a] for a in features)
        # In mode "batch" these are measured, and `update` checks the state.
        if getattr(getattr(m, "mean", None), "shape", None) != of_features:
            _checks.same_features(state, of_features, self.factory)
        scale, bias = broadcast_affine(params, features, x.shape)
        return _core.normalize(
            x, m, axes, scale, bias, self.eps, call.mask, impl=self.impl, dtype=call.dtype
        )

    def update(
        self, state: Running | Accumulator, measured: Moments | None, call: Call
    ) -> Running | Accumulator:
        """Update the running average, skipping empty and nonfinite batches."""
        decay = (call.hyper or {}).get("decay", self.decay)
        return _running.accumulate(
            state,
            measured,
            stats=call.stats,
            decay=decay,
            correction=self.correction,
            debias=self.debias,
        )

    def feature_axes(self, ndim: int) -> tuple[int, ...]:
        """Return the axes that are not averaged over."""
        axes = _checks.resolve_axes(self.axes, ndim)
        return tuple(a for a in range(ndim) if a not in axes)


@_hints.with_hints()
def batch_norm(
    *,
    axes: int | Sequence[int] | None = None,
    eps: float = 1e-5,
    decay: float = 0.99,
    correction: int = 0,
    use_scale: bool = True,
    use_bias: bool = True,
    scale_init: float = 1.0,
    bias_init: float = 0.0,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    impl: Literal["xla", "kernel"] = "xla",
    allow_single: bool = False,
    compensated: bool = False,
    debias: Debias = False,
) -> Norm:
    r"""Batch normalization: normalizes each feature over the batch, and over space if there is one.

    $$y = \gamma\,\frac{x - \mu_B}{\sqrt{\sigma_B^2 + \epsilon}} + \beta, \qquad
      \text{running} \leftarrow d \cdot \text{running} + (1 - d) \cdot (\mu_B, \sigma_B^2)$$

    The state is `Running(mean, var)`; it is initially 0 and 1, has Flax's layout, and is at least
    float32. A batch that is fully masked, or not finite, leaves it unchanged.

    Args:
        axes: axes averaged over. `None`, all but the last, gives a convolution one mean and
            variance per feature map; `(0,)` gives one per activation.
        eps: added to the variance; the paper gives no value, most libraries use 1e-5.
        decay: weight of the old running value, in [0, 1]; PyTorch's momentum is 1 - decay. May be
            given at each call as `hyper={"decay": d}`.
        correction: variance that is *stored*: 0 the biased one, as Flax does, 1 the biased one
            times n/(n-1), as the paper and PyTorch do. A batch is always normalized with the
            biased variance.
        use_scale: whether there is a gamma.
        use_bias: whether there is a beta.
        scale_init: initial gamma; with 0 a residual branch is initially the identity, 0.1 is the
            value of the recurrent batch norm paper.
        bias_init: initial beta.
        axis_index_groups: groups of device indices whose statistics are pooled separately, with
            `axis_name`.
        impl: `"xla"`, or `"kernel"` to use the kernels of `normjax.kernels` where possible. On an
            H100 they gain nothing; no TPU has run them. A CPU runs the plain formulas.
        allow_single: whether a statistic may be that of a single value in training, as in a batch
            of one without space. Its variance is 0: the output is the bias, and the running
            variance moves towards 0. Else it is an error, where shapes or a mask tell it; a mask
            that is traced has no values to tell it by.
        compensated: whether the running statistics carry what float32 leaves out of them, for
            decays of 0.999 and beyond: two more arrays in the state, `mean_error` and
            `var_error`. Without them a running value may stay 6e-8 / (1 - decay) of itself away
            from the exact average; with them, 1e-6.
        debias: whether running averages leave out the 0 and 1 that they start from: the first
            batch replaces them, so that mode `"running"` is right from the first update on. The
            state has one array more, `weight`, and no longer Flax's layout. `"warmup"` also lets
            the decay grow with the number of updates n, from 0 at the first: it is at most
            (n - 1) / (n + 8), so that a young average follows weights that move fast.

    Returns:
        A `Norm` with params `Affine` and state `Running`.

    Raises:
        TypeError: `scale_init` or `bias_init` is not a plain number.
        ValueError: a number is outside its range, or `axes` are empty or repeat an axis.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.batch_norm(decay=0.5)
        >>> params, state = norm.init((1, 3))
        >>> x = jnp.arange(12.0).reshape(4, 3)
        >>> y, state = norm.apply(params, state, x, stats="batch")
        >>> state.mean.tolist()
        [2.25, 2.75, 3.25]

    Reference:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", 2015.
    """
    return BatchNorm(**locals())
