"""Folds a norm, as used in inference, into a scale and bias and into the layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Inexact

from normjax._internal import _checks
from normjax.base import Affine, Norm
from normjax.norms._batch import BatchNorm
from normjax.norms._ghost import GhostBatchNorm
from normjax.norms._identity import Identity
from normjax.norms._mean_only import MeanOnlyBatchNorm
from normjax.norms._renorm import BatchRenorm
from normjax.state import _names
from normjax.statistics import _shapes
from normjax.statistics._types import Accumulator, Array, PyTree

# Compared by exact type: a subclass of batch norm may do something else in inference.
_FOLDED = (BatchNorm, BatchRenorm, GhostBatchNorm, MeanOnlyBatchNorm)


def is_folded(norm: Norm) -> bool:
    """Whether in inference a norm with running statistics is an affine of each feature."""
    return type(norm) in _FOLDED


def fold(norm: Norm, params: PyTree, state: PyTree) -> Affine:
    r"""Return the scale and bias that equal a norm of the batch family in inference.

    $$y = \text{scale} \cdot x + \text{bias}, \qquad
      \text{scale} = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}, \quad
      \text{bias} = \beta - \text{scale}\cdot\mu$$

    Args:
        norm: `batch_norm`, `batch_renorm`, `ghost_batch_norm`, `mean_only_batch_norm` or
            `identity`; other norms depend on the sample, or mix features.
        params: its parameters; these and the state may be mappings of the same names.
        state: its state, with the running statistics that inference uses.

    Returns:
        `Affine(scale, bias)` of the shape of the features, in at least float32.

    Raises:
        TypeError: in inference `norm` is not an affine function of each feature.
        ValueError: a mapping has other names.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.batch_norm(eps=1.0)
        >>> params, _ = norm.init((1, 1))
        >>> scale, bias = nj.fold(norm, params, nj.Running(jnp.array([2.0]), jnp.array([3.0])))
        >>> scale.tolist(), bias.tolist()
        ([0.5], [-1.0])

    Reference:
        Ioffe, Szegedy, "Batch Normalization", 2015, algorithm 2, line 11.
    """
    params = _names.named(Affine, params)
    if isinstance(state, Mapping) and state:
        read = _names.read_statistics(state)
        if read is None or (isinstance(norm, BatchNorm) and set(state) == {"mean"}):
            raise ValueError(
                f"fold was given a state of the names {sorted(state)}: pass what init returned, or "
                'a dictionary {"mean": ..., "var": ...}'
            )
        state = read
    if isinstance(norm, Identity):
        present = params.scale if params.scale is not None else params.bias
        if present is None:
            raise TypeError("identity() without scale and bias has nothing to fold: leave it out")
        wide = _shapes.stat_dtype(jnp.asarray(present).dtype)
        scale = jnp.ones(jnp.shape(present), wide)
        mean = jnp.zeros(jnp.shape(present), wide)
    elif type(norm) in _FOLDED:
        m = state.running if isinstance(state, Accumulator) else state
        mean = jnp.asarray(m.mean)
        if isinstance(norm, BatchNorm):
            scale = lax.rsqrt(jnp.asarray(m.var) + norm.eps)
        else:
            scale = jnp.ones(mean.shape, jnp.finfo(mean.dtype).dtype)
    else:
        raise TypeError(
            f"the inference of {norm.factory} is not an affine of each feature, so it cannot be "
            "folded: call norm.apply(params, state, x, stats='running')"
        )
    # gamma * (x - mean) * scale + beta = (gamma * scale) * x + (beta - gamma * scale * mean).
    scale = scale.astype(mean.dtype)
    if params.scale is not None:
        scale = scale * params.scale.astype(scale.dtype)
    bias = -scale * mean
    if params.bias is not None:
        bias = bias + params.bias.astype(bias.dtype)
    return Affine(scale, bias)


def fold_dense(
    kernel: Inexact[Array, "inputs outputs"],
    bias: Inexact[Array, " outputs"] | None,
    folded: Affine,
) -> tuple[jax.Array, jax.Array]:
    r"""Fold an affine into the dense layer before it.

    $$s(Wx + b) + t = (sW)x + (sb + t)$$

    Args:
        kernel: `[inputs, outputs]`.
        bias: `[outputs]`, or `None`.
        folded: what `fold` returned, `[outputs]`.

    Returns:
        `(kernel, bias)` of the dtype of `kernel`; the layer then needs a bias.

    Raises:
        TypeError: `kernel` is not floating or complex.
        ValueError: `folded` does not fit the outputs of `kernel`, or lacks scale or bias.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> folded = nj.Affine(jnp.array([2.0, 3.0]), jnp.array([1.0, 1.0]))
        >>> kernel, bias = nj.fold_dense(jnp.ones((1, 2)), None, folded)
        >>> kernel.tolist(), bias.tolist()
        ([[2.0, 3.0]], [1.0, 1.0])

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2018, section 3.2.
    """
    return _fold(kernel, bias, folded)


def fold_conv(
    kernel: Inexact[Array, "..."],
    bias: Inexact[Array, " outputs"] | None,
    folded: Affine,
    *,
    output_axis: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Fold an affine into the convolution before it, exactly, with any padding.

    $$s(W * x + b) + t = (sW) * x + (sb + t)$$

    Args:
        kernel: `[*window, inputs, outputs]`, the layout of Flax's convolutions, or any other that
            `output_axis` names.
        bias: `[outputs]`, or `None`.
        folded: what `fold` returned, `[outputs]`: the statistics are shared over positions.
        output_axis: axis of the outputs in `kernel`: -1 for `Conv` and `ConvTranspose`, -2 for
            `ConvTranspose(transpose_kernel=True)`, 0 for PyTorch's `Conv2d`. `None` is the last
            axis, if the one before it has another size.

    Returns:
        `(kernel, bias)` of the dtype of `kernel`; the layer then needs a bias.

    Raises:
        TypeError: `kernel` is not floating or complex.
        ValueError: `folded` does not fit the outputs of `kernel`, or lacks scale or bias; or there
            are as many inputs as outputs, and no `output_axis`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> folded = nj.Affine(jnp.array([2.0]), jnp.array([1.0]))
        >>> nj.fold_conv(jnp.ones((3, 3, 1, 1)), jnp.ones(1), folded)[1].tolist()
        [3.0]

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", 2018, section 3.2.
    """
    shape = jnp.shape(kernel)
    if output_axis is None:
        outputs = 0 if folded.scale is None else jnp.size(folded.scale)
        if outputs > 1 and shape[-2:] == (outputs, outputs):
            raise ValueError(
                f"a kernel of shape {shape} has as many inputs as outputs, and its layout cannot "
                "be told from it: write output_axis=-1 for Flax's Conv and ConvTranspose, "
                "output_axis=-2 for ConvTranspose(transpose_kernel=True)"
            )
        output_axis = -1
    return _fold(kernel, bias, folded, output_axis)


