"""Evaluates a recurrent layer for all steps at once, by Newton's method: `newton`.

The states of all steps solve one system, s_t = f_t(s_{t-1}). A Newton sweep linearizes every step
at the present guess and solves the linear recurrence by an associative scan, whose depth is the
logarithm of the number of steps. In evaluation a norm is an affine map, so that the sequences of
a batch do not depend on each other and a step's Jacobian is that of one sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Inexact, Integer

from normjax._internal import _checks
from normjax.base import Call
from normjax.recurrent import _sequences
from normjax.recurrent._carry import hidden_of
from normjax.recurrent._fold import fold
from normjax.recurrent._input_terms import input_term
from normjax.recurrent._recurrent import Recurrent
from normjax.recurrent._scan import LayerCall
from normjax.statistics._types import Array, PyTree

_dot = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Sweep(NamedTuple):
    """Where the iteration is: the states `[time, batch, size]`, the last change, the count."""

    states: jax.Array
    change: jax.Array
    sweeps: jax.Array


def newton(
    layer: Recurrent,
    params: PyTree,
    state: PyTree,
    x: Inexact[Array, "*batch_time features"],
    *,
    lengths: Integer[Array, " batch"] | None = None,
    carry: PyTree | None = None,
    tolerance: float | None = None,
    max_sweeps: int = 50,
) -> tuple[tuple[jax.Array, PyTree], jax.Array]:
    r"""Run a layer in evaluation, parallel in time, by Newton's method over the whole sequence.

    $$s_t^{k+1} = f_t(s_{t-1}^k) + J_t\,(s_{t-1}^{k+1} - s_{t-1}^k), \qquad
      J_t = f_t'(s_{t-1}^k)$$

    The outputs are those of `layer.apply(..., stats="running")`, up to the tolerance. Each sweep
    is exact on at least one step more; where the recurrence forgets its start, as a BN-LSTM with
    gamma 0.1 does, a few sweeps serve all steps. Limits: a sweep costs `size**3` operations and
    `size**2` numbers for each step and sequence, where size is that of the carry (twice `hidden`
    for an LSTM), so that it pays for small layers, long sequences and a device with idle
    processors. It is not for training mode, where batch norm couples the whole batch. A recurrence
    that amplifies differences, with a positive Lyapunov exponent, takes nearly as many sweeps as
    steps, or overflows.

    Args:
        layer: an `lstm`, `gru` or `rnn`; its norms may have any statistics, or be of one sample.
        params: its parameters.
        state: its state.
        x: `[batch, time, features]`, or time-major as the layer is.
        lengths: `[batch]`, number of steps of each sequence.
        carry: start of the carry, as for `apply`.
        tolerance: largest change of a sweep, relative to 1 plus the largest state, at which it
            stops; by default 100 units of rounding of the dtype of x. The error is then far
            smaller, as the last sweep squared it.
        max_sweeps: number of sweeps after which it gives up.

    Returns:
        `((y, carry), sweeps)`: outputs and carry as of `apply`, and the number of sweeps.

    Raises:
        RuntimeError: it does not converge in `max_sweeps`. Under `jit`, where nothing can be
            raised, outputs and carry are NaN then.
        TypeError: another kind of layer.
        ValueError: shapes that do not fit, or a layer with noise on its first state.

    Example:
        >>> import jax
        >>> from normjax import recurrent
        >>> layer = recurrent.bn_lstm(4, max_steps=20)
        >>> params, state = layer.init(jax.random.key(0), features=3)
        >>> x = jax.random.normal(jax.random.key(1), (2, 20, 3))
        >>> (y, _), sweeps = recurrent.newton(layer, params, state, x)
        >>> (want, _), _ = layer.apply(params, state, x, stats="running")
        >>> float(abs(y - want).max()) < 1e-5, int(sweeps) < 10
        (True, True)

    Reference:
        Lim, Zhu, Selfridge, Kasim, "Parallelizing non-linear sequential models over the sequence
        length", 2024.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(
            f"newton takes an lstm, gru or rnn and got {layer!r}: run the layers of a stack one by "
            "one"
        )
    if layer.needs_key:
        raise ValueError("newton draws no noise: write h0_noise=0 for the layer")
    _checks.positive_int("max_sweeps", max_sweeps)
    x = _checks.floating(x, "newton")
    tolerance = 100 * float(jnp.finfo(x.dtype).eps) if tolerance is None else tolerance
    _checks.positive("tolerance", tolerance)
    call = _call(*fold(layer, params, state), x, lengths, carry)
    found = _iterate(call, x.dtype, tolerance, max_sweeps)
    converged = found.change <= tolerance
    if not isinstance(converged, jax.core.Tracer) and not bool(converged):
        raise RuntimeError(
            f"newton did not converge: after {int(found.sweeps)} sweeps of {max_sweeps} a sweep "
            f"still changes the states by {float(found.change):.1e} of their size. Write "
            'layer.apply(..., stats="running"), or raise max_sweeps where the change falls'
        )
    states = jnp.where(converged, found.states, jnp.nan)
    # The carry holds past the end of a sequence, so that the last step has that of all.
    y, end = hidden_of(call.unflatten(states)), call.unflatten(states[-1])
    if call.mask is not None:
        y = jnp.where(call.mask, y, 0)
    return (y if layer.time_major else jnp.swapaxes(y, 0, 1), end), found.sweeps


