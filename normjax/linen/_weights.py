"""Drop-in replacements of Flax's weight norms: wrappers that normalize a layer's weights."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax._flax import _semantics, _weights
from normjax._internal import _checks
from normjax.linen._lifted import StaticArguments
from normjax.statistics._types import Array


class WeightNorm(nn.WeightNorm):
    """Weight normalization of a layer's weights, as `flax.linen.WeightNorm`.

    What differs: lengths are taken in at least float32, so half-precision kernels neither
    overflow nor vanish; and `start`.

    Attributes:
        start: `"scale_init"`: g starts as `scale_init` says, 1 in Flax, which changes the
            function of the layer; `"norm"`: g starts at the length of the weights it replaces,
            the paper's and PyTorch's choice, and the function is unchanged. Variables are the
            same either way. Further attributes: Flax's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import linen as nn
        >>> import flax.linen
        >>> module = nn.WeightNorm(flax.linen.Dense(4), start="norm")
        >>> variables = module.init(jax.random.key(0), jnp.ones((2, 3)))
        >>> module.apply(variables, jnp.ones((2, 3))).shape
        (2, 4)

    Reference:
        Salimans, Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate
        Training of Deep Neural Networks", 2016.
    """

    start: str = "scale_init"

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with normalized weights; arguments are the layer's."""
        _checks.one_of("start", self.start, ("scale_init", "norm"))

        def weights(variables: Any) -> Any:
            return jax.tree_util.tree_map_with_path(self._normalized, variables)

        return nn.map_variables(
            lambda layer: layer(*args, **kwargs),
            trans_in_fn=weights,
            init=self.is_initializing(),
        )(self.layer_instance)

    def _normalized(self, path: Any, v: Array) -> jax.Array:
        name = _path(self.layer_instance, path)
        v = jnp.asarray(v)
        if self.variable_filter and not any(part in name for part in self.variable_filter):
            return v
        g = None
        if self.use_scale:
            g = self.param(
                f"{name}/scale", self._initial_scale(v), _scale_shape(v, self.feature_axes)
            )
        return _weights.weight_norm(v, g, self.feature_axes, eps=self.epsilon, dtype=self.dtype)

    def _initial_scale(self, v: jax.Array) -> Any:
        def init(key: jax.Array, shape: Any) -> jax.Array:
            if self.start == "norm":
                length = jnp.sqrt(_weights.squared_lengths(v, self.feature_axes).var)
                return length.astype(self.param_dtype)
            return self.scale_init(key, shape, self.param_dtype)

        return init


class SpectralNorm(StaticArguments, nn.SpectralNorm):
    """Spectral normalization of a layer's weights, as `flax.linen.SpectralNorm`.

    What differs: the power iteration runs in at least float32 and with full-precision products;
    a weight that is not finite leaves `u` where it was.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import linen as nn
        >>> import flax.linen
        >>> module, x = nn.SpectralNorm(flax.linen.Dense(4)), jnp.ones((2, 3))
        >>> variables = module.init(jax.random.key(0), x, update_stats=False)
        >>> y, new = module.apply(variables, x, update_stats=True, mutable=["batch_stats"])
        >>> sorted(new["batch_stats"])
        ['layer_instance/kernel/sigma', 'layer_instance/kernel/u']

    Reference:
        Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial
        Networks", 2018.
    """

    @nn.compact
    def __call__(self, *args: Any, update_stats: bool, **kwargs: Any) -> Any:
        """Call the layer with normalized weights.

        Args:
            *args: the layer's.
            update_stats: keep the `u` and `sigma` that the power iteration finds.
            **kwargs: the layer's.

        Returns:
            What the layer returns.

        Raises:
            ValueError: a weight is no matrix and `error_on_non_matrix`.
        """

        def weights(variables: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, w: self._normalized(path, w, update_stats), variables
            )

        return nn.map_variables(
            lambda layer: layer(*args, **kwargs),
            trans_in_fn=weights,
            init=self.is_initializing(),
            mutable=True,
        )(self.layer_instance)

    def _normalized(self, path: Any, w: Array, update_stats: bool) -> jax.Array:
        w = jnp.asarray(w)
        if w.ndim <= 1 or self.n_steps < 1:
            return w
        if w.ndim > 2 and self.error_on_non_matrix:
            raise ValueError(f"Input is {w.ndim}D but error_on_non_matrix is True")
        name = _path(self.layer_instance, path)
        key = None
        if not self.has_variable(self.collection_name, f"{name}/u"):
            key = self.make_rng("params")
        u = self.variable(
            self.collection_name,
            f"{name}/u",
            jax.random.normal,
            key,
            (1, w.shape[-1]),
            self.param_dtype,
        )
        sigma = self.variable(self.collection_name, f"{name}/sigma", jnp.ones, (), self.param_dtype)
        normalized, *new = _weights.spectral_norm(
            w, u.value, steps=self.n_steps, eps=self.epsilon, dtype=self.dtype
        )
        if update_stats:
            u.value, sigma.value = new
        return normalized


def _path(layer: Any, path: Any) -> str:
    """Name of a weight as Flax writes it, the collection left out: `Dense_0/kernel`."""
    return f"{layer.name}/" + jax.tree_util.keystr(path[1:], simple=True, separator="/")


def _scale_shape(v: jax.Array, feature_axes: Any) -> list[int]:
    axes = _semantics.axes_of(v.ndim, () if feature_axes is None else feature_axes)
    return [v.shape[a] for a in axes]