def _fold(
    kernel: Any, bias: Any, folded: Affine, output_axis: int = -1
) -> tuple[jax.Array, jax.Array]:
    """Fold an affine of the outputs into a kernel with the outputs on `output_axis`."""
    kernel = _checks.floating(kernel, "fold")
    if folded.scale is None or folded.bias is None:
        raise ValueError("folded lacks scale or bias: pass what fold(norm, params, state) returned")
    scale, shift = jnp.asarray(folded.scale), jnp.asarray(folded.bias)
    if not -kernel.ndim <= output_axis < kernel.ndim:
        raise ValueError(f"output_axis={output_axis} is no axis of a kernel of {kernel.shape}")
    axis = output_axis % kernel.ndim
    if scale.shape != kernel.shape[axis : axis + 1]:
        raise ValueError(
            f"constants of shape {scale.shape} do not fit a kernel of shape {kernel.shape}: its "
            f"axis {output_axis} must be the outputs, and the norm's statistics one per output; "
            "for a convolution with another layout write fold_conv(…, output_axis=…)"
        )
    if bias is not None:
        shift = shift + scale * jnp.asarray(bias).astype(scale.dtype)
    # scale [outputs] broadcasts over all other axes of the kernel.
    wide = kernel.astype(_shapes.stat_dtype(kernel.dtype))
    folded_kernel = wide * _shapes.expand(scale.astype(wide.dtype), (axis,), kernel.ndim)
    return folded_kernel.astype(kernel.dtype), shift.astype(kernel.dtype)
