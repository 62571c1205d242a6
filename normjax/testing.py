"""Lists all norms with sample arguments, which the test batteries run over.

A norm with a line here is tested automatically under every transformation, with hard inputs and
masks. Your own norm can be run through the same batteries; see CONTRIBUTING.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import normjax as nj
from normjax.base import Norm, Reparam


@dataclasses.dataclass(frozen=True)
class Sample:
    """A norm, the shape of a sample input, and the properties that the norm has.

    Attributes:
        name: unique name of the case.
        norm: the norm.
        shape: shape of an input, batch first.
        mask_shape: shape of a mask that broadcasts to it; `None` if the method takes no mask.
        centres: axes over which the output has mean 0 before the affine; `None`: not promised.
        scales: whether the output has variance 1 over `centres` for inputs of any large scale.
        shift_invariant: whether adding a constant to all of x leaves the output unchanged.
        scale_invariant: whether a positive factor on all of x does so (for variance >> eps).
        per_sample: whether each sample's output is independent of the other samples.
        detached: whether parts of the output carry no gradient in mode `"batch"`, by definition,
            so that finite differences differ from the gradient.
        cuts_batch: whether statistics are taken over parts of the batch, so that splitting the
            batch over devices changes them.
    """

    name: str
    norm: Norm
    shape: tuple[int, ...]
    mask_shape: tuple[int, ...] | None = None
    centres: tuple[int, ...] | None = None
    scales: bool = False
    shift_invariant: bool = False
    scale_invariant: bool = False
    per_sample: bool = False
    detached: bool = False
    cuts_batch: bool = False

    def input(self, seed: int = 0, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Return a random input."""
        return jax.random.normal(jax.random.key(seed), self.shape, dtype)

    def mask(self, seed: int = 0) -> jax.Array | None:
        """Return a random mask in which about two of three values count, or `None`."""
        if self.mask_shape is None:
            return None
        return jax.random.bernoulli(jax.random.key(seed + 100), 0.67, self.mask_shape)


_BATCH: dict[str, Any] = {
    "centres": (0,),
    "scales": True,
    "shift_invariant": True,
    "scale_invariant": True,
}
_SPACE: dict[str, Any] = {**_BATCH, "centres": (0, 1, 2)}
_KERNEL: dict[str, Any] = {**_BATCH, "centres": (0, 1)}
_LAYER: dict[str, Any] = {**_BATCH, "centres": (-1,), "per_sample": True}

