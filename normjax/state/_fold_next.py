"""Folds the gain and bias of a norm into the layer behind it: `fold_next`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Inexact

from normjax._internal import _checks
from normjax.base import Affine, Norm
from normjax.norms._batch import BatchNorm
from normjax.norms._dynamic_erf import DynamicErf, DynamicErfParams
from normjax.norms._dynamic_tanh import DynamicTanh, DynamicTanhParams
from normjax.norms._ghost import GhostBatchNorm
from normjax.norms._group import GroupNorm
from normjax.norms._identity import Identity
from normjax.norms._instance import InstanceNorm
from normjax.norms._layer import LayerNorm
from normjax.norms._mean_only import MeanOnlyBatchNorm
from normjax.norms._renorm import BatchRenorm
from normjax.norms._rms import RMSNorm
from normjax.norms._unit_length import L2Norm, ScaleNorm
from normjax.state import _names
from normjax.statistics import _shapes
from normjax.statistics._types import Array, PyTree

# Norms that end in y = scale * n + bias. By exact type: a subclass may do something else last.
_ENDS_IN_AFFINE = (
    *(LayerNorm, RMSNorm, GroupNorm, InstanceNorm, L2Norm, ScaleNorm, DynamicTanh, DynamicErf),
    *(BatchNorm, BatchRenorm, GhostBatchNorm, MeanOnlyBatchNorm, Identity),
)
# Paddings that repeat values of x, so that the norm's bias is in them as well.
_OF_X = ("VALID", "CIRCULAR", "REFLECT")

Axes = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]


def fold_next(
    norm: Norm,
    params: PyTree,
    kernel: Inexact[Array, "..."],
    bias: Inexact[Array, "..."] | None,
    *,
    input_axis: Axes | None = None,
    output_axis: Axes | None = None,
    padding: Padding | None = None,
    feature_group_count: int = 1,
) -> tuple[jax.Array, jax.Array | None]:
    r"""Fold the gain and bias of a norm into the dense layer or convolution behind it, exactly.

    $$W(\gamma \odot n + \beta) + b = (W \mathrm{diag}(\gamma))\,n + (W\beta + b)$$

    The statistics depend on x and stay; the norm is then called without gain and bias:
    `params._replace(scale=None, bias=None)`, or a norm made with `use_scale=False,
    use_bias=False`. There may be nothing but the norm's output in front of the layer: no
    activation and no residual. If several layers read the output (query, key and value), fold
    into each of them with the same params.

    Args:
        norm: a norm that ends in a gain and a bias: `layer_norm`, `rms_norm`, `group_norm`,
            `instance_norm`, `l2_norm`, `scale_norm`, `dynamic_tanh`, `dynamic_erf`, `identity`, or
            one of the batch family, in either mode.
        params: its parameters, or a mapping of the same names.
        kernel: `[inputs, outputs]` of a dense layer, `[*window, inputs, outputs]` of a
            convolution (Flax's layout), or another that the axes name.
        bias: of the shape of the outputs, or `None`.
        input_axis: axis or axes of the inputs in `kernel`, by default the last but one. The
            features of the norm lie on them.
        output_axis: axis or axes of the outputs, by default all behind the inputs. All other axes
            are the window. A Flax `DenseGeneral` with a kernel `[features, heads, size]` takes
            `input_axis=0`; PyTorch's `Conv2d` takes `input_axis=1, output_axis=0`.
        padding: of a convolution with a window, as its layer has it; needed where the norm has a
            bias. Zeros around x are not zeros before the norm, so that a bias is exact with
            `"VALID"`, `"CIRCULAR"` and `"REFLECT"` alone. A gain is exact with any padding. A
            transposed convolution has no padding that is exact with a bias.
        feature_group_count: number of groups of a grouped convolution, whose kernel has the inputs
            of one group.

    Returns:
        `(kernel, bias)` of the dtype of `kernel`. The layer needs a bias if the norm has one; else
        `bias` stays as it is.

    Raises:
        TypeError: `kernel` is not floating or complex, or `norm` does not end in a gain and a bias.
        ValueError: the gain does not fit the inputs of `kernel` or has values per sample; or the
            norm's bias meets a padding that makes it inexact, or that was not given.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> params = nj.Affine(scale=jnp.array([2.0, 3.0]), bias=jnp.array([1.0, 0.0]))
        >>> kernel, bias = nj.fold_next(nj.layer_norm(), params, jnp.ones((2, 1)), jnp.zeros(1))
        >>> kernel.tolist(), bias.tolist()
        ([[2.0], [3.0]], [1.0])

    Reference:
        Graef, Wasielewski, Clapp, "FlashNorm: Fast Normalization for LLMs", 2024.
    """
    if type(norm) not in _ENDS_IN_AFFINE:
        raise TypeError(
            f"{getattr(norm, 'factory', norm)!r} does not end in a gain and a bias, so they cannot "
            "be folded into the next layer: leave it as it is"
        )
    kernel = _checks.floating(kernel, "fold_next")
    gain, shift = _gain_and_bias(norm, params)
    inputs, outputs = _axes(kernel, input_axis, output_axis)
    features = _features(kernel, inputs, feature_group_count)
    for name, v in (("scale", gain), ("bias", shift)):
        # A scalar gain, as of scale_norm, is one for all inputs.
        if v is not None and v.ndim and v.shape != features:
            raise ValueError(
                f"{name} of shape {v.shape} does not fit a kernel of shape {kernel.shape} with "
                f"inputs of shape {features} on axes {inputs}: write input_axis= for another "
                "layout; a gain with values for each sample cannot be folded"
            )
    window = [a for a in range(kernel.ndim) if a not in (*inputs, *outputs)]
    if shift is not None and math.prod(kernel.shape[a] for a in window) > 1:
        _require_exact(padding)
    wide = kernel.astype(_shapes.stat_dtype(kernel.dtype))
    if shift is not None:
        added = _weighted(wide, shift.astype(wide.dtype), inputs, outputs, feature_group_count)
        bias = added if bias is None else jnp.asarray(bias).astype(added.dtype) + added
    if gain is not None:
        wide = wide * _per_input(
            gain.astype(wide.dtype), kernel.shape, inputs, outputs, feature_group_count
        )
    return wide.astype(kernel.dtype), None if bias is None else jnp.asarray(bias, kernel.dtype)


def _gain_and_bias(norm: Norm, params: PyTree) -> tuple[jax.Array | None, jax.Array | None]:
    """Return what a norm multiplies by and adds last, in at least float32."""
    kinds = {DynamicTanh: DynamicTanhParams, DynamicErf: DynamicErfParams}
    params = _names.named(kinds.get(type(norm), Affine), params)
    gain, shift = (
        None if v is None else _shapes.widen_half(jnp.asarray(v))
        for v in (params.scale, params.bias)
    )
    if gain is not None and getattr(norm, "unit_offset", False):
        gain = 1 + gain
    return gain, shift


def _axes(kernel: jax.Array, inputs: Any, outputs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes of inputs and outputs of a kernel."""
    if kernel.ndim < 2:
        raise ValueError(
            f"kernel of shape {kernel.shape} has no axes of inputs and outputs: "
            "pass the layer's kernel, [inputs, outputs]"
        )
    inputs = _checks.resolve_axes((-2,) if inputs is None else inputs, kernel.ndim)
    if outputs is None:
        outputs = tuple(range(max(inputs) + 1, kernel.ndim))
        if not outputs and kernel.ndim == 2:  # PyTorch's Linear, [outputs, inputs]
            outputs = (0,)
        if not outputs:
            raise ValueError(
                f"a kernel of shape {kernel.shape} has nothing behind input_axis={inputs}: "
                "write output_axis="
            )
    outputs = _checks.resolve_axes(outputs, kernel.ndim, name="output_axis")
    if set(inputs) & set(outputs):
        raise ValueError(f"input_axis={inputs} and output_axis={outputs} share an axis")
    return inputs, outputs


def _features(kernel: jax.Array, inputs: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """Return the shape of the layer's inputs, over all groups."""
    _checks.positive_int("feature_group_count", groups)
    shape = tuple(kernel.shape[a] for a in inputs)
    return shape if groups == 1 else (groups * shape[0], *shape[1:])


def _require_exact(padding: Padding | None) -> None:
    """Raise unless the bias of a norm stays the same at the edges of a convolution."""
    if padding is None:
        raise ValueError(
            "the norm has a bias and the kernel a window, so the padding decides whether folding "
            'is exact: write padding="VALID" if the convolution pads nothing, or the padding of '
            "its layer"
        )
    if isinstance(padding, str):
        exact = padding.upper() in _OF_X
    else:
        exact = all(p == 0 for p in jax.tree.leaves(padding))
    if not exact:
        raise ValueError(
            f"padding={padding!r} puts zeros around the norm's output, whose bias is not in them, "
            "so folding the bias would change the edges: fold a norm with use_bias=False, whose "
            "gain is exact with any padding, or leave it as it is"
        )


def _weighted(
    wide: jax.Array,
    shift: jax.Array,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    groups: int,
) -> jax.Array:
    """Return what a constant input `shift` adds to each output, of the shape of the outputs."""
    window = [a for a in range(wide.ndim) if a not in (*inputs, *outputs)]
    # [*window, *inputs, *outputs]; every position of the window sees the same shift.
    turned = wide.transpose((*window, *inputs, *outputs))
    factor = _per_input(shift, wide.shape, inputs, outputs, groups)
    factor = jnp.broadcast_to(factor, wide.shape).transpose((*window, *inputs, *outputs))
    shape = tuple(wide.shape[a] for a in outputs)
    size = math.prod(shape)
    added = jnp.einsum(
        "io,io->o",
        turned.reshape(-1, size),
        factor.reshape(-1, size),
        precision=lax.Precision.HIGHEST,
    )
    return added.reshape(shape)


def _per_input(
    v: jax.Array,
    shape: tuple[int, ...],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    groups: int,
) -> jax.Array:
    """Give one value per input the rank of a kernel; with groups, one per output's own input."""
    if v.ndim == 0:
        return v.reshape((1,) * len(shape))
    if groups == 1:
        return _shapes.expand(v, inputs, len(shape))
    if len(inputs) > 1 or len(outputs) > 1:
        raise ValueError("a grouped convolution has one axis of inputs and one of outputs")
    (a,), (b,) = inputs, outputs
    if shape[b] % groups:
        raise ValueError(
            f"feature_group_count={groups} does not divide the {shape[b]} outputs of the kernel"
        )
    # Group g reads inputs g * size to (g + 1) * size and makes the g-th part of the outputs.
    table = jnp.repeat(v.reshape(groups, shape[a]), shape[b] // groups, axis=0)  # [outputs, inputs]
    return _shapes.expand(table if b < a else table.T, sorted((a, b)), len(shape))
