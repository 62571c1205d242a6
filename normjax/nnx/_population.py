"""Population statistics of an NNX model."""

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
    layers: list[Any] = []
    for path, node in nnx.iter_graph(model):
        if isinstance(node, OURS) and any(map(_running.is_stats, _nodes(statistics(node)))):
            layers.append(node)
        elif isinstance(node, nnx.BatchNorm) and not isinstance(node, OURS):
            raise ValueError(
                "population_update() met a layer that does not accumulate statistics, "
                f"{type(node).__name__} at {'.'.join(map(str, path)) or 'the top'}: make it a "
                "normjax.nnx.Normalize(norm, …) or normjax.nnx.BatchNorm"
            )
    if not layers:
        raise ValueError(
            "population_update() found no statistics in the model: pass one with norms of "
            "normjax.nnx that keep some"
        )

    @nnx.jit
    def add_batch(model: Any, batch: Any) -> None:
        if call is None:
            model(batch)
        else:
            call(model, batch)

    try:
        for layer in layers:
            state = _population.accumulate_statistics(statistics(layer), how)
            layer.accumulator, layer.upstream = ModuleState(state), upstream
        for batch in _population.validated_batches(batches, "population_update"):
            for layer in layers:
                _population.block_on_cpu_devices(layer.accumulator.get_value())
            add_batch(model, batch)
        states = [
            _population.finalize_statistics(
                layer.accumulator.get_value(), how, correction=correction
            )
            for layer in layers
        ]
    finally:
        # The running statistics were never written to: after an error the model is as it was.
        for layer in layers:
            if hasattr(layer, "accumulator"):
                del layer.accumulator, layer.upstream
    for layer, state in zip(layers, states, strict=True):
        write(layer, state)


def _nodes(state: Any) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=_running.is_stats)