SAMPLES: tuple[Sample, ...] = (
    Sample("batch_norm", nj.batch_norm(), (8, 6), (8, 1), **_BATCH),
    Sample("batch_norm_conv", nj.batch_norm(), (4, 3, 5, 6), (4, 3, 5, 1), **_SPACE),
    Sample(
        "batch_norm_per_activation",
        nj.batch_norm(axes=(0,)),
        (8, 2, 3, 2),
        (8, 1, 1, 1),
        **_BATCH,
    ),
    Sample(
        "batch_norm_channels_first",
        nj.batch_norm(axes=(0, 2, 3)),
        (4, 6, 3, 5),
        (4, 1, 3, 5),
        **{**_BATCH, "centres": (0, 2, 3)},
    ),
    Sample(
        "batch_norm_unbiased",
        nj.batch_norm(correction=1, decay=0.5, scale_init=0.1),
        (8, 6),
        (8, 1),
    ),
    Sample("batch_norm_kernel", nj.batch_norm(impl="kernel"), (8, 3, 6), (8, 3, 1), **_KERNEL),
    Sample(
        "mean_only_batch_norm",
        nj.mean_only_batch_norm(),
        (4, 3, 6),
        (4, 3, 1),
        shift_invariant=True,
    ),
    Sample("batch_renorm", nj.batch_renorm(r_max=1.1, d_max=0.1), (8, 6), (8, 1), detached=True),
    Sample("batch_renorm_off", nj.batch_renorm(r_max=1.0, d_max=0.0), (8, 6), (8, 1), **_BATCH),
    Sample(
        "ghost_batch_norm",
        nj.ghost_batch_norm(size=4),
        (8, 6),
        (8, 1),
        shift_invariant=True,
        scale_invariant=True,
        cuts_batch=True,
    ),
    Sample(
        "ghost_batch_norm_uneven",
        nj.ghost_batch_norm(size=4),
        (7, 3, 4),
        (7, 3, 1),
        shift_invariant=True,
        scale_invariant=True,
        cuts_batch=True,
    ),
    Sample(
        "decorrelated_batch_norm",
        nj.decorrelated_batch_norm(group_size=3),
        (16, 6),
        (16, 1),
        shift_invariant=True,
        scale_invariant=True,
    ),
    Sample(
        "iterative_norm",
        nj.iterative_norm(use_scale=True, use_bias=True),
        (4, 5, 4),
        (4, 5, 1),
        shift_invariant=True,
        scale_invariant=True,
    ),
    Sample("layer_norm", nj.layer_norm(), (4, 5, 6), (4, 5, 1), **_LAYER),
    Sample("layer_norm_kernel", nj.layer_norm(impl="kernel"), (4, 5, 6), (4, 5, 1), **_LAYER),
    Sample(
        "layer_norm_image",
        nj.layer_norm(axes=(1, 2, 3), feature_axes=-1),
        (4, 3, 2, 6),
        (4, 3, 2, 1),
        **{**_LAYER, "centres": (1, 2, 3)},
    ),
    Sample(
        "group_norm",
        nj.group_norm(groups=2),
        (4, 3, 2, 8),
        (4, 3, 2, 1),
        shift_invariant=True,
        scale_invariant=True,
        per_sample=True,
    ),
    Sample(
        "group_norm_kernel",
        nj.group_norm(groups=2, impl="kernel"),
        (4, 3, 2, 8),
        (4, 3, 2, 1),
        shift_invariant=True,
        scale_invariant=True,
        per_sample=True,
    ),
    Sample(
        "group_norm_two_batch_axes",
        nj.group_norm(group_size=3, axes=(2,)),
        (4, 2, 3, 6),
        (4, 2, 3, 6),
        shift_invariant=True,
        scale_invariant=True,
        per_sample=True,
    ),
    Sample(
        "instance_norm",
        nj.instance_norm(),
        (4, 3, 5, 2),
        (4, 3, 5, 1),
        **{**_LAYER, "centres": (1, 2)},
    ),
    Sample("rms_norm", nj.rms_norm(), (4, 5, 6), (4, 5, 6), scale_invariant=True, per_sample=True),
    Sample(
        "rms_norm_unit_offset_partial",
        nj.rms_norm(unit_offset=True, use_bias=True, partial=0.5),
        (4, 5, 6),
        (4, 5, 1),
        scale_invariant=True,
        per_sample=True,
    ),
    Sample(
        "rms_norm_cast_first",
        nj.rms_norm(cast_first=True),
        (4, 5, 6),
        (4, 5, 6),
        scale_invariant=True,
        per_sample=True,
    ),
    Sample(
        "scale_norm", nj.scale_norm(), (4, 5, 6), (4, 5, 1), scale_invariant=True, per_sample=True
    ),
    Sample(
        "l2_norm",
        nj.l2_norm(use_scale=True),
        (4, 6),
        (4, 6),
        scale_invariant=True,
        per_sample=True,
    ),
    Sample(
        "local_response_norm",
        nj.local_response_norm(size=3, alpha=0.5),
        (4, 3, 7),
        (4, 3, 1),
        per_sample=True,
    ),
    Sample(
        "filter_response_norm",
        nj.filter_response_norm(),
        (4, 3, 5, 2),
        (4, 3, 5, 1),
        scale_invariant=True,
        per_sample=True,
    ),
    Sample(
        "filter_response_norm_learned_eps",
        nj.filter_response_norm(learn_eps=True, threshold=False),
        (4, 5),
        (4, 5),
        per_sample=True,
    ),
    Sample(
        "global_response_norm",
        nj.global_response_norm(scale_init=0.5),
        (4, 3, 2, 5),
        (4, 3, 2, 5),
        per_sample=True,
    ),
    Sample("evo_norm_b0", nj.evo_norm_b0(), (4, 3, 2, 5), (4, 3, 2, 1), scale_invariant=True),
    Sample("evo_norm_s0", nj.evo_norm_s0(groups=2), (4, 3, 2, 6), (4, 3, 2, 1), per_sample=True),
    Sample(
        "switchable_norm",
        nj.switchable_norm(decay=0.9),
        (4, 3, 2, 5),
        (4, 3, 2, 5),
        shift_invariant=True,
        scale_invariant=True,
    ),
    Sample("dynamic_erf", nj.dynamic_erf(), (4, 5, 6), (4, 5, 1), per_sample=True),
    Sample("dynamic_tanh", nj.dynamic_tanh(), (4, 5, 6), (4, 5, 1), per_sample=True),
    Sample("identity", nj.identity(use_scale=True, use_bias=True), (4, 6), (4, 1), per_sample=True),
)


@dataclasses.dataclass(frozen=True)
class ReparamSample:
    """A reparametrization, the shape of a sample weight, and the properties of the method.

    Attributes:
        name: unique name of the case.
        reparam: the method.
        shape: shape of a weight.
        unchanged: whether `apply` after `init` gives back the weight.
        free: shape of the positive factors that `v` may be multiplied by without changing the
            weight; `None` if there are none.
        detached: whether gradients do not reach all parameters, by definition, so that finite
            differences differ from the gradient.
    """

    name: str
    reparam: Reparam
    shape: tuple[int, ...]
    unchanged: bool = False
    free: tuple[int, ...] | None = None
    detached: bool = False

    def weight(self, seed: int = 0, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Return a random weight."""
        return jax.random.normal(jax.random.key(seed), self.shape, dtype)


REPARAMS: tuple[ReparamSample, ...] = (
    ReparamSample("weight_norm", nj.weight_norm(), (6, 4), True, (1, 4)),
    ReparamSample("weight_norm_conv", nj.weight_norm(), (3, 2, 5, 4), True, (1, 1, 1, 4)),
    ReparamSample("weight_norm_rows", nj.weight_norm(axes=1), (6, 4), True, (6, 1)),
    ReparamSample("weight_norm_whole", nj.weight_norm(axes=(0, 1)), (6, 4), True, (1, 1)),
    ReparamSample("weight_norm_log", nj.weight_norm(log_scale=True), (6, 4), True, (1, 4)),
    ReparamSample(
        "weight_norm_direction", nj.weight_norm(train="direction"), (6, 4), True, (1, 4), True
    ),
    ReparamSample("weight_norm_scale", nj.weight_norm(train="scale"), (6, 4), True, (1, 4), True),
    ReparamSample("weight_standardization", nj.weight_standardization(), (6, 4), free=(1, 4)),
    ReparamSample(
        "weight_standardization_scaled",
        nj.weight_standardization(use_gain=True, fan_in=True),
        (3, 2, 5, 4),
        free=(1, 1, 1, 4),
    ),
    ReparamSample("spectral_norm", nj.spectral_norm(), (6, 4), free=(1, 1)),
    ReparamSample(
        "spectral_norm_scale",
        nj.spectral_norm(use_scale=True, iterations=3),
        (3, 2, 5, 4),
        True,
        (1, 1, 1, 1),
    ),
)
