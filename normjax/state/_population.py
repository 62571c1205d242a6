"""Population statistics: a pass over data in place of an exponential average.

The mechanism is one: `accumulate_statistics` puts a `Accumulator` in the place of every `Running`
of a state, whatever pytree it is, `apply` then adds each batch to it, and `finalize_statistics`
turns the result back into the state that evaluation reads. Around the microbatches of one step,
with `finalize_statistics(state, decay=...)`, the same two calls make gradient accumulation exact.
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
    """Make every running average of `state` gather batches exactly, starting empty.

    Args:
        state: any pytree with `Running` nodes, such as `init` of a norm or a layer returns.
        how: as in `population_statistics`; `"pooled"` merges counts, the others average per batch.

    Returns:
        The same tree with a `Accumulator` in the place of each `Running`.

    Raises:
        ValueError: unknown `how`.

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
    """Turn what `accumulate_statistics` gathered into running statistics.

    Args:
        state: a tree with `Accumulator` nodes.
        how: as in `population_statistics`, and as given to `accumulate_statistics`.
        correction: with `"pooled"`, 1 stores the variance times n / (n - 1); a norm's own
            `correction` is not looked at, so write the same here.
        decay: with `"pooled"`, move the running averages by what was gathered, as by one large
            batch, and keep this much of the old; `None` replaces them.

    Returns:
        The tree with a `Running` for each `Accumulator`; statistics that saw no value keep what
        they were before.

    Raises:
        ValueError: unknown `how` or `correction`; a tree that did not gather, or that was gathered
            the other way.

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
            f'settle(decay={decay}) takes how="pooled", the moments of one large batch'
        )

    if not any(map(is_accumulator, jax.tree.leaves(state, is_leaf=_running.is_stats))):
        raise ValueError(
            "settle() found nothing gathered in state: write state = collecting(state) before the "
            "batches are run"
        )

    def swap(leaf: PyTree) -> PyTree:
        if not isinstance(leaf, Accumulator):
            return leaf
        measured = leaf.measured
        if isinstance(measured, BatchMeans) != (how != "pooled"):
            raise ValueError(
                f"settle(how={how!r}) on a state that was gathered another way: write the same "
                "how in collecting() and settle()"
            )
        if decay is not None and how == "pooled":
            return _running.ema(leaf.running, measured, decay=decay, correction=correction)
        if isinstance(measured, BatchMeans):
            new = measured.unbiased if how == "unbiased" else measured.biased
            weights = [measured.batches, measured.pairs if how == "unbiased" else measured.batches]
        else:
            new = _running.to_running(measured, correction)
            pairs = (measured.count > 1).astype(measured.count.dtype)
            some = pairs if correction else measured.count
            weights = [measured.count, some]
        kept = zip(weights, new, leaf.running, strict=False)
        return type(leaf.running)(*(_running.where_measured(w, n, old) for w, n, old in kept))

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

    Three ways of the literature, for batches $B_1 \dots B_k$ of sizes $m_j$:

    $$\text{pooled:}\;\; \mu = \frac{\sum m_j \mu_j}{\sum m_j},\;\;
      \sigma^2 = \frac{\sum m_j(\sigma_j^2 + (\mu_j - \mu)^2)}{\sum m_j}$$
    $$\text{unbiased:}\;\; \mu = \tfrac1k \sum \mu_j,\;\;
      \sigma^2 = \tfrac1k \sum \tfrac{m_j}{m_j - 1}\sigma_j^2 \qquad
      \text{mean:}\;\; \mu = \tfrac1k \sum \mu_j,\;\; \sigma^2 = \tfrac1k \sum \sigma_j^2$$

    `"pooled"` is exact: the moments of the whole set. `"unbiased"` is the batch norm paper's
    (and the tutorials') estimate, `"mean"` the recurrent paper's; both leave out the spread
    of the means between batches.

    Args:
        layer: a `Norm`, a recurrent layer, or any function
            `apply(params, state, batch, *, stats) -> (output, state)` of a whole model.
        params: its parameters.
        state: its state; where no batch has a value, it is kept.
        batches: what `apply` takes as its input, one batch at a time; for norms and layers
            arrays, or dictionaries of the keywords of `apply`, such as `{"x": x, "lengths": n}`.
        how: `"pooled"`, `"unbiased"` or `"mean"`.
        upstream: what norms before a norm do meanwhile: normalize with each batch's own
            statistics, as in training, or with the running ones, as in evaluation.
        correction: with `"pooled"`, 1 stores the unbiased variance; a norm's own `correction`
            is not looked at, so write the same here.

    Returns:
        The state with new statistics, to be used with `stats="running"`.

    Raises:
        TypeError: one array for the list of batches; for norms and layers, batches that are
            tuples or lists.
        ValueError: unknown `how` or `upstream`, no batch, a state without statistics.

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
            "population() found no running statistics in state: pass the state that init returned "
            "for this layer (a layer of stateless norms needs no population statistics)"
        )
    for batch in validated_batches(batches, "population"):
        if hasattr(layer, "apply") and isinstance(batch, tuple | list):
            raise TypeError(
                f"population() takes arrays, or dictionaries of the keywords of apply, and got a "
                f'{type(batch).__name__} for a batch: write ({{"x": x}} for x, y in batches), and '
                'with padding ({"x": x, "lengths": n} for x, n in batches)'
            )
        collected = _accumulate_batch(
            layer, params, block_on_cpu_devices(collected), batch, upstream
        )
    return finalize_statistics(collected, how, correction=correction)


def validated_batches(batches: Iterable[Any], who: str) -> Iterator[Any]:
    """Go through the batches; refuse none, and one that stands for the list of them."""
    if isinstance(batches, jax.Array | np.ndarray):
        raise TypeError(
            f"{who}() takes a list of batches and got an array of shape {batches.shape}, whose "
            "rows would each be a batch: write [x] for one batch, list(x) for one a row"
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
    """The same tree; what lies on several CPU devices, not before it is computed.

    CPU devices share one pool of threads, and an all-reduce holds one until the last device joins:
    with batches in flight that are split over devices, XLA runs out of threads and aborts.
    """

    def wait(x: Any) -> Any:
        if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array) or len(x.devices()) == 1:
            return x
        return jax.block_until_ready(x) if next(iter(x.devices())).platform == "cpu" else x

    return jax.tree.map(wait, tree)


@functools.partial(jax.jit, static_argnames=("layer", "stats"))
def _accumulate_batch(
    layer: Callable | Any, params: PyTree, state: PyTree, batch: Any, stats: str
) -> PyTree:
    apply = getattr(layer, "apply", None)
    if apply is None:
        return layer(params, state, batch, stats=stats)[1]
    keywords = batch if isinstance(batch, dict) else {"x": batch}
    return apply(params, state, stats=stats, **keywords)[1]