class _Steps(NamedTuple):
    """The layer as a function of all steps: previous states to next ones, `[time, batch, size]`."""

    next: Callable[[jax.Array], jax.Array]
    start: jax.Array
    steps: int
    unflatten: Callable[[jax.Array], PyTree]
    mask: Array | None


def _call(
    layer: Recurrent, params: PyTree, state: PyTree, x: jax.Array, lengths: Any, carry: Any
) -> _Steps:
    """Check the arguments as `apply` does, and return the steps of a folded layer."""
    given = (lengths, None, None)
    params, x, carry, call = layer._checked(params, state, x, given, carry, LayerCall("running"))
    norms, steps = layer.norms(), x.shape[0]
    inputs = {
        name: n.per_step_inputs(params[name], state[name], steps) for name, n in norms.items()
    }
    leaves, tree = jax.tree.flatten(carry)

    def unflatten(states: jax.Array) -> PyTree:
        return jax.tree.unflatten(tree, jnp.split(states, len(leaves), -1))

    def step(old: jax.Array, x_t: jax.Array, inputs_t: PyTree, mask_t: Any) -> jax.Array:
        """Go one step; `[batch, size]`."""

        def norm(place: str, value: jax.Array) -> jax.Array:
            if place not in norms:
                return value
            of_norm = Call("running", mask_t)
            return norms[place].normalize_step(
                params[place], state[place], inputs_t[place], value, of_norm
            )[0]

        blocks = [
            norm(place, input_term(x_t, params["w_x"][:, a * layer.hidden : b * layer.hidden]))
            for place, (a, b) in layer.input_places.items()
        ]
        before = unflatten(old)
        term = jnp.concatenate(blocks, -1)
        after, _ = layer.cell(params, norm, term, hidden_of(before), before)
        after = layer.zoneout(None, before, after)
        new = jnp.concatenate(jax.tree.leaves(after), -1)
        return new if mask_t is None else jnp.where(mask_t, new, old)

    axes = (0, 0, 0, None if call.mask is None else 0)

    def all_steps(previous: jax.Array) -> jax.Array:
        return jax.vmap(step, axes)(previous, x, inputs, call.mask)

    return _Steps(all_steps, jnp.concatenate(leaves, -1), steps, unflatten, call.mask)


def _iterate(call: _Steps, dtype: Any, tolerance: float, max_sweeps: int) -> Sweep:
    """Sweep until nothing changes, nothing is finite, or `max_sweeps` are done."""
    size = call.start.shape[-1]
    basis = jnp.eye(size, dtype=call.start.dtype)

    def sweep(now: Sweep) -> Sweep:
        # The state before each step, [time, batch, size].
        previous = jnp.concatenate([call.start[None], now.states[:-1]])
        values, linear = jax.linearize(call.next, previous)
        # One tangent for each number of the state; samples are independent. [..., out, in]
        columns = jax.vmap(lambda e: linear(jnp.broadcast_to(e, previous.shape)))(basis)
        jacobian = jnp.moveaxis(columns, 0, -1)
        offset = values - _dot("tbij,tbj->tbi", jacobian, previous)
        # The first step starts from the carry, which is known.
        jacobian = jacobian.at[0].set(0)
        offset = offset.at[0].set(values[0])
        _, states = lax.associative_scan(_compose, (jacobian, offset))
        largest = 1 + jnp.max(jnp.abs(states))
        change = jnp.max(jnp.abs(states - now.states)) / largest
        return Sweep(states, change.astype(dtype), now.sweeps + 1)

    def goes_on(now: Sweep) -> jax.Array:
        first = now.sweeps == 0
        more = (now.change > tolerance) & jnp.isfinite(now.change)
        return first | (more & (now.sweeps < max_sweeps))

    guess = jnp.broadcast_to(call.start, (call.steps, *call.start.shape))
    guess = _sequences.vary_like(guess, call.start)
    start = Sweep(guess, jnp.asarray(jnp.inf, dtype), jnp.zeros((), jnp.int32))
    return lax.while_loop(goes_on, sweep, start)


def _compose(first: Any, second: Any) -> Any:
    """Return the affine map that applies one after the other."""
    (a, b), (c, d) = first, second
    return _dot("...ij,...jk->...ik", c, a), _dot("...ij,...j->...i", c, b) + d
