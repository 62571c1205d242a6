"""Drop-in replacements of Flax's NNX norms: change the import and keep the rest.

Constructors, variables and errors are inherited from Flax's classes, so states load both ways.
What is computed comes from the library's one numerical core, the same as for `normjax.linen`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Flax's own default of `promote_dtype`, which has no public name; signatures must show the same.
from flax.nnx.nn.dtypes import promote_dtype as standard_promotion

from normjax._flax import _padding, _semantics
from normjax._flax._variables import keep_running
from normjax._internal import _checks
from normjax.nnx._wrap import normalizes_with, statistics, to_read, write
from normjax.statistics._types import Accumulator, Array

NOTHING: Mapping[str, Any] = MappingProxyType({})


def _constructor(flax_class: Any) -> Any:
    """Return Flax's constructor, with lists as tuples: a module holding a list has no hash."""

    @functools.wraps(flax_class.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in ("reduction_axes", "feature_axes", "axis_index_groups"):
            if name in kwargs:
                kwargs[name] = _semantics.hashable(kwargs[name])
        flax_class.__init__(self, *args, **kwargs)

    return __init__


class BatchNorm(nnx.BatchNorm):
    """Batch normalization, as `flax.nnx.BatchNorm`.

    What differs: the variance never cancels, whatever `use_fast_variance` says; under `mask`
    and `axis_name` every value counts alike, however uneven the devices; a batch that is fully
    masked or not finite leaves the statistics as they are; running statistics are never rounded
    to `dtype`, so that evaluation in bfloat16 is exact (what `promote_dtype` returns for them is
    not used).

    Args:
        num_features: size of the feature axis.
        correction: variance that is stored: 0 the biased one (Flax), 1 times n/(n-1) (the
            paper, PyTorch).
        allow_single: whether a statistic may be that of a single value in training, as in a batch
            of one, which Flax's layer takes: its variance is 0, so that the output is the bias.
            Else that is an error. Further arguments: Flax's.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> layer = nn.BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0))
        >>> y = layer(jnp.full((4, 3), 2.0))
        >>> layer.mean[...].tolist()
        [1.0, 1.0, 1.0]

    Reference:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", 2015.
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: Any = -1,
        momentum: Any = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = nnx.initializers.zeros_init(),  # noqa: B008  (Flax's own default)
        scale_init: Any = nnx.initializers.ones_init(),  # noqa: B008
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = standard_promotion,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = NOTHING,
        scale_metadata: Mapping[str, Any] = NOTHING,
        correction: int = 0,
        allow_single: bool = False,
    ):
        _checks.one_of("correction", correction, (0, 1))
        super().__init__(
            num_features,
            use_running_average=use_running_average,
            axis=_semantics.hashable(axis),
            momentum=momentum,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            use_bias=use_bias,
            use_scale=use_scale,
            bias_init=bias_init,
            scale_init=scale_init,
            axis_name=axis_name,
            axis_index_groups=_semantics.hashable(axis_index_groups),
            use_fast_variance=use_fast_variance,
            promote_dtype=promote_dtype,
            rngs=rngs,
            bias_metadata=bias_metadata,
            scale_metadata=scale_metadata,
        )
        self.correction = correction
        self.allow_single = allow_single

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> jax.Array:
        """Normalize `x`; statistics move unless `use_running_average`.

        Args:
            x: input.
            use_running_average: normalize with the running statistics; overrides the module's.
            mask: nonzero where a value counts for the statistics, broadcastable to `x`.

        Returns:
            Output of the shape of `x` and of `dtype`.

        Raises:
            ValueError: neither the call nor the module says which statistics to use.
        """
        running = self.use_running_average if use_running_average is None else use_running_average
        if (upstream := normalizes_with(self)) is not None:
            running = upstream == "running"
        if running is None:
            raise ValueError(
                "No `use_running_average` argument was provided to BatchNorm: write layer.train() "
                "or layer.eval(), or give it at the call"
            )
        before = statistics(self)
        state = to_read(self, before) if running else before
        accumulating = isinstance(state, Accumulator)  # in `population_update`
        stored = state.running if accumulating else state
        inputs, _, _, scale, bias = _promoted(
            self, x, *stored, _value(self.scale), _value(self.bias)
        )
        features = _semantics.axes_of(inputs.ndim, self.axis)
        if mask is not None:
            mask = _semantics.mask_of(mask, inputs.shape)
        y, new = _semantics.batch_norm(
            inputs,
            state,
            features,
            scale,
            bias,
            running=running,
            eps=self.epsilon,
            momentum=self.momentum,
            correction=self.correction,
            dtype=self.dtype,
            mask=_padding.mask(mask, inputs.shape, "BatchNorm"),
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            allow_single=self.allow_single,
        )
        if accumulating or not running:
            write(self, keep_running(new, before))
        return y


class LayerNorm(nnx.LayerNorm):
    """Layer normalization, as `flax.nnx.LayerNorm`.

    What differs: the variance never cancels, whatever `use_fast_variance` says; a slice that is
    fully masked is finite, in value and gradient; under `mask` and `axis_name` every value counts
    alike; axes may be given as lists.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> x = 1e4 + jax.random.normal(jax.random.key(0), (2, 512))
        >>> round(float(nn.LayerNorm(512, rngs=nnx.Rngs(0))(x).std()), 3)
        1.0

    Reference:
        Ba, Kiros, Hinton, "Layer Normalization", 2016.
    """

    __init__ = _constructor(nnx.LayerNorm)

    def __call__(self, x: Array, *, mask: Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is nonzero where a value counts, broadcastable to `x`."""
        return _sample_norm(self, x, self.reduction_axes, self.feature_axes, mask)


class RMSNorm(nnx.RMSNorm):
    """Root mean square layer normalization, as `flax.nnx.RMSNorm`.

    What differs: a slice that is fully masked is finite, in value and gradient; under `mask` and
    `axis_name` every value counts alike; axes may be given as lists.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> nn.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.full((1, 2), 3.0)).round(3).tolist()
        [[1.0, 1.0]]

    Reference:
        Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019.
    """

    __init__ = _constructor(nnx.RMSNorm)

    def __call__(self, x: Array, mask: Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is nonzero where a value counts, broadcastable to `x`."""
        inputs, scale = _promoted(self, x, _value(self.scale))
        return _semantics.sample_norm(
            inputs,
            _semantics.axes_of(inputs.ndim, self.reduction_axes),
            _semantics.axes_of(inputs.ndim, self.feature_axes),
            scale,
            None,
            mask=mask,
            centred=False,
            **_options(self),
        )


class GroupNorm(nnx.GroupNorm):
    """Group normalization, as `flax.nnx.GroupNorm`.

    What differs: the variance never cancels, whatever `use_fast_variance` says; a slice that is
    fully masked is finite, in value and gradient; under `mask` and `axis_name` every value counts
    alike; axes may be given as lists; any number of leading batch axes is right;
    `reduction_axes` without the last axis are refused, as in Linen; and a mask of one channel
    need not be repeated for each channel.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> layer = nn.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
        >>> [round(float(v), 2) for v in layer(jnp.arange(8.0).reshape(1, 2, 4))[0, 0]]
        [-1.21, -0.73, -1.21, -0.73]

    Reference:
        Wu, He, "Group Normalization", 2018.
    """

    __init__ = _constructor(nnx.GroupNorm)

    def __call__(self, x: Array, *, mask: Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is nonzero where a value counts, broadcastable to `x`."""
        inputs, scale, bias = _promoted(self, x, _value(self.scale), _value(self.bias))
        axes = _semantics.group_axes(inputs.ndim, self.reduction_axes)
        return _semantics.group_norm(
            inputs, axes, self.num_groups, scale, bias, mask=mask, **_options(self)
        )


class InstanceNorm(nnx.InstanceNorm):
    """Instance normalization, as `flax.nnx.InstanceNorm`.

    What differs: the variance never cancels, whatever `use_fast_variance` says; a slice that is
    fully masked is finite, in value and gradient; under `mask` and `axis_name` every value counts
    alike; axes may be given as lists.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> x = jnp.array([[[1.0], [3.0]], [[5.0], [9.0]]])
        >>> [round(float(v), 3) for v in nn.InstanceNorm(1, rngs=nnx.Rngs(0))(x).ravel()]
        [-1.0, 1.0, -1.0, 1.0]

    Reference:
        Ulyanov, Vedaldi, Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
        Stylization", 2016.
    """

    __init__ = _constructor(nnx.InstanceNorm)

    def __call__(self, x: Array, *, mask: Array | None = None) -> jax.Array:
        """Normalize `x`; `mask` is nonzero where a value counts, broadcastable to `x`."""
        axes, features = _semantics.instance_axes(jnp.ndim(x), self.feature_axes)
        return _sample_norm(self, x, axes, features, mask)


def _sample_norm(module: Any, x: Array, axes: Any, features: Any, mask: Array | None) -> jax.Array:
    inputs, scale, bias = _promoted(module, x, _value(module.scale), _value(module.bias))
    return _semantics.sample_norm(
        inputs,
        _semantics.axes_of(inputs.ndim, axes),
        _semantics.axes_of(inputs.ndim, features),
        scale,
        bias,
        mask=mask,
        **_options(module),
    )


def _promoted(module: Any, x: Array, *values: Any) -> Any:
    """Apply the module's `promote_dtype`, by standard rules also where the user set strict ones."""
    with jax.numpy_dtype_promotion("standard"):
        return module.promote_dtype((jnp.asarray(x), *values), dtype=module.dtype)


def _options(module: Any) -> dict[str, Any]:
    return {
        "eps": module.epsilon,
        "dtype": module.dtype,
        "axis_name": module.axis_name,
        "axis_index_groups": module.axis_index_groups,
    }


def _value(variable: Any) -> Any:
    return None if variable is None else variable[...]
