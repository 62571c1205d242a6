"""Population statistics of a Linen model in one pass over data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax

from normjax._internal import _checks
from normjax.state import _population
from normjax.state._whole_model import has_statistics, plain
from normjax.statistics._types import PyTree


def population_update(
    apply: Callable[[PyTree, Any], tuple[Any, Mapping[str, Any]]],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    how: _population.How = "pooled",
    correction: int = 0,
    collection: str = "batch_stats",
) -> PyTree:
    r"""Estimate the statistics of a Linen model in one pass over data.

    The formulas are those of `normjax.population_statistics`; `"pooled"` gives the moments of the
    whole data set. For NNX models, `normjax.nnx.population_update`.

    Args:
        apply: `(variables, batch) -> (output, updated)`, the model's `apply` with
            `mutable=["batch_stats"]`. Its mode decides what the norms upstream normalize with:
            in training mode each batch's own statistics, which is right for statistics that were
            never measured; in evaluation mode the running ones, so that deeper norms are measured
            behind the old statistics of the norms before them. (`normjax.nnx.population_update`
            has an argument for it, `upstream="batch"`, because an NNX model has a mode.)
        variables: `{"params": ..., "batch_stats": ...}`.
        batches: iterable of batches.
        how: `"pooled"`, `"unbiased"` or `"mean"`.
        correction: with `"pooled"`, 1 stores the unbiased variance; a norm's own `correction`
            is ignored, so write the same here.
        collection: the collection that holds the statistics.

    Returns:
        The new `batch_stats`; where no batch had a value, the old.

    Raises:
        ValueError: no batch, no statistics, or a layer that is not of `normjax.linen`.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import linen
        >>> net = linen.Normalize(nj.batch_norm(), stats="batch")
        >>> data = [jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])]
        >>> variables = net.init(jax.random.key(0), data[0])
        >>> run = lambda v, x: net.apply(v, x, mutable=["batch_stats"])
        >>> linen.population_update(run, variables, data)["var"].tolist()
        [5.0]

    Reference:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", 2015, algorithm 2; Wu, Johnson, "Rethinking 'Batch' in
        BatchNorm", 2021 (precise statistics).
    """
    _checks.one_of("how", how, ("pooled", "unbiased", "mean"))
    initial = variables.get(collection, {})
    if not has_statistics(initial):
        raise ValueError(
            f"population_update() found no statistics in variables[{collection!r}]: pass the "
            "variables that init returned for a model with norms that keep some"
        )
    # Flax's apply returns plain dictionaries, also where it was given a FrozenDict. An accumulator
    # has other variables than the statistics, for which Flax's metadata, names of axes, is not.
    accumulators = _population.accumulate_statistics(plain(nn.meta.unbox(initial)), how)
    structure: Any = jax.tree.structure(accumulators)

    @jax.jit
    def add_batch(accumulators: PyTree, batch: Any) -> PyTree:
        return apply({**variables, collection: accumulators}, batch)[1][collection]

    for batch in _population.validated_batches(batches, "population_update"):
        accumulators = add_batch(_population.block_on_cpu_devices(accumulators), batch)
        if jax.tree.structure(accumulators) != structure:
            raise ValueError(
                "population_update() met a layer that does not accumulate statistics: make it a "
                "normjax.linen.Normalize(norm) or normjax.linen.BatchNorm, and return every "
                f'variable of the collection from apply, mutable=["{collection}"]'
            )
    new = _population.finalize_statistics(accumulators, how, correction=correction)
    return jax.tree.unflatten(jax.tree.structure(initial), jax.tree.leaves(new))
