"""Drop-in replacements of Flax's NNX weight norms: weights are computed, never written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax._flax import _semantics, _weights
from normjax._internal import _checks
from normjax.nnx._norms import standard_promotion
from normjax.statistics._types import Array


class WeightNorm(nnx.WeightNorm):
    """Weight normalization of a layer's weights, as `flax.nnx.WeightNorm`.

    What differs: the layer's parameters are never written to, so an optimizer's step moves what
    the gradient was taken of; the scales are `nnx.Param`s and learn, of `param_dtype`; lengths
    are taken in at least float32; and `start`. As the parameters stay as they are,
    `layer_instance.kernel` is v and not the normalized weight.

    Args:
        layer_instance: the layer.
        start: `"scale_init"`: g starts as `scale_init` says, 1 in Flax, which changes the
            function of the layer; `"norm"`: g starts at the length of the weights, the paper's
            and PyTorch's choice, and the function is unchanged. Further arguments: Flax's.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> dense = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> layer, x = nn.WeightNorm(dense, start="norm", rngs=nnx.Rngs(1)), jnp.ones((1, 3))
        >>> bool(jnp.allclose(layer(x), dense(x)))
        True

    Reference:
        Salimans, Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
        Training of Deep Neural Networks", 2016.
    """

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        feature_axes: Any = -1,
        use_scale: bool = True,
        scale_init: Any = nnx.initializers.ones,
        epsilon: float = 1e-12,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        variable_filter: Any = nnx.PathContains("kernel"),  # noqa: B008  (Flax's own default)
        promote_dtype: Any = standard_promotion,
        rngs: nnx.Rngs,
        start: str = "scale_init",
    ):
        _checks.one_of("start", start, ("scale_init", "norm"))
        self.layer_instance = layer_instance
        self.feature_axes = () if feature_axes is None else _semantics.hashable(feature_axes)
        self.use_scale = use_scale
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.variable_filter = nnx.filterlib.to_predicate(variable_filter)
        self.promote_dtype = promote_dtype
        # Initializers are closures and would make equal modules unequal: they are not kept.
        scales = {}
        for path, v in _parameters(layer_instance):
            if use_scale and self.variable_filter(path, v):
                if start == "norm":
                    g = jnp.sqrt(_weights.squared_lengths(v[...], self.feature_axes).var)
                    g = g.astype(param_dtype)
                else:
                    axes = _semantics.axes_of(v.ndim, self.feature_axes)
                    g = scale_init(rngs["params"](), tuple(v.shape[a] for a in axes), param_dtype)
                scales[path] = nnx.Param(g)
        self.scales = nnx.data(scales if use_scale else None)

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with normalized weights; arguments are the layer's.

        Raises:
            RuntimeError: the layer has a parameter that it did not have before.
        """

        def weight(path: tuple[Any, ...], v: Array) -> jax.Array:
            g = None
            if self.use_scale:
                # What Flax 0.12.8 stored is an array, and a checkpoint may put one here.
                g = jnp.asarray(_stored(self.scales, path)[...])
            return _weights.weight_norm(v, g, self.feature_axes, eps=self.epsilon, dtype=self.dtype)

        return _call_with(self.layer_instance, self.variable_filter, weight, x, *args, **kwargs)


class SpectralNorm(nnx.SpectralNorm):
    """Spectral normalization of a layer's weights, as `flax.nnx.SpectralNorm`.

    What differs: the layer's parameters are never written to, in training or evaluation; the
    power iteration runs in at least float32 and with full-precision products; a weight that is
    not finite leaves `u` where it was; further arguments of a call go to the layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> dense = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))
        >>> dense.kernel[...] = 4 * jnp.eye(3)
        >>> layer = nn.SpectralNorm(dense, rngs=nnx.Rngs(1))
        >>> layer(jnp.ones((1, 3))).round(3).tolist()
        [[1.0, 1.0, 1.0]]
        >>> float(dense.kernel[0, 0])
        4.0

    Reference:
        Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial
        Networks", 2018.
    """

    def __call__(self, x: Any, update_stats: bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with normalized weights.

        Args:
            x: the layer's input.
            update_stats: keep the `u` and `sigma` that the power iteration finds; overrides the
                module's mode, which `train()` and `eval()` set.
            *args: the layer's.
            **kwargs: the layer's.

        Returns:
            What the layer returns.

        Raises:
            RuntimeError: the layer has a parameter that it did not have before.
            ValueError: a weight is no matrix and `error_on_non_matrix`.
        """
        update = not self.use_running_average if update_stats is None else update_stats

        def weight(path: tuple[Any, ...], w: Array) -> Array:
            if w.ndim <= 1 or self.n_steps < 1:
                return w
            if w.ndim > 2 and self.error_on_non_matrix:
                raise ValueError(
                    f"Layer instance parameter is {w.ndim}D but error_on_non_matrix is True"
                )
            u, sigma = (_stored(self.batch_stats, (*path, name)) for name in ("u", "sigma"))
            normalized, new_u, new_sigma = _weights.spectral_norm(
                w, u[...], steps=self.n_steps, eps=self.epsilon, dtype=self.dtype
            )
            if update:
                u[...], sigma[...] = new_u, new_sigma
            return normalized

        return _call_with(self.layer_instance, nnx.Param, weight, x, *args, **kwargs)


def _call_with(
    layer: nnx.Module, chosen: Any, weight: Callable[..., Array], *args: Any, **kwargs: Any
) -> Any:
    """Call `layer` with `weight(path, stored)` in place of its parameters.

    It is a copy that is called, so that no parameter is written to; what else the call changed
    in the copy (statistics, counts of random keys, what was sown) is carried back.
    """
    graph, state = nnx.split(layer)
    is_chosen = nnx.filterlib.to_predicate(chosen)
    swapped, before = [], {}
    for path, v in nnx.to_flat_state(state):
        if isinstance(v, nnx.Param) and is_chosen(path, v):
            v = v.replace(weight(path, v[...]))
        else:
            before[path] = _raw(v)
        swapped.append((path, v))
    copy = nnx.merge(graph, nnx.from_flat_state(swapped))
    result = copy(*args, **kwargs)
    after = nnx.to_flat_state(nnx.state(copy))
    weights = {path for path, _ in swapped} - set(before)
    changed = [
        (path, v)
        for path, v in after
        if path not in weights and (path not in before or before[path] is not _raw(v))
    ]
    if changed:
        nnx.update(layer, nnx.from_flat_state(changed))
    return result


def _parameters(layer: nnx.Module) -> Any:
    return nnx.to_flat_state(nnx.state(layer, nnx.Param))


def _stored(values: Any, path: tuple[Any, ...]) -> Any:
    if path not in values:
        raise RuntimeError(
            f"nothing is kept for the parameter {path}: the layer's parameters must not change "
            "after it was wrapped"
        )
    return values[path]


def _raw(leaf: Any) -> Any:
    return leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
