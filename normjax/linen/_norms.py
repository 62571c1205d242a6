"""Drop-in replacements of Flax's Linen norms: change the import and keep the rest.

Fields, defaults, names and shapes of variables and errors are inherited from Flax's classes, so
checkpoints load both ways. What is computed comes from the library's one numerical core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax._flax import _padding, _semantics
from normjax._flax._variables import FILLED, keep_running, with_running
from normjax.linen._lifted import StaticArguments
from normjax.linen._wrap import COLLECTION, check_scanned
from normjax.state import _names
from normjax.statistics._types import Array, Running


class BatchNorm(StaticArguments, nn.BatchNorm):
    """Batch normalization, as `flax.linen.BatchNorm`.

    What differs: the variance never cancels, whatever `use_fast_variance` says; under `mask`
    and `axis_name` every value counts alike, however uneven the devices; a batch that is fully
    masked or not finite leaves `batch_stats` as they are; statistics are taken in at least
    float32 also with `force_float32_reductions=False`, which then only says how they are stored.

    Attributes:
        correction: variance that is stored: 0 the biased one (Flax), 1 times n/(n-1) (the
            paper, PyTorch).
        allow_single: whether a statistic may be that of a single value in training, as in a batch
            of one, which Flax's layer takes: its variance is 0, so that the output is the bias.
            Else that is an error.
        axis: the feature axis or axes. Further attributes: Flax's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import linen as nn
        >>> module, x = nn.BatchNorm(momentum=0.9), jnp.ones((4, 3))
        >>> variables = module.init(jax.random.key(0), x, use_running_average=False)
        >>> y, new = module.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"])

    Reference:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", 2015.
    """

    axis: Any = -1  # Flax takes a tuple as well, and says int.
    correction: int = 0
    allow_single: bool = False

    @nn.compact
    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> jax.Array:
        """Normalize `x`; statistics move unless `use_running_average` or initializing.

        Args:
            x: input; integers are taken as float32.
            use_running_average: normalize with `batch_stats`, if the module does not say.
            mask: nonzero where a value counts for the statistics, broadcastable to `x`.

        Returns:
            Output of the shape of `x` and of `dtype`.
        """
        running = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        x = jnp.asarray(x)
        features = _semantics.axes_of(x.ndim, self.axis)
        if mask is not None:
            mask = _semantics.mask_of(mask, x.shape)
        accumulating = self.has_variable(COLLECTION, "measured")  # in `population_update`
        names = ("running", "measured") if accumulating else Running._fields
        if not self.has_variable(COLLECTION, names[0]):
            check_scanned(self, names[0])
        shape = [x.shape[a] for a in features]
        stored = jnp.float32 if self.force_float32_reductions else self.param_dtype
        initial = {"mean": jnp.zeros, "var": jnp.ones}
        variables = {
            name: self.variable(COLLECTION, name, lambda n=name: initial[n](shape, stored))
            for name in names
        }
        values = {name: variable.value for name, variable in variables.items()}
        state: Any = _names.read_statistics(values) if accumulating else Running(**values)
        read = state
        if running and self.has_variable(COLLECTION, FILLED):
            filled: Any = self.get_variable(COLLECTION, FILLED)
            read = with_running(state, Running(**filled))
        scale, bias = _affine(self, x, features)
        y, new = _semantics.batch_norm(
            x,
            read,
            features,
            scale,
            bias,
            running=running,
            eps=self.epsilon,
            momentum=self.momentum,
            correction=self.correction,
            dtype=self.dtype,
            mask=_padding.mask(mask, x.shape, "BatchNorm"),
            # There is no device axis yet while initializing.
            axis_name=None if self.is_initializing() else self.axis_name,
            axis_index_groups=self.axis_index_groups,
            allow_single=self.allow_single or self.is_initializing(),
        )
        if accumulating or not (running or self.is_initializing()):
            if accumulating:
                new = keep_running(new, state)
            values = _names.to_dict(new) if accumulating else new._asdict()
            for name, variable in variables.items():
                variable.value = values[name]
        return y


class LayerNorm(nn.LayerNorm):
    """Layer normalization, as `flax.linen.LayerNorm`.

    What differs: the variance never cancels, whatever `use_fast_variance` says; a slice that is
    fully masked is finite, in value and gradient; under `mask` and `axis_name` every value counts
    alike.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import linen as nn
        >>> x = 1e4 + jax.random.normal(jax.random.key(0), (2, 512))
        >>> y, _ = nn.LayerNorm().init_with_output(jax.random.key(1), x)
        >>> round(float(y.std()), 3)
        1.0

    Reference:
        Ba, Kiros, Hinton, "Layer Normalization", 2016.
    """

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is nonzero where a value counts, broadcastable to `x`."""
        x = jnp.asarray(x)
        return _sample_norm(self, x, self.reduction_axes, self.feature_axes, mask)


