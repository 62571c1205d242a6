"""Padding that a loop over time knows of and the norms inside its cell must hear of.

A cell is `(carry, x) -> (carry, y)`: nobody in it is told which sequences have ended. While an
RNN of ours traces its cell, it says so here, and our modules read it: no argument of the
cell's author, no variable, and nothing that a lifted transformation could leave behind.
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
_looping: ContextVar[bool] = ContextVar("looping", default=False)
# Part of the key of every cache of JAX. Without it a function that is compiled inside the cell
# would be served from a trace of another step, whose mask is gone or was never there.
_trace = jax.make_user_context(None)


@contextlib.contextmanager
def step(valid: jax.Array | None) -> Iterator[None]:
    """Trace one step of a loop over time.

    Args:
        valid: True where the step is not padding, of the shape of the batch; `None` where
            nothing is padding.
    """
    outer = _valid.get()
    if valid is None:
        valid = outer  # a loop inside a cell: what has ended outside has ended inside
    elif outer is not None and outer.shape == valid.shape:
        valid = valid & outer
    before = _valid.set(valid), _looping.set(True)
    try:
        with contextlib.nullcontext() if valid is None else _trace(object()):
            yield
    finally:
        _valid.reset(before[0])
        _looping.reset(before[1])


def in_step() -> bool:
    """Whether one of our own loops over time is tracing its cell."""
    return _looping.get()


def final_carry(lengths: Array, last: Array, start: Array) -> jax.Array:
    """The carry after each sequence: Flax's, but of a sequence of no steps its start."""
    beyond = (1,) * (jnp.ndim(last) - jnp.ndim(lengths))
    return jnp.where(jnp.reshape(lengths, (*jnp.shape(lengths), *beyond)) > 0, last, start)


def mask(given: Array | None, shape: tuple[int, ...], who: str) -> jax.Array | None:
    """Return the mask of a norm's call, with the padding of the loop around it left out.

    Args:
        given: boolean mask of the call, of the rank of x.
        shape: that of x, which starts with the batch of the loop.
        who: the module, for the message.

    Raises:
        ValueError: x does not start with the batch, so that padding has no place in it.
    """
    given = None if given is None else jnp.asarray(given)
    valid = _valid.get()
    if valid is None:
        return given
    if len(shape) > valid.ndim and shape[: valid.ndim] == valid.shape:
        valid = valid.reshape(valid.shape + (1,) * (len(shape) - valid.ndim))
        given = _checks.mask(given, shape)
        return valid if given is None else given & valid
    if given is not None:
        return given
    raise ValueError(
        f"{who} is in an RNN with seq_lengths, whose batch is {valid.shape}, and its x of shape "
        f"{shape} does not start with that: give the mask at the call, mask=…, or keep the batch "
        "in front"
    )
