"""Population statistics of an NNX model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from normjax._internal import _checks
from normjax.nnx._norms import BatchNorm
from normjax.nnx._wrap import Gathered, Normalize, Recurrent, statistics, write
from normjax.state import _population
from normjax.statistics import _running

OURS = (BatchNorm, Normalize, Recurrent)


def population_update(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    call: Callable[[Any, Any], Any] | None = None,
    how: _population.How = "pooled",
    correction: int = 0,
) -> None:
    r"""Estimate the statistics of an NNX model in one pass over data, in place.

    The formulas are those of `normjax.population_statistics`; `"pooled"` gives the moments of the
    whole data set. The mode is the model's, and is that of the norms upstream meanwhile: after
    `train()` they normalize with each batch's own statistics, after `eval()` with the kept.

    Args:
        model: the model; its norms that keep statistics are ours.
        batches: iterable of batches.
        call: `(model, batch) -> anything`, how the model is run; by default `model(batch)`.
        how: `"pooled"`, `"unbiased"` or `"mean"`.
        correction: with `"pooled"`, 1 stores the unbiased variance; a norm's own `correction`
            is not looked at, so write the same here.

    Raises:
        ValueError: no batch, no statistics, or a batch norm that is not of `normjax.nnx`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from flax import nnx
        >>> from normjax import nnx as nn
        >>> net = nn.Normalize(nj.batch_norm(), 1, stats="batch", rngs=nnx.Rngs(0))
        >>> nn.population_update(net, [jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])])
        >>> net.var[...].tolist()
        [5.0]

    Reference:
        As `normjax.population_statistics`.
    """
    _checks.one_of("how", how, ("pooled", "unbiased", "mean"))
    _checks.one_of("correction", correction, (0, 1))
    layers: list[Any] = []
    for path, node in nnx.iter_graph(model):
        if isinstance(node, OURS) and any(map(_running.is_stats, _nodes(statistics(node)))):
            layers.append(node)
        elif isinstance(node, nnx.BatchNorm) and not isinstance(node, OURS):
            raise ValueError(
                "population_update() met a layer that does not gather statistics, "
                f"{type(node).__name__} at {'.'.join(map(str, path)) or 'the top'}: make it a "
                "normjax.nnx.Normalize(norm, …) or normjax.nnx.BatchNorm"
            )
    gathered = {id(m): _population.accumulate_statistics(statistics(m), how) for m in layers}
    if not layers:
        raise ValueError(
            "population_update() found no statistics in the model: pass one with norms of "
            "normjax.nnx that keep some"
        )

    @nnx.jit
    def one(model: Any, batch: Any) -> None:
        if call is None:
            model(batch)
        else:
            call(model, batch)

    try:
        for m in layers:
            m.gathered = Gathered(gathered[id(m)])
        for batch in _population.validated_batches(batches, "population_update"):
            for m in layers:
                _population.block_on_cpu_devices(m.gathered.get_value())
            one(model, batch)
        settled = [
            _population.finalize_statistics(m.gathered.get_value(), how, correction=correction)
            for m in layers
        ]
    finally:
        # What is kept was never written to: after an error the model is as it was.
        for m in layers:
            del m.gathered
    for m, state in zip(layers, settled, strict=True):
        write(m, state)


def _nodes(state: Any) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=_running.is_stats)
