"""Functions of a whole model's statistics and parameters, whatever tree they are in.

A tree is what `init` of our norms and layers returns, in any nesting, or the `batch_stats` of
a Flax model, ours or with Flax's own layers. `collecting`, `settle` and `population` take the
first, `population_update` the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks, _merging, _population, _trees
from normjax.base import Collect, PyTree

Path = tuple[Any, ...]
# Of our norms and of Flax's, of single norms, of weight normalization, of a GRU.
NORM_PARAMS = {"scale", "bias", "alpha", "slope", "threshold", "eps", "mean_weight", "var_weight"}
NORM_PARAMS |= {"g", "bias_hn"}
# A learned start of a recurrent layer: an array of that name, or an LSTM's two under it.
CARRIES = (("carry",), ("carry", "c"), ("carry", "h"))


def reset(state: PyTree, where: Callable[[Path], bool] | None = None) -> PyTree:
    """Return statistics to their start: mean 0, variance 1, covariance the identity.

    Args:
        state: any pytree of states, or `batch_stats`.
        where: of the key path of a norm's statistics, whether to; `None` is all.

    Returns:
        The same tree, reset. Anything that is not statistics stays as it is.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> stats = {"BatchNorm_0": {"mean": jnp.ones(1), "var": jnp.zeros(1)}}
        >>> node = nj.reset(stats)["BatchNorm_0"]
        >>> node["mean"].tolist(), node["var"].tolist()
        ([0.0], [1.0])
    """

    def swap(path: Path, node: PyTree) -> PyTree:
        found = _statistics(node)
        if found is None or (where is not None and not where(path)):
            return node
        if isinstance(found, Collect):
            running = _merging.restart(found.running)
            made: PyTree = Collect(running, jax.tree.map(jnp.zeros_like, found.seen))
        else:
            made = _merging.restart(found)
        return _like(node, made)

    return jax.tree_util.tree_map_with_path(
        swap, state, is_leaf=lambda node: _statistics(node) is not None
    )


def freeze(before: PyTree, after: PyTree, where: Callable[[Path], bool] | None = None) -> PyTree:
    """Keep the statistics of `before`, where asked, and take those of `after` elsewhere.

    Statistics never move by themselves: frozen ones are those whose move is dropped. For a
    whole model that is to ignore the returned state; for a part of one, this function. Layers
    normalize with frozen statistics where they are called with `stats="running"`.

    Args:
        before: state or `batch_stats` before the step.
        after: the one that the step returned, of the same structure.
        where: of the key path of a leaf, whether it is frozen; `None` is all.

    Returns:
        A tree of the same structure.

    Raises:
        ValueError: the structures differ.

    Example:
        >>> import normjax as nj
        >>> old, new = {"encoder": 0.0, "head": 0.0}, {"encoder": 1.0, "head": 1.0}
        >>> nj.freeze(old, new, lambda path: path[0].key == "encoder")
        {'encoder': 0.0, 'head': 1.0}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, old, new: old if where is None or where(path) else new, before, after
    )


