"""Population statistics and exact accumulation of statistics of an NNX model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from normjax._internal import _checks
from normjax.base import Stats
from normjax.nnx._norms import BatchNorm
from normjax.nnx._wrap import ModuleState, Normalize, Recurrent, statistics, write
from normjax.state import _population
from normjax.statistics import _running
from normjax.statistics._types import PyTree

OURS = (BatchNorm, Normalize, Recurrent)


def population_update(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    call: Callable[[Any, Any], Any] | None = None,
    how: _population.How = "pooled",
    upstream: Stats = "batch",
    correction: int = 0,
) -> None:
    r"""Estimate the statistics of an NNX model in one pass over data, in place.

    The formulas are those of `normjax.population_statistics`; `"pooled"` gives the moments of the
    whole data set. During the pass `upstream` replaces the mode of the norms, whether it was set by
    `train()` and `eval()` or at the call. All else, such as dropout and the noise of a `Recurrent`,
    is in the mode of the model: write `model.eval()` for a pass without noise.

    Args:
        model: the model; its norms that keep statistics are ours.
        batches: iterable of batches.
        call: `(model, batch) -> anything`, how the model is run; by default `model(batch)`.
        how: `"pooled"`, `"unbiased"` or `"mean"`.
        upstream: how norms normalize during the pass, which decides the inputs of the norms after
            them: with `"batch"` by each batch's own statistics, as in training, with `"running"`
            by the running ones, as in evaluation.
        correction: with `"pooled"`, 1 stores the unbiased variance; a norm's own `correction`
            is ignored, so write the same here.

    Raises:
        ValueError: no batch, no statistics, or a batch norm that is not of `normjax.nnx`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> net = nn.Normalize(nj.batch_norm(), 1, rngs=nnx.Rngs(0))
        >>> nn.population_update(net, [jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])])
        >>> net.var[...].tolist()
        [5.0]

    Reference:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", 2015, algorithm 2; Wu, Johnson, "Rethinking 'Batch' in
        BatchNorm", 2021 (precise statistics).
    """
    _checks.one_of("how", how, ("pooled", "unbiased", "mean"))
    _checks.one_of("correction", correction, (0, 1))
    _checks.stats(upstream)
    layers = _layers(model, "population_update")

    @nnx.jit
    def add_batch(model: Any, batch: Any) -> None:
        if call is None:
            model(batch)
        else:
            call(model, batch)

    try:
        _start(layers, how)
        for layer in layers:
            layer.upstream = upstream
        for batch in _population.validated_batches(batches, "population_update"):
            for layer in layers:
                _population.block_on_cpu_devices(layer.accumulator.get_value())
            add_batch(model, batch)
        states = _finish(layers, how, correction, None)
    finally:
        # The running statistics were never written to: after an error the model is as it was.
        for layer in layers:
            for name in ("accumulator", "upstream"):
                if hasattr(layer, name):
                    delattr(layer, name)
    for layer, state in zip(layers, states, strict=True):
        write(layer, state)


def accumulate_statistics(model: nnx.Module, how: _population.How = "pooled") -> None:
    """Make the norms of an NNX model accumulate statistics exactly, initially of none, in place.

    Until `finalize_statistics` each call adds its batch, and the running statistics stay as they
    are. So the microbatches of one step move the running statistics as one large batch does.

    Args:
        model: the model; its norms that keep statistics are ours.
        how: as in `normjax.accumulate_statistics`.

    Raises:
        ValueError: `how` is unknown, the model has no statistics or accumulates already, or has a
            batch norm that is not of `normjax.nnx`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> net = nn.Normalize(nj.batch_norm(), 1, stats="batch", rngs=nnx.Rngs(0))
        >>> nn.accumulate_statistics(net)
        >>> for micro in jnp.array([[[1.0], [2.0]], [[3.0], [6.0]]]):
        ...     y = net(micro)
        >>> nn.finalize_statistics(net)
        >>> net.mean[...].tolist()
        [3.0]
    """
    _checks.one_of("how", how, ("pooled", "unbiased", "mean"))
    _start(_layers(model, "accumulate_statistics"), how)


def finalize_statistics(
    model: nnx.Module,
    how: _population.How = "pooled",
    *,
    correction: int = 0,
    decay: float | None = None,
) -> None:
    """Turn the accumulated statistics of an NNX model into running statistics, in place.

    Args:
        model: a model after `accumulate_statistics` and some calls.
        how: the same as in `accumulate_statistics`.
        correction: with `"pooled"`, 1 stores the variance times n / (n - 1); a norm's own
            `correction` is not used, so write the same here.
        decay: with `"pooled"`, update the running averages once, as with one large batch, with
            this weight of the old value; `None` replaces them.

    Raises:
        ValueError: `how` or `correction` is unknown or not that of `accumulate_statistics`, or
            the model does not accumulate.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> net = nn.BatchNorm(1, use_running_average=False, rngs=nnx.Rngs(0))
        >>> nn.accumulate_statistics(net)
        >>> y = net(jnp.array([[1.0], [3.0]]))
        >>> nn.finalize_statistics(net, decay=0.5)
        >>> net.mean[...].tolist()
        [1.0]
    """
    layers = [
        node
        for _, node in nnx.iter_graph(model)
        if isinstance(node, OURS) and hasattr(node, "accumulator")
    ]
    if not layers:
        raise ValueError(
            "finalize_statistics() found no accumulated statistics in the model: write "
            "accumulate_statistics(model) before the batches are run"
        )
    states = _finish(layers, how, correction, decay)
    for layer, state in zip(layers, states, strict=True):
        del layer.accumulator
        write(layer, state)


def _layers(model: Any, who: str) -> list[Any]:
    """Return the modules of ours that keep statistics; raise if there is none, or another's."""
    layers: list[Any] = []
    for path, node in nnx.iter_graph(model):
        if isinstance(node, OURS) and any(map(_running.is_stats, _nodes(statistics(node)))):
            layers.append(node)
        elif isinstance(node, nnx.BatchNorm) and not isinstance(node, OURS):
            raise ValueError(
                f"{who}() met a layer that does not accumulate statistics, "
                f"{type(node).__name__} at {'.'.join(map(str, path)) or 'the top'}: make it a "
                "normjax.nnx.Normalize(norm, …) or normjax.nnx.BatchNorm"
            )
    if not layers:
        raise ValueError(
            f"{who}() found no statistics in the model: pass one with norms of normjax.nnx that "
            "keep some"
        )
    if any(hasattr(layer, "accumulator") for layer in layers):
        raise ValueError(
            f"{who}() got a model that accumulates already: write finalize_statistics(model) "
            "after the last batch"
        )
    return layers


def _start(layers: list[Any], how: _population.How) -> None:
    """Give each module an empty accumulator."""
    for layer in layers:
        layer.accumulator = ModuleState(_population.accumulate_statistics(statistics(layer), how))


def _finish(
    layers: list[Any], how: _population.How, correction: int, decay: float | None
) -> list[PyTree]:
    """Return the new statistics of each module, without writing them."""
    return [
        _population.finalize_statistics(
            layer.accumulator.get_value(), how, correction=correction, decay=decay
        )
        for layer in layers
    ]


def _nodes(state: Any) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=_running.is_stats)
