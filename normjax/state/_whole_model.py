"""A whole model's statistics: reset, restore, and which parameters are a norm's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from normjax.state import _names
from normjax.statistics import _running
from normjax.statistics._types import Accumulator, PyTree

Path = tuple[Any, ...]
# Of our norms and of Flax's, of single norms, of weight normalization, of a GRU.
NORM_PARAMS = {"scale", "bias", "alpha", "slope", "threshold", "eps", "mean_weight", "var_weight"}
NORM_PARAMS |= {"g", "bias_hn"}
# A learned start of a recurrent layer: an array of that name, or an LSTM's two under it.
CARRIES = (("carry",), ("carry", "c"), ("carry", "h"))


def reset_statistics(state: PyTree, where: Callable[[Path], bool] | None = None) -> PyTree:
    """Return statistics to their start: mean 0, variance 1, covariance the identity.

    Args:
        state: any pytree of states, or `batch_stats`.
        where: of the key path of a norm's statistics, whether to; `None` is all.

    Returns:
        The same tree, reset. Anything that is not statistics stays as it is.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> stats = {"BatchNorm_0": {"mean": jnp.ones(1), "var": jnp.zeros(1)}}
        >>> node = nj.reset_statistics(stats)["BatchNorm_0"]
        >>> node["mean"].tolist(), node["var"].tolist()
        ([0.0], [1.0])
    """

    def swap(path: Path, node: PyTree) -> PyTree:
        found = _statistics(node)
        if found is None or (where is not None and not where(path)):
            return node
        if isinstance(found, Accumulator):
            running = _running.reset_running(found.running)
            made: PyTree = Accumulator(running, jax.tree.map(jnp.zeros_like, found.measured))
        else:
            made = _running.reset_running(found)
        return _like(node, made)

    return jax.tree_util.tree_map_with_path(
        swap, state, is_leaf=lambda node: _statistics(node) is not None
    )


def restore_statistics(
    before: PyTree, after: PyTree, where: Callable[[Path], bool] | None = None
) -> PyTree:
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
        >>> nj.restore_statistics(old, new, lambda path: path[0].key == "encoder")
        {'encoder': 0.0, 'head': 1.0}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, old, new: old if where is None or where(path) else new, before, after
    )


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
    if _running.is_stats(node):
        return node
    return _names.read_statistics(node) if isinstance(node, Mapping) else None


def running_of(node: PyTree) -> PyTree:
    return node.running if isinstance(node, Accumulator) else node


def _like(node: PyTree, made: PyTree) -> PyTree:
    return _names.to_dict(made) if isinstance(node, Mapping) else made


def _nodes(tree: PyTree) -> list[PyTree]:
    return jax.tree.leaves(tree, is_leaf=lambda node: _statistics(node) is not None)


def _map(tree: PyTree, change: Callable[[PyTree], PyTree]) -> PyTree:
    """Change every norm's statistics; dictionaries stay dictionaries."""

    def swap(node: PyTree) -> PyTree:
        found = _statistics(node)
        return node if found is None else _like(node, change(found))

    return jax.tree.map(swap, tree, is_leaf=lambda node: _statistics(node) is not None)