def population_update(
    apply: Callable[[PyTree, Any], tuple[Any, Mapping[str, Any]]],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    how: _population.How = "pooled",
    correction: int = 0,
    collection: str = "batch_stats",
) -> PyTree:
    r"""Estimate the statistics of a Linen model in one pass over data; `population` for Linen.

    The formulas are those of `population`; `"pooled"` gives the moments of the whole data set.
    For NNX models, `normjax.nnx.population_update`.

    Args:
        apply: `(variables, batch) -> (output, updated)`, the model's `apply` with
            `mutable=["batch_stats"]`. Its mode is that of the norms upstream meanwhile:
            training normalizes with each batch's own statistics, evaluation with the kept.
        variables: `{"params": ..., "batch_stats": ...}`.
        batches: iterable of batches.
        how: `"pooled"`, `"unbiased"` or `"mean"`.
        correction: with `"pooled"`, 1 stores the unbiased variance; a norm's own `correction`
            is not looked at, so write the same here.
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
        >>> nj.population_update(run, variables, data)["var"].tolist()
        [5.0]

    Reference:
        As `population`.
    """
    _checks.one_of("how", how, ("pooled", "unbiased", "mean"))
    start = variables.get(collection, {})
    found = [n for n in _nodes(start) if _statistics(n) is not None]
    if not found:
        raise ValueError(
            f"population_update() found no statistics in variables[{collection!r}]: pass the "
            "variables that init returned for a model with norms that keep some"
        )
    gathered = _map(start, lambda node: _population.collecting(_running(node), how))
    shape: Any = jax.tree.structure(gathered)

    @jax.jit
    def one(stats: PyTree, batch: Any) -> PyTree:
        return apply({**variables, collection: stats}, batch)[1][collection]

    for batch in _population.each(batches, "population_update"):
        gathered = one(_population.computed(gathered), batch)
        if jax.tree.structure(gathered) != shape:
            raise ValueError(
                "population_update() met a layer that does not gather statistics: make it a "
                "normjax.linen.Normalize(norm) or normjax.linen.BatchNorm, and return every "
                f'variable of the collection from apply, mutable=["{collection}"]'
            )
    return _map(gathered, lambda node: _population.settle(node, how, correction=correction))


def is_norm_param(path: Path) -> bool:
    """Whether a key path ends in a norm's parameter, the g of weight normalization, or a bias.

    For the mask of weight decay, which should leave them out: under a norm, decaying the gain
    only changes the effective learning rate. The last name of the path decides, in our trees
    and in Flax's, so the bias of a dense layer is among them, which is commonly not decayed
    either, and so is the learned first carry of a recurrent layer.

    Args:
        path: key path of `jax.tree_util.tree_map_with_path`, or a tuple of names.

    Returns:
        True for `scale`, `bias` and the other parameters of a norm (`alpha`, `slope`,
        `threshold`, `eps`, `mean_weight`, `var_weight`), for `g`, `bias_hn` and `carry`.

    Example:
        >>> import jax, normjax as nj
        >>> params = {"Dense_0": {"kernel": 1.0}, "BatchNorm_0": {"scale": 1.0}}
        >>> jax.tree_util.tree_map_with_path(lambda path, _: not nj.is_norm_param(path), params)
        {'BatchNorm_0': {'scale': False}, 'Dense_0': {'kernel': True}}

    Reference:
        van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", 2017.
    """
    names = [_name(key) for key in path]
    while names and names[-1] in ("value", "raw_value"):  # the box around an NNX parameter
        names.pop()
    # Flax's WeightNorm writes a whole path into one name: "Dense_0/kernel/scale".
    last = tuple("/".join(names).split("/")[-2:])
    return last[-1] in NORM_PARAMS or last[-1:] in CARRIES or last in CARRIES


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _statistics(node: PyTree) -> PyTree | None:
    """One norm's statistics, of a node that is them or a dictionary of their names."""
    if _merging.is_stats(node):
        return node
    return _trees.read_statistics(node) if isinstance(node, Mapping) else None


def _running(node: PyTree) -> PyTree:
    return node.running if isinstance(node, Collect) else node


def _like(node: PyTree, made: PyTree) -> PyTree:
    return _trees.to_dict(made) if isinstance(node, Mapping) else made


def _nodes(tree: PyTree) -> list[PyTree]:
    return jax.tree.leaves(tree, is_leaf=lambda node: _statistics(node) is not None)


def _map(tree: PyTree, change: Callable[[PyTree], PyTree]) -> PyTree:
    """Change every norm's statistics; dictionaries stay dictionaries."""

    def swap(node: PyTree) -> PyTree:
        found = _statistics(node)
        return node if found is None else _like(node, change(found))

    return jax.tree.map(swap, tree, is_leaf=lambda node: _statistics(node) is not None)
