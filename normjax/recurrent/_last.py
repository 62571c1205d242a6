"""The last output of each sequence: `last`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Integer, Shaped

from normjax._internal import _checks, _hints
from normjax.statistics._types import Array


@_hints.with_hints()
def last(
    y: Shaped[Array, "..."],
    lengths: Integer[Array, " _"] | None = None,
    *,
    time_major: bool = False,
) -> jax.Array:
    r"""Take the output of each sequence's last step.

    $$y_{T_i}, \qquad 0 \text{ where } T_i = 0$$

    A bidirectional layer's backward half has read one step there: `layer.output(carry)` has both
    directions after the whole sequence. With a `mask` that skips the last steps, it also has the
    output of the last step that counts.

    Args:
        y: outputs of every step, `[batch, time, …]`.
        lengths: `[batch]`, number of steps of each sequence, 0 to time; `None`: all steps.
        time_major: y is `[time, batch, …]`.

    Returns:
        `[batch, …]`.

    Raises:
        TypeError: `lengths` are not integers.
        ValueError: y has no axes of batch and time, or `lengths` do not fit them.

    Example:
        >>> import jax.numpy as jnp
        >>> from normjax import recurrent
        >>> y = jnp.array([[[1.0], [2.0]], [[3.0], [0.0]]])  # [batch, time, features]
        >>> recurrent.last(y, jnp.array([2, 1])).tolist()
        [[2.0], [3.0]]
    """
    y = jnp.asarray(y)
    if y.ndim < 2:
        raise ValueError(
            f"last takes the outputs of every step, [batch, time, features], and got shape "
            f"{y.shape}: the last outputs of a carry are layer.output(carry)"
        )
    y = y if time_major else y.swapaxes(0, 1)
    steps, batch = y.shape[:2]
    if lengths is None:
        return y[-1]
    lengths = _checks.lengths("lengths", lengths, steps, (batch,))
    ones = (1,) * (y.ndim - 2)
    index = jnp.clip(lengths - 1, 0, steps - 1).reshape(1, batch, *ones)
    end = jnp.take_along_axis(y, index, axis=0)[0]
    return jnp.where((lengths > 0).reshape(batch, *ones), end, jnp.zeros((), y.dtype))
