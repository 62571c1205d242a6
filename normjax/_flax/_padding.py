"""Passes an RNN's padding mask to the norms inside its cell.

A cell is `(carry, x) -> (carry, y)`: nothing tells it which sequences have ended. An RNN of ours
sets the mask of a step here while it traces its cell, and our modules read it: no argument of
the cell's author, no variable, and nothing that a lifted transformation could leave behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.statistics._types import Array

_valid: ContextVar[jax.Array | None] = ContextVar("valid", default=None)
_in_loop: ContextVar[bool] = ContextVar("in_loop", default=False)
# Part of the key of every cache of JAX. Without it a function that is compiled inside the cell
# would be served from a trace of another step, whose mask is gone or was never there.
_trace = jax.make_user_context(None)


@contextlib.contextmanager
def step(valid: jax.Array | None) -> Iterator[None]:
    """Trace one step of a loop over time.

    Args:
        valid: `[*batch]`, True where the step is not padding; `None` where nothing is padding.
    """
    outer = _valid.get()
    if valid is None:
        valid = outer  # a loop inside a cell: padding of the outer loop is padding of the inner
    elif outer is not None and outer.shape == valid.shape:
        valid = valid & outer
    before = _valid.set(valid), _in_loop.set(True)
    try:
        with contextlib.nullcontext() if valid is None else _trace(object()):
            yield
    finally:
        _valid.reset(before[0])
        _in_loop.reset(before[1])


def in_step() -> bool:
    """Whether one of our own loops over time is tracing its cell."""
    return _in_loop.get()


def mask(call_mask: Array | None, shape: tuple[int, ...], who: str) -> jax.Array | None:
    """Return the mask of a norm's call, with the padding of the loop around it excluded.

    Args:
        call_mask: boolean mask of the call, of the rank of x.
        shape: that of x, which starts with the batch of the loop.
        who: the module, for the message.

    Raises:
        ValueError: x does not start with the batch, so that padding has no place in it.
    """
    call_mask = None if call_mask is None else jnp.asarray(call_mask)
    valid = _valid.get()
    if valid is None:
        return call_mask
    if len(shape) > valid.ndim and shape[: valid.ndim] == valid.shape:
        # [*batch] -> [*batch, 1, ..., 1], of the rank of x
        valid = valid.reshape(valid.shape + (1,) * (len(shape) - valid.ndim))
        call_mask = _checks.mask(call_mask, shape)
        return valid if call_mask is None else call_mask & valid
    if call_mask is not None:
        return call_mask
    raise ValueError(
        f"{who} is in an RNN with seq_lengths, whose batch is {valid.shape}, and its x of shape "
        f"{shape} does not start with that: give the mask at the call, mask=…, or keep the batch "
        "in front"
    )
