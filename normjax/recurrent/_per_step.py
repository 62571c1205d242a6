"""Statistics of each time step: `per_step`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from normjax._internal import _checks, _hints
from normjax.base import Call, Norm
from normjax.recurrent._seq_norm import Beyond, SeqNorm
from normjax.state._whole_model import map_statistics, running_of
from normjax.statistics import _merge, _running
from normjax.statistics._debias import Debiased
from normjax.statistics._types import Accumulator, Array, PyTree

Clock = Literal["row", "segment"]


def resize(tree: PyTree, steps: int) -> PyTree:
    """Cut each leaf to `steps` along axis 0, or repeat its last entry up to there."""

    def cut_or_repeat(leaf: Array) -> jax.Array:
        leaf = jnp.asarray(leaf)[:steps]
        missing = steps - leaf.shape[0]
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf

    return jax.tree.map(cut_or_repeat, tree)


def fill_steps(state: PyTree) -> PyTree:
    """Give the steps that have no data the statistics of the last step before them that has some.

    A state says `mean` and `var` and no counts, so a step has no data where its statistics are
    exactly those of the start, or where its `weight` is 0. What is no norm's statistics stays as
    it is.

    Args:
        state: states with a leading axis of steps, of ours or as dictionaries.
    """

    def fill(stats: PyTree) -> PyTree:
        running = running_of(stats)
        source = _steps_with_data(running)
        filled = jax.tree.map(lambda leaf: jnp.asarray(leaf)[source], running)
        return stats._replace(running=filled) if isinstance(stats, Accumulator) else filled

    return map_statistics(state, fill)


def filled_step(state: PyTree, step: Array) -> PyTree:
    """Return one step of `fill_steps`, without what an `Accumulator` has measured.

    Args:
        state: states of ours with a leading axis of steps.
        step: its number.
    """

    def pick(node: PyTree) -> PyTree:
        running = running_of(node)
        at = _steps_with_data(running)[step] if _running.is_stats(running) else step
        return jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, at, keepdims=False), running
        )

    return jax.tree.map(pick, state, is_leaf=_running.is_stats)


def _steps_with_data(running: PyTree) -> jax.Array:
    """`[steps]`, for each step the last one up to it that has data; if none has, the step."""
    if isinstance(running, Debiased):
        pairs: Any = [(running.weight, jnp.zeros_like(running.weight))]
    else:
        pairs = zip(running, _running.reset_running(running), strict=True)
    changed = [
        jnp.any(leaf != initial, axis=tuple(range(1, jnp.ndim(leaf)))) for leaf, initial in pairs
    ]
    own = jnp.arange(len(changed[0]))
    last = lax.cummax(jnp.where(jnp.any(jnp.stack(changed), axis=0), own, -1))
    return jnp.where(last < 0, own, last)


@dataclasses.dataclass(frozen=True, repr=False)
class PerStep(SeqNorm):
    """Statistics of each time step, as a value; made by `per_step`."""

    factory: ClassVar[str] = "per_step"

    max_steps: int = dataclasses.field(kw_only=True)
    share_params: bool = True
    beyond: Beyond = "last"
    clock: Clock = "row"

    def __post_init__(self) -> None:
        """Refuse what is no norm, no number of steps, or an unknown `beyond` or `clock`."""
        _checks.positive_int("max_steps", self.max_steps)
        _checks.one_of("beyond", self.beyond, get_args(Beyond))
        _checks.one_of("clock", self.clock, get_args(Clock))
        super().__post_init__()

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Make parameters, shared or one per step, and one state per step."""
        params, state = self.norm.init(shape, dtype, key=key)

        def repeat(leaf: jax.Array) -> jax.Array:
            return jnp.tile(leaf, (self.max_steps,) + (1,) * leaf.ndim)

        params = params if self.share_params else jax.tree.map(repeat, params)
        return params, jax.tree.map(repeat, state)

    def per_step_inputs(self, params: PyTree, state: PyTree, steps: int) -> PyTree:
        """Slice out the first `steps` states, the last one repeated past `max_steps`."""
        if steps > self.max_steps:
            _checks.max_steps(steps, self.max_steps, self.beyond)
        for leaf in jax.tree.leaves(state):
            if jnp.shape(leaf)[0] != self.max_steps:
                raise ValueError(
                    f"the state has statistics of {jnp.shape(leaf)[0]} steps and this lift keeps "
                    f"{self.max_steps}: write max_steps={jnp.shape(leaf)[0]}"
                )
        params_of_steps = None if self.share_params else params
        if steps == self.max_steps:
            return params_of_steps, state
        return resize(params_of_steps, steps), resize(state, steps)

    def state_for_inference(self, state: PyTree) -> PyTree:
        """Return the state in which a step without data has the last known statistics."""
        return fill_steps(state)

    def slice_for_step(
        self, params: PyTree, state: PyTree, step_inputs: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Return the state of this step, and its parameters if each step has its own."""
        params_t, state_t = step_inputs
        return params if self.share_params else params_t, state_t

    def update_state(self, state: PyTree, measured: PyTree, call: Call) -> PyTree:
        """Move the statistics of the steps that were measured; the others stay."""
        if measured is None:
            return state
        steps = jax.tree.leaves(measured)[0].shape[0]
        n = min(steps, self.max_steps)
        if self.beyond == "merge" and steps > n:
            last = _merge.merge_axis(jax.tree.map(lambda m: m[n - 1 :], measured))
            measured = jax.tree.map(lambda m, end: m[:n].at[n - 1].set(end), measured, last)
        else:
            measured = jax.tree.map(lambda m: m[:n], measured)

        def update(state_t: PyTree, measured_t: PyTree) -> PyTree:
            return self.norm.update(state_t, measured_t, call)

        updated = jax.vmap(update)(jax.tree.map(lambda s: jnp.asarray(s)[:n], state), measured)
        if n == self.max_steps:
            return updated
        return jax.tree.map(lambda s, new: jnp.asarray(s).at[:n].set(new), state, updated)


@_hints.with_hints()
def per_step(
    norm: Norm,
    max_steps: int,
    *,
    share_params: bool = True,
    beyond: Beyond = "last",
    clock: Clock = "row",
) -> SeqNorm:
    r"""Keep statistics of each time step apart, as recurrent batch norm needs.

    $$\hat x_t = \frac{x_t - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}}, \qquad
      t > T_{\max}:\; \mu_t = \mu_{T_{\max}},\; \sigma_t = \sigma_{T_{\max}}$$

    The hidden state starts from the same value in every sequence and settles within tens of
    steps; statistics averaged over that transient fit no step.

    A step is known as well as its data. One that no sequence reached keeps mean 0 and variance 1
    in the state, which tells it from the others; mode `"running"` normalizes it with the statistics
    of the last step before it that has data. One that a single sequence reached in a batch moves
    toward variance 0: where lengths differ much, evaluate with `population_statistics` over enough
    data.

    Args:
        norm: the norm of one step, with any state.
        max_steps: number of steps with statistics of their own; the longest training length.
        share_params: one gamma and beta for all steps (the paper), or one per step.
        beyond: steps past `max_steps`: `"last"` normalizes them with the last statistics in
            mode `"running"`, and in mode `"batch"` leaves these alone; `"merge"` also adds what
            was measured there to the last statistics; `"error"` refuses longer sequences.
        clock: what a step's number is in a layer that is given `resets` or a `mask`: `"row"`
            counts all steps since the start of the row; `"segment"` those that count since the
            last reset, so that values, statistics and gradients are those of the segments as
            sequences of their own. A row of T steps then costs up to log2(T) + 1 times as much.

    Returns:
        A `SeqNorm` whose state has a leading axis of `max_steps`.

    Raises:
        TypeError: `norm` is not a `Norm`.
        ValueError: `max_steps` is not a positive integer, `beyond` or `clock` is unknown.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> seq = recurrent.per_step(nj.batch_norm(decay=0.0), max_steps=2)
        >>> params, state = seq.init((1, 1))
        >>> x = jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]])  # [time, batch, features]
        >>> _, state = seq.apply(params, state, x, stats="batch")
        >>> state.mean.ravel().tolist()
        [1.0, 6.0]

    Reference:
        Cooijmans, Ballas, Laurent, Gulcehre, Courville, "Recurrent Batch Normalization", 2017.
    """
    return PerStep(**locals())
