"""The list of all norms with sample arguments: what the test batteries run over.

A new norm gets a line here and is then tested under every transformation, with hard inputs
and masks, without another word. Your own norm can be run through the same batteries; see
CONTRIBUTING.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

import normjax as nj
from normjax.base import Norm


@dataclasses.dataclass(frozen=True)
class Sample:
    """A norm, a shape it takes, and what it promises there.

    Attributes:
        name: unique name of the case.
        norm: the norm.
        shape: shape of an input, batch first.
        mask_shape: shape of a mask that broadcasts to it; `None` where the method takes no mask.
        centres: its output has mean 0 over `centres`, before the affine; `None`: no promise.
        scales: its output has variance 1 over `centres` for inputs of any large scale.
        shift_invariant: a constant added to all of x changes nothing.
        scale_invariant: a positive factor on all of x changes nothing (for variance >> eps).
        per_sample: no sample's output depends on another sample.
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

    def input(self, seed: int = 0, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Return a random input."""
        return jax.random.normal(jax.random.key(seed), self.shape, dtype)

    def mask(self, seed: int = 0) -> jax.Array | None:
        """Return a random mask, about two in three values counting, where the norm takes one."""
        if self.mask_shape is None:
            return None
        return jax.random.bernoulli(jax.random.key(seed + 100), 0.67, self.mask_shape)


_BATCH = {"centres": (0,), "scales": True, "shift_invariant": True, "scale_invariant": True}
_SPACE = {**_BATCH, "centres": (0, 1, 2)}
_LAYER = {**_BATCH, "centres": (-1,), "per_sample": True}

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
    Sample("layer_norm", nj.layer_norm(), (4, 5, 6), (4, 5, 1), **_LAYER),
    Sample(
        "layer_norm_image",
        nj.layer_norm(axes=(1, 2, 3), feature_axes=-1),
        (4, 3, 2, 6),
        (4, 3, 2, 1),
        **{**_LAYER, "centres": (1, 2, 3)},
    ),
    Sample("identity", nj.identity(use_scale=True, use_bias=True), (4, 6), (4, 1), per_sample=True),
)


def by_name(name: str) -> Sample:
    """Return the sample of that name."""
    return next(s for s in SAMPLES if s.name == name)