class RMSNorm(nn.RMSNorm):
    """Root mean square layer normalization, as `flax.linen.RMSNorm`.

    What differs: a slice that is fully masked is finite, in value and gradient; under `mask` and
    `axis_name` every value counts alike.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import linen as nn
        >>> y, _ = nn.RMSNorm().init_with_output(jax.random.key(0), jnp.full((1, 2), 3.0))
        >>> y.round(3).tolist()
        [[1.0, 1.0]]

    Reference:
        Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019.
    """

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is nonzero where a value counts, broadcastable to `x`."""
        x = jnp.asarray(x)
        return _sample_norm(self, x, self.reduction_axes, self.feature_axes, mask, centred=False)


class GroupNorm(nn.GroupNorm):
    """Group normalization, as `flax.linen.GroupNorm`.

    What differs: the variance never cancels, whatever `use_fast_variance` says; a slice that is
    fully masked is finite, in value and gradient; under `mask` and `axis_name` every value counts
    alike; and a mask of one channel, `[batch, height, width, 1]`, need not be repeated for each
    channel.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import linen as nn
        >>> x = jnp.arange(8.0).reshape(1, 2, 4)
        >>> y, _ = nn.GroupNorm(num_groups=2).init_with_output(jax.random.key(0), x)
        >>> [round(float(v), 2) for v in y[0, 0]]
        [-1.21, -0.73, -1.21, -0.73]

    Reference:
        Wu, He, "Group Normalization", 2018.
    """

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is nonzero where a value counts, broadcastable to `x`."""
        x = jnp.asarray(x)
        axes = _semantics.group_axes(x.ndim, self.reduction_axes)
        groups = _semantics.group_count(x.shape[-1], self.num_groups, self.group_size)
        scale, bias = _affine(self, x, (x.ndim - 1,))
        return _semantics.group_norm(x, axes, groups, scale, bias, mask=mask, **_options(self))


class InstanceNorm(nn.InstanceNorm):
    """Instance normalization, as `flax.linen.InstanceNorm`.

    What differs: the variance never cancels, whatever `use_fast_variance` says; a slice that is
    fully masked is finite, in value and gradient; under `mask` and `axis_name` every value counts
    alike.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import linen as nn
        >>> x = jnp.array([[[1.0], [3.0]], [[5.0], [9.0]]])
        >>> y, _ = nn.InstanceNorm().init_with_output(jax.random.key(0), x)
        >>> [round(float(v), 3) for v in y.ravel()]
        [-1.0, 1.0, -1.0, 1.0]

    Reference:
        Ulyanov, Vedaldi, Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
        Stylization", 2016.
    """

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is nonzero where a value counts, broadcastable to `x`."""
        x = jnp.asarray(x)
        axes, features = _semantics.instance_axes(x.ndim, self.feature_axes)
        return _sample_norm(self, x, axes, features, mask)


def _sample_norm(
    module: Any, x: jax.Array, axes: Any, features: Any, mask: Array | None, *, centred: bool = True
) -> jax.Array:
    features = _semantics.axes_of(x.ndim, features)
    scale, bias = _affine(module, x, features)
    return _semantics.sample_norm(
        x,
        _semantics.axes_of(x.ndim, axes),
        features,
        scale,
        bias,
        mask=mask,
        centred=centred,
        **_options(module),
    )


def _options(module: Any) -> dict[str, Any]:
    return {
        "eps": module.epsilon,
        "dtype": module.dtype,
        # There is no device axis yet while initializing.
        "axis_name": None if module.is_initializing() else module.axis_name,
        "axis_index_groups": module.axis_index_groups,
    }


def _affine(
    module: Any, x: jax.Array, features: Sequence[int]
) -> tuple[Array | None, Array | None]:
    """Declare `scale` and `bias` in Flax's order, on which the keys of initializers depend."""
    shape = [x.shape[a] for a in features]
    params: list[Array | None] = []
    for name in ("scale", "bias"):
        value = None
        if getattr(module, f"use_{name}", False):
            init = getattr(module, f"{name}_init")
            value = module.param(name, init, shape, module.param_dtype)
            if not module.force_float32_reductions:
                value = jnp.asarray(value, module.param_dtype)
        params.append(value)
    return params[0], params[1]
