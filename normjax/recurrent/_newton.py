"""Solves a recurrence for all steps at once by Newton's method: `newton`.

The states of all steps solve one system, s_t = f_t(s_{t-1}). A sweep linearizes every step at the
present guess and solves the linear recurrence by an associative scan, whose depth is the logarithm
of the number of steps. In evaluation a norm is an affine map or one of a sample, so that the
sequences of a batch do not depend on each other, and a step's Jacobian is that of one sample.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import checkify

from normjax._internal import _checks, _hints
from normjax.base import Norm
from normjax.recurrent import _sequences
from normjax.statistics._types import PyTree

Body = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]

_dot = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True, repr=False)
class Newton:
    """A solver of recurrences as a value; made by `newton`."""

    factory: ClassVar[str] = "newton"

    tolerance: float | None = None
    max_sweeps: int = 50

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        if self.tolerance is not None:
            _checks.positive("tolerance", self.tolerance)
        _checks.positive_int("max_sweeps", self.max_sweeps)

    __repr__ = Norm.__repr__

    def scan(self, body: Body, start: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        """Return what `lax.scan(body, start, xs)` returns, from a carry of `[batch, n]` arrays."""
        leaves, tree = jax.tree.flatten(start)
        widths = [leaf.shape[-1] for leaf in leaves]
        ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]

        def flat(carry: PyTree) -> jax.Array:
            return jnp.concatenate(jax.tree.leaves(carry), -1)

        def unflat(states: jax.Array) -> PyTree:
            return jax.tree.unflatten(tree, jnp.split(states, ends, -1))

        def following(before: jax.Array) -> jax.Array:
            """From the states before all steps to those after, `[time, batch, size]`."""
            return jax.vmap(lambda old, x: flat(body(unflat(old), x)[0]))(before, xs)

        steps = jax.tree.leaves(xs)[0].shape[0]
        found = self.solve(following, flat(start), steps)
        converged = found.change <= self._tolerance(found.states.dtype)

        def outputs(states: jax.Array) -> tuple[PyTree, PyTree]:
            """Go each step once more, from what is known before it."""
            carries, ys = jax.vmap(body)(unflat(_before(flat(start), states)), xs)
            return jax.tree.map(lambda leaf: leaf[-1], carries), ys

        if not isinstance(converged, jax.core.Tracer):
            if not bool(converged):
                raise RuntimeError(
                    _FAILED.format(n=found.sweeps, change=f"{float(found.change):.1e}")
                )
            return outputs(found.states)
        checkify.debug_check(converged, _FAILED, n=found.sweeps, change=found.change)
        return lax.cond(converged, outputs, lambda _: lax.scan(body, start, xs), found.states)

    def solve(
        self, following: Callable[[jax.Array], jax.Array], start: jax.Array, steps: int
    ) -> Sweep:
        """Sweep until nothing changes, nothing is finite, or `max_sweeps` are done.

        Args:
            following: from the states before all steps to those after, `[time, batch, size]`.
            start: the state before the first step, `[batch, size]`.
            steps: number of steps.
        """
        tolerance = self._tolerance(start.dtype)
        basis = jnp.eye(start.shape[-1], dtype=start.dtype)

        def sweep(now: Sweep) -> Sweep:
            before = _before(start, now.states)
            values, linear = jax.linearize(following, before)
            # One tangent for each number of the state; samples are independent. [..., out, in]
            zeros = jnp.zeros_like(before)
            columns = jax.vmap(lambda e: linear(zeros + e[None, None]))(basis)
            jacobian = jnp.moveaxis(columns, 0, -1)
            offset = values - _dot("tbij,tbj->tbi", jacobian, before)
            # The first step starts from what is known.
            jacobian = jacobian.at[0].set(0)
            offset = offset.at[0].set(values[0])
            _, states = lax.associative_scan(_compose, (jacobian, offset))
            largest = 1 + jnp.max(jnp.abs(states))
            change = jnp.max(jnp.abs(states - now.states)) / largest
            return Sweep(states, change, now.sweeps + 1)

        def goes_on(now: Sweep) -> jax.Array:
            more = (now.change > tolerance) & jnp.isfinite(now.change)
            return (now.sweeps == 0) | (more & (now.sweeps < self.max_sweeps))

        guess = jnp.broadcast_to(start, (steps, *start.shape))
        change = jnp.asarray(jnp.inf, start.dtype)
        if axes := _sequences.varying(start):
            change = _sequences.vary(change, axes)
        return lax.while_loop(goes_on, sweep, Sweep(guess, change, jnp.zeros((), jnp.int32)))

    def _tolerance(self, dtype: Any) -> float:
        return 100 * float(jnp.finfo(dtype).eps) if self.tolerance is None else self.tolerance


# The scan of a layer: one step after the other, or all at once.
Solver = Literal["scan", "newton"] | Newton


class Sweep(NamedTuple):
    """Where the iteration is: the states `[time, batch, size]`, the last change, the count."""

    states: jax.Array
    change: jax.Array
    sweeps: jax.Array


_FAILED = (
    "newton did not converge: sweep {n} changed the states by {change}, relative to 1 plus the "
    'largest. Write solver="scan", or solver=recurrent.newton(max_sweeps=…) for more sweeps'
)


@_hints.with_hints()
def newton(*, tolerance: float | None = None, max_sweeps: int = 50) -> Newton:
    r"""Run a recurrent layer in evaluation for all steps at once, by Newton's method.

    $$s_t^{k+1} = f_t(s_{t-1}^k) + J_t\,(s_{t-1}^{k+1} - s_{t-1}^k), \qquad
      J_t = f_t'(s_{t-1}^k)$$

    It is the `solver` of `layer.apply(..., stats="running", solver="newton")`, whose outputs are
    those of `solver="scan"` up to the tolerance. Each sweep is exact on at least one step more;
    where the recurrence forgets its start, as a BN-LSTM with gamma 0.1 does, a few sweeps serve
    all steps. Limits: a sweep costs `size**3` operations and `size**2` numbers for each step and
    sequence, where size is that of the carry (twice `hidden` for an LSTM), so that it can pay for
    small layers, long sequences and a device with idle processors only. It is not for training
    mode, where batch norm couples the whole batch, and has no reverse-mode gradient. A recurrence
    that amplifies differences, with a positive Lyapunov exponent, takes nearly as many sweeps as
    steps, or overflows.

    Where it does not converge it raises. Under `jit`, where nothing can be raised, the scan runs
    instead, and `jax.experimental.checkify.checkify` returns the error.

    Args:
        tolerance: largest change of a sweep, relative to 1 plus the largest state, at which it
            stops; by default 100 units of rounding of the dtype of x. The error is then far
            smaller, as the last sweep squared it.
        max_sweeps: number of sweeps after which it gives up.

    Returns:
        A solver; `solver="newton"` is `solver=newton()`.

    Raises:
        TypeError: `max_sweeps` is no integer.
        ValueError: a number outside its range.

    Example:
        >>> import jax
        >>> from normjax import recurrent
        >>> layer = recurrent.bn_lstm(4, max_steps=20)
        >>> params, state = layer.init(jax.random.key(0), features=3)
        >>> x = jax.random.normal(jax.random.key(1), (2, 20, 3))
        >>> solver = recurrent.newton(max_sweeps=10)
        >>> (y, _), _ = layer.apply(params, state, x, stats="running", solver=solver)
        >>> (want, _), _ = layer.apply(params, state, x, stats="running")
        >>> float(abs(y - want).max()) < 1e-5
        True

    Reference:
        Lim, Zhu, Selfridge, Kasim, "Parallelizing non-linear sequential models over the sequence
        length", 2024.
    """
    return Newton(**locals())


def check(solver: Any, stats: str, x: Any) -> Newton | None:
    """Return the solver of a call on x, `None` for the scan; refuse what it cannot run."""
    if isinstance(solver, str) and solver == "scan":
        return None
    if isinstance(solver, str) and solver == "newton":
        solver = Newton()
    if not isinstance(solver, Newton):
        raise ValueError(
            f'solver={solver!r} must be "scan", "newton", or newton(tolerance=…, max_sweeps=…)'
        )
    if stats == "batch":
        raise ValueError(
            'solver="newton" takes stats="running": in training, batch norm couples the sequences '
            'of a batch. Write solver="scan"'
        )
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        raise ValueError(
            f"newton solves in float32 or float64, and x is {dtype}: write x.astype(jnp.float32)"
        )
    return solver


def _before(start: jax.Array, states: jax.Array) -> jax.Array:
    """Return the state before each step from those after: `[time, batch, size]`."""
    return jnp.concatenate([start[None], states[:-1]])


def _compose(first: Any, second: Any) -> Any:
    """Return the affine map that applies one after the other."""
    (a, b), (c, d) = first, second
    return _dot("...ij,...jk->...ik", c, a), _dot("...ij,...j->...i", c, b) + d
