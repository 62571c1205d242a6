"""Computes population statistics in a pass over data, instead of an exponential average.

`accumulate_statistics` replaces every norm's statistics, in a pytree of ours or in Linen's
`batch_stats`, by an `Accumulator`, `apply` then adds each batch to it, and
`finalize_statistics` turns the result back into running statistics. Used around the microbatches
of one step, with `finalize_statistics(state, decay=...)`, the same two calls make gradient
accumulation exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax._internal import _checks
from normjax.state._whole_model import (
    _nodes,
    _statistics,
    has_statistics,
    map_statistics,
    running_of,
)
from normjax.statistics import _running
from normjax.statistics._debias import Debiased
from normjax.statistics._types import Accumulator, BatchMeans, PyTree

How = Literal["pooled", "unbiased", "mean"]


def accumulate_statistics(state: PyTree, how: How = "pooled") -> PyTree:
    """Return a state that accumulates statistics of batches exactly, initially of none.

    Args:
        state: any pytree of states, such as `init` of a norm or a layer returns, or the
            `batch_stats` of a Linen model with the norms of `normjax.linen`. For an NNX model,
            `normjax.nnx.accumulate_statistics(model)`.
        how: as in `population_statistics`; `"pooled"` merges by counts, the others average the
            statistics of the batches.

    Returns:
        The same tree with an `Accumulator` instead of each `Running`; in `batch_stats` a dictionary
        of its fields.

    Raises:
        TypeError: `state` is an NNX model or its state.
        ValueError: `how` is unknown, or `state` has no statistics.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.batch_norm()
        >>> params, state = norm.init((1, 1))
        >>> state = nj.accumulate_statistics(state)
        >>> for micro in jnp.array([[[1.0], [2.0]], [[3.0], [6.0]]]):
        ...     _, state = norm.apply(params, state, micro, stats="batch")
        >>> nj.finalize_statistics(state).mean.tolist()
        [3.0]
    """
    _checks.one_of("how", how, ("pooled", "unbiased", "mean"))
    _refuse_nnx(state, "accumulate_statistics")
    if not has_statistics(state):
        raise ValueError(
            "accumulate_statistics() found no running statistics in state: pass the state that "
            "init returned, or a Linen model's variables['batch_stats'] (a model of stateless "
            "norms has nothing to accumulate)"
        )
    return start_accumulators(state, how)


def start_accumulators(state: PyTree, how: How = "pooled") -> PyTree:
    """Return the state with empty accumulators for its statistics, if it has any."""

    def start(stats: PyTree) -> Accumulator:
        running = running_of(stats)
        zero = _running.zero_measurement(running)
        # Each norm says for itself when it adds a batch; see `Accumulator.warmup`.
        grows = jnp.zeros_like(running.weight) if isinstance(running, Debiased) else None
        if how == "pooled":
            return Accumulator(running, zero, grows)
        biased = _running.to_running(zero)
        # Arrays of its own for each field, so that a step may donate the state.
        unbiased, pairs = jax.tree.map(jnp.zeros_like, (biased, zero.count))
        return Accumulator(running, BatchMeans(biased, unbiased, zero.count, pairs), grows)

    return map_statistics(state, start)


def finalize_statistics(
    state: PyTree, how: How = "pooled", *, correction: int = 0, decay: float | None = None
) -> PyTree:
    """Turn accumulated statistics into running statistics.

    Args:
        state: what `accumulate_statistics` returned, after some calls of `apply`.
        how: as in `population_statistics`; the same as in `accumulate_statistics`.
        correction: with `"pooled"`, 1 stores the variance times n / (n - 1); a norm's own
            `correction` is not used, so write the same here.
        decay: with `"pooled"`, update the running averages once, as with one large batch, with
            this weight of the old value; `None` replaces them. What the norm's `debias` is, the
            state knows.

    Returns:
        The tree with a `Running` for each `Accumulator`. Statistics without any value are those
        from before the accumulation.

    Raises:
        TypeError: `state` is an NNX model or its state.
        ValueError: `how` or `correction` is unknown or not that of `accumulate_statistics`, the
            state does not accumulate, or a layer ignored its accumulator.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.batch_norm()
        >>> _, state = norm.init((1, 1))
        >>> nj.finalize_statistics(nj.accumulate_statistics(state)) == state
        True
    """
    _checks.one_of("how", how, ("pooled", "unbiased", "mean"))
    _checks.one_of("correction", correction, (0, 1))
    if decay is not None and how != "pooled":
        raise ValueError(
            f'finalize_statistics(decay={decay}) takes how="pooled", the moments of one large batch'
        )
    _refuse_nnx(state, "finalize_statistics")
    _refuse_ignored(state)
    if not any(isinstance(_statistics(node), Accumulator) for node in _nodes(state)):
        raise ValueError(
            "finalize_statistics() found no accumulated statistics in state: write state = "
            "accumulate_statistics(state) before the batches are run"
        )

    def finish(stats: PyTree) -> PyTree:
        if not isinstance(stats, Accumulator):
            return stats
        measured = stats.measured
        if isinstance(measured, BatchMeans) != (how != "pooled"):
            raise ValueError(
                f"finalize_statistics(how={how!r}) got a state that was accumulated in another "
                "way: write the same how in accumulate_statistics() and finalize_statistics()"
            )
        if decay is not None and how == "pooled":
            grows = _running.warmup_flag(stats)
            return _running.ema(
                stats.running,
                measured,
                decay=decay,
                correction=correction,
                warmup=False if grows is None else grows,
            )
        # `weights` tell, for mean and spread, where there is anything to replace the old value by.
        if isinstance(measured, BatchMeans):
            new = measured.unbiased if how == "unbiased" else measured.biased
            weights = [measured.batches, measured.pairs if how == "unbiased" else measured.batches]
        else:
            new = _running.to_running(measured, correction)
            # A single value has a mean but no unbiased spread.
            pairs = (measured.count > 1).astype(measured.count.dtype)
            weights = [measured.count, pairs if correction else measured.count]
        fields = zip(weights, new, stats.running, strict=False)
        final = [_running.where_measured(w, n, old) for w, n, old in fields]
        if not isinstance(stats.running, Debiased):
            return type(stats.running)(*final)
        weight = jnp.where(weights[-1] > 0, 1, stats.running.weight)
        named = dict(zip(stats.running._fields, final, strict=True))
        return type(stats.running)(**named, weight=weight)

    return map_statistics(state, finish)


def _refuse_nnx(state: Any, who: str) -> None:
    """Refuse an NNX model or its `nnx.State`, whose variables these functions do not write to."""
    if any(c.__module__.startswith("flax.nnx") for c in type(state).__mro__):
        raise TypeError(
            f"{who}() takes a pytree of states and got the NNX {type(state).__name__}: write "
            f"normjax.nnx.{who}(model), which works in place"
        )


def _refuse_ignored(tree: PyTree) -> None:
    """Refuse `batch_stats` in which a layer made statistics beside its accumulator."""
    if not isinstance(tree, Mapping):
        return
    if not set(tree) >= {"running", "measured"}:
        for value in tree.values():
            _refuse_ignored(value)
        return
    unknown = sorted(set(tree) - set(Accumulator._fields))
    if not unknown:
        return
    raise ValueError(
        f"a layer has the statistics {unknown} beside those that accumulate, so it is "
        "not of normjax.linen: make it a normjax.linen.Normalize(norm) "
        "or normjax.linen.BatchNorm"
    )


def population_statistics(
    layer: Any,
    params: PyTree,
    state: PyTree,
    batches: Iterable[Any],
    *,
    how: How = "pooled",
    upstream: Literal["batch", "running"] = "batch",
    correction: int = 0,
) -> PyTree:
    r"""Estimate the statistics for inference in one pass over a data set.

    Three estimates from the literature, for batches $B_1 \dots B_k$ of sizes $m_j$:

    $$\text{pooled:}\;\; \mu = \frac{\sum m_j \mu_j}{\sum m_j},\;\;
      \sigma^2 = \frac{\sum m_j(\sigma_j^2 + (\mu_j - \mu)^2)}{\sum m_j}$$
    $$\text{unbiased:}\;\; \mu = \tfrac1k \sum \mu_j,\;\;
      \sigma^2 = \tfrac1k \sum \tfrac{m_j}{m_j - 1}\sigma_j^2 \qquad
      \text{mean:}\;\; \mu = \tfrac1k \sum \mu_j,\;\; \sigma^2 = \tfrac1k \sum \sigma_j^2$$

    `"pooled"` is exact: the moments of the whole data set. `"unbiased"` is the estimate of the
    batch norm paper (and of tutorials), `"mean"` that of the recurrent batch norm paper; both
    leave out the spread of the means between batches.

    Args:
        layer: a `Norm`, a recurrent layer, or any function
            `apply(params, state, batch, *, stats) -> (output, state)` of a whole model.
        params: its parameters.
        state: its state; statistics for which no batch has a value stay as they are.
        batches: inputs of `apply`, one batch at a time; for norms and layers these are arrays, or
            dictionaries of keywords of `apply`, such as `{"x": x, "lengths": n}`; those that are no
            arrays, such as `"solver"`, may be any hashable values. Zoneout and dropout draw where a
            dictionary has a `"key"`, and use their expectation elsewhere.
        how: `"pooled"`, `"unbiased"` or `"mean"`.
        upstream: how norms normalize during the pass, which decides the inputs of the norms after
            them: with `"batch"` by each batch's own statistics, as in training, with `"running"`
            by the running ones, as in evaluation.
        correction: with `"pooled"`, 1 stores the unbiased variance; a norm's own `correction`
            is not used, so write the same here.

    Returns:
        The state with new statistics, to be used with `stats="running"`.

    Raises:
        TypeError: `batches` is one array; a batch has what is neither an array nor hashable; or,
            for norms and layers, is a tuple or list.
        ValueError: `how` or `upstream` is unknown, there is no batch, or the state has no
            statistics.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.batch_norm()
        >>> params, state = norm.init((1, 1))
        >>> data = [jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])]
        >>> for how in ("pooled", "unbiased", "mean"):
        ...     new = nj.population_statistics(norm, params, state, data, how=how)
        ...     print(how, new.var.tolist())
        pooled [5.0]
        unbiased [2.0]
        mean [1.0]

    Reference:
        Ioffe, Szegedy, "Batch Normalization", 2015, algorithm 2; Cooijmans et al., "Recurrent
        Batch Normalization", 2017; Wu, Johnson, "Rethinking 'Batch' in BatchNorm", 2021
        (precise statistics).
    """
    _checks.stats(upstream)
    if not has_statistics(state):
        raise ValueError(
            "population_statistics() found no running statistics in state: pass the state that "
            "init returned for this layer (a layer of stateless norms needs no population "
            "statistics)"
        )
    collected = accumulate_statistics(state, how)
    for batch in validated_batches(batches, "population_statistics"):
        if hasattr(layer, "apply") and isinstance(batch, tuple | list):
            raise TypeError(
                "population_statistics() takes arrays, or dictionaries of the keywords of apply, "
                f'and got a {type(batch).__name__} for a batch: write ({{"x": x}} for x, y in '
                'batches), and with padding ({"x": x, "lengths": n} for x, n in batches)'
            )
        arrays, rest = _without_static(batch, keywords=hasattr(layer, "apply"))
        collected = _accumulate_batch(
            layer, params, block_on_cpu_devices(collected), arrays, rest, upstream
        )
    return finalize_statistics(collected, how, correction=correction)


def validated_batches(batches: Iterable[Any], who: str) -> Iterator[Any]:
    """Yield the batches; raise if there is none, or if `batches` is itself an array."""
    if isinstance(batches, jax.Array | np.ndarray):
        raise TypeError(
            f"{who}() takes a list of batches and got an array of shape {batches.shape}, whose "
            "rows would each be a batch: write [x] for one batch, list(x) for one per row"
        )
    batch = nothing = object()
    for batch in batches:
        yield batch
    if batch is nothing:
        raise ValueError(
            f"{who}() got no batch: pass an iterable with at least one (an iterator that was read "
            "before is empty)"
        )


def block_on_cpu_devices(tree: PyTree) -> PyTree:
    """Return the tree after waiting for arrays that are split over several CPU devices.

    CPU devices share one pool of threads, and an all-reduce blocks a thread until the last device
    joins. With several batches in flight XLA runs out of threads and aborts.
    """

    def wait(x: Any) -> Any:
        if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array) or len(x.devices()) == 1:
            return x
        return jax.block_until_ready(x) if next(iter(x.devices())).platform == "cpu" else x

    return jax.tree.map(wait, tree)


class _Static(NamedTuple):
    """What a batch has beside arrays, as a hashable value.

    Attributes:
        values: by the number of its leaf, what is no array.
        tree: structure of the batch.
    """

    values: tuple[tuple[int, Any], ...]
    tree: Any

    def join(self, arrays: Iterable[Any]) -> Any:
        """Return the batch that has these arrays in the other places."""
        known, rest = dict(self.values), iter(arrays)
        leaves = [known[i] if i in known else next(rest) for i in range(self.tree.num_leaves)]
        return jax.tree.unflatten(self.tree, leaves)


def _without_static(batch: Any, keywords: bool) -> tuple[list[Any], _Static]:
    """Split a batch into its arrays, which `jit` takes, and all else, such as `solver="newton"`.

    Of the keywords of `apply`, flags and integers, such as `noise=True` and `num_segments=3`, are
    no arrays either. In the batches of a function they are, as ever.
    """
    found, tree = jax.tree_util.tree_flatten_with_path(batch)
    arrays, static = [], []
    for i, (path, leaf) in enumerate(found):
        is_array = isinstance(leaf, complex | float | int) or hasattr(leaf, "dtype")
        is_array |= hasattr(leaf, "__jax_array__")
        if is_array and not (keywords and len(path) == 1 and isinstance(leaf, int)):
            arrays.append(leaf)
            continue
        try:
            hash(leaf)
        except TypeError as error:
            raise TypeError(
                f"population_statistics() got a {type(leaf).__name__} at "
                f"{jax.tree_util.keystr(path)} of a batch, which is neither an array nor hashable"
            ) from error
        static.append((i, leaf))
    return arrays, _Static(tuple(static), tree)


# Layers and norms are hashable values, so equal ones share the compiled function.
@functools.partial(jax.jit, static_argnames=("layer", "rest", "stats"))
def _accumulate_batch(
    layer: Callable | Any, params: PyTree, state: PyTree, arrays: Any, rest: _Static, stats: str
) -> PyTree:
    """Run a layer, or the `apply` function of a model, on one batch; return the next state."""
    batch = rest.join(arrays)
    apply = getattr(layer, "apply", None)
    if apply is None:
        return layer(params, state, batch, stats=stats)[1]
    keywords = batch if isinstance(batch, dict) else {"x": batch}
    without_key = keywords.get("key") is None and keywords.get("noise") is None
    if getattr(layer, "has_dropout", False) and without_key:
        keywords = {**keywords, "noise": False}
    return apply(params, state, stats=stats, **keywords)[1]
