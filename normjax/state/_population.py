"""Computes population statistics in a pass over data, instead of an exponential average.

`accumulate_statistics` replaces every `Running` of a state pytree by an `Accumulator`, `apply`
then adds each batch to it, and `finalize_statistics` turns the result back into running
statistics. Used around the microbatches of one step, with `finalize_statistics(state, decay=...)`,
the same two calls make gradient accumulation exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import numpy as np

from normjax._internal import _checks
from normjax.statistics import _running
from normjax.statistics._types import Accumulator, BatchMeans, PyTree, is_accumulator

How = Literal["pooled", "unbiased", "mean"]


def accumulate_statistics(state: PyTree, how: How = "pooled") -> PyTree:
    """Return a state that accumulates statistics of batches exactly, initially of none.

    Args:
        state: any pytree with `Running` nodes, such as `init` of a norm or a layer returns.
        how: as in `population_statistics`; `"pooled"` merges by counts, the others average the
            statistics of the batches.

    Returns:
        The same tree with an `Accumulator` instead of each `Running`.

    Raises:
        ValueError: `how` is unknown.

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

    def swap(leaf: PyTree) -> PyTree:
        if not _running.is_stats(leaf):
            return leaf
        running = leaf.running if isinstance(leaf, Accumulator) else leaf
        zero = _running.zero_measurement(running)
        if how == "pooled":
            return Accumulator(running, zero)
        return Accumulator(
            running,
            BatchMeans(
                _running.to_running(zero), _running.to_running(zero), zero.count, zero.count
            ),
        )

    return jax.tree.map(swap, state, is_leaf=_running.is_stats)


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
            this weight of the old value; `None` replaces them.

    Returns:
        The tree with a `Running` for each `Accumulator`. Statistics without any value are those
        from before the accumulation.

    Raises:
        ValueError: `how` or `correction` is unknown or not that of `accumulate_statistics`, or
            the state does not accumulate.

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

    if not any(map(is_accumulator, jax.tree.leaves(state, is_leaf=_running.is_stats))):
        raise ValueError(
            "finalize_statistics() found no accumulated statistics in state: write state = "
            "accumulate_statistics(state) before the batches are run"
        )

    def swap(leaf: PyTree) -> PyTree:
        if not isinstance(leaf, Accumulator):
            return leaf
        measured = leaf.measured
        if isinstance(measured, BatchMeans) != (how != "pooled"):
            raise ValueError(
                f"finalize_statistics(how={how!r}) got a state that was accumulated in another "
                "way: write the same how in accumulate_statistics() and finalize_statistics()"
            )
        if decay is not None and how == "pooled":
            return _running.ema(leaf.running, measured, decay=decay, correction=correction)
        # `weights` tell, for mean and spread, where there is anything to replace the old value by.
        if isinstance(measured, BatchMeans):
            new = measured.unbiased if how == "unbiased" else measured.biased
            weights = [measured.batches, measured.pairs if how == "unbiased" else measured.batches]
        else:
            new = _running.to_running(measured, correction)
            # A single value has a mean but no unbiased spread.
            pairs = (measured.count > 1).astype(measured.count.dtype)
            weights = [measured.count, pairs if correction else measured.count]
        fields = zip(weights, new, leaf.running, strict=False)
        return type(leaf.running)(*(_running.where_measured(w, n, old) for w, n, old in fields))

    return jax.tree.map(swap, state, is_leaf=_running.is_stats)


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
            dictionaries of keywords of `apply`, such as `{"x": x, "lengths": n}`.
        how: `"pooled"`, `"unbiased"` or `"mean"`.
        upstream: how norms normalize during the pass, which decides the inputs of the norms after
            them: with `"batch"` by each batch's own statistics, as in training, with `"running"`
            by the running ones, as in evaluation.
        correction: with `"pooled"`, 1 stores the unbiased variance; a norm's own `correction`
            is not used, so write the same here.

    Returns:
        The state with new statistics, to be used with `stats="running"`.

    Raises:
        TypeError: `batches` is one array; or, for norms and layers, a batch is a tuple or list.
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
    collected = accumulate_statistics(state, how)
    if not any(map(_running.is_stats, jax.tree.leaves(state, is_leaf=_running.is_stats))):
        raise ValueError(
            "population_statistics() found no running statistics in state: pass the state that "
            "init returned for this layer (a layer of stateless norms needs no population "
            "statistics)"
        )
    for batch in validated_batches(batches, "population_statistics"):
        if hasattr(layer, "apply") and isinstance(batch, tuple | list):
            raise TypeError(
                "population_statistics() takes arrays, or dictionaries of the keywords of apply, "
                f'and got a {type(batch).__name__} for a batch: write ({{"x": x}} for x, y in '
                'batches), and with padding ({"x": x, "lengths": n} for x, n in batches)'
            )
        collected = _accumulate_batch(
            layer, params, block_on_cpu_devices(collected), batch, upstream
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


# Layers and norms are hashable values, so equal ones share the compiled function.
@functools.partial(jax.jit, static_argnames=("layer", "stats"))
def _accumulate_batch(
    layer: Callable | Any, params: PyTree, state: PyTree, batch: Any, stats: str
) -> PyTree:
    """Run a layer, or the `apply` function of a model, on one batch; return the next state."""
    apply = getattr(layer, "apply", None)
    if apply is None:
        return layer(params, state, batch, stats=stats)[1]
    keywords = batch if isinstance(batch, dict) else {"x": batch}
    return apply(params, state, stats=stats, **keywords)[1]
