"""Resets and restores the statistics of a whole model, and finds the parameters of norms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from normjax._internal import _checks
from normjax.state import _names
from normjax.statistics import _running
from normjax.statistics._types import Accumulator, PyTree

Path = tuple[Any, ...]
# Parameters of this library's norms and of Flax's; g of weight norm and bias_hn of a GRU.
NORM_PARAMS = {"scale", "bias", "alpha", "slope", "threshold", "eps", "mean_weight", "var_weight"}
NORM_PARAMS |= {"shift", "g", "bias_hn"}
# Those of Haiku's norms, and the biases of its layers.
HAIKU_PARAMS = NORM_PARAMS | {"offset", "b"}
# A learned initial carry of a recurrent layer: one array, or the two of an LSTM.
CARRIES = (("carry",), ("carry", "c"), ("carry", "h"))


def reset_statistics(state: PyTree, where: Callable[[Path], bool] | None = None) -> PyTree:
    """Reset statistics to their initial values: mean 0, variance 1, covariance the identity.

    Args:
        state: any pytree of states, or `batch_stats`.
        where: function of the key path of a norm's statistics that is True if they are reset;
            `None` resets all.

    Returns:
        The same tree with reset statistics. Everything else stays as it is.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> stats = {"BatchNorm_0": {"mean": jnp.ones(1), "var": jnp.zeros(1)}}
        >>> node = nj.reset_statistics(stats)["BatchNorm_0"]
        >>> node["mean"].tolist(), node["var"].tolist()
        ([0.0], [1.0])
    """

    def swap(path: Path, node: PyTree) -> PyTree:
        stats = _statistics(node)
        if stats is None or (where is not None and not where(path)):
            return node
        if isinstance(stats, Accumulator):
            running = _running.reset_running(stats.running)
            zeros = jax.tree.map(jnp.zeros_like, stats.measured)
            initial: PyTree = stats._replace(running=running, measured=zeros)
        else:
            initial = _running.reset_running(stats)
        return _like(node, initial)

    return jax.tree_util.tree_map_with_path(
        swap, state, is_leaf=lambda node: _statistics(node) is not None
    )


def restore_statistics(
    before: PyTree, after: PyTree, where: Callable[[Path], bool] | None = None
) -> PyTree:
    """Undo the update of frozen statistics: take them from `before`, all others from `after`.

    To freeze the statistics of a whole model, ignore the state that `apply` returns. To freeze
    part of a model, use this function after each step. Layers normalize with frozen statistics
    when they are called with `stats="running"`.

    Args:
        before: state or `batch_stats` before the step.
        after: the one that the step returned, of the same structure. One of the two may be a
            `FrozenDict` where the other is a dictionary.
        where: function of the key path of a leaf that is True if it is frozen; `None` freezes all.

    Returns:
        A tree of the structure of `after`.

    Raises:
        ValueError: the structures differ.

    Example:
        >>> import normjax as nj
        >>> old, new = {"encoder": 0.0, "head": 0.0}, {"encoder": 1.0, "head": 1.0}
        >>> nj.restore_statistics(old, new, lambda path: path[0].key == "encoder")
        {'encoder': 0.0, 'head': 1.0}
    """
    restored = jax.tree_util.tree_map_with_path(
        lambda path, old, new: old if where is None or where(path) else new,
        plain(before),
        plain(after),
    )
    return jax.tree.unflatten(jax.tree.structure(after), jax.tree.leaves(restored))


def plain(tree: PyTree) -> PyTree:
    """Return a FrozenDict as nested dictionaries, whose leaves have the same order."""
    return tree.unfreeze() if hasattr(tree, "unfreeze") else tree


Rules = Literal["flax", "haiku", "equinox"] | Collection[str] | Callable[[tuple[str, ...]], bool]


def is_norm_param(path: Path, rules: Rules = "flax") -> bool:
    """Whether a key path ends in a norm's parameter, the g of weight normalization, or a bias.

    Use it for the mask of weight decay, which should leave these parameters out: under a norm,
    decaying the gain only changes the effective learning rate. The last name of the path decides,
    by the names of a framework. So it is also True for the bias of a dense layer, which is usually
    not decayed either, and for the learned initial carry of a recurrent layer.

    Args:
        path: key path of `jax.tree_util.tree_map_with_path`, or a tuple of names.
        rules: whose names. `"flax"`: those of this library and of Flax. `"haiku"`: also `offset`
            and `b`. `"equinox"`: `bias`, and `weight` of a module in a field whose name has
            "norm" in it, such as `norm1` or `norms[0]`. Or a collection of last names, or a
            function of all names of the path.

    Returns:
        With `"flax"`, True for `scale`, `bias` and the other parameters of a norm (`alpha`,
        `shift`, `slope`, `threshold`, `eps`, `mean_weight`, `var_weight`), for `g`, `bias_hn` and
        `carry`.

    Raises:
        ValueError: `rules` is the name of no framework above.

    Example:
        >>> import jax, normjax as nj
        >>> params = {"Dense_0": {"kernel": 1.0}, "BatchNorm_0": {"scale": 1.0}}
        >>> jax.tree_util.tree_map_with_path(lambda path, _: not nj.is_norm_param(path), params)
        {'BatchNorm_0': {'scale': False}, 'Dense_0': {'kernel': True}}

    Reference:
        van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", 2017.
    """
    names = [_name(key) for key in path]
    if callable(rules):
        return bool(rules(tuple(names)))
    if isinstance(rules, str):
        _checks.one_of("rules", rules, ("flax", "haiku", "equinox"))
        if rules == "equinox":
            return _is_equinox_norm_param(names)
    else:
        return bool(names) and names[-1] in rules
    known = HAIKU_PARAMS if rules == "haiku" else NORM_PARAMS
    while names and names[-1] in ("value", "raw_value"):  # the wrapper of an NNX parameter
        names.pop()
    # Flax's WeightNorm writes a whole path into one name: "Dense_0/kernel/scale".
    last = tuple("/".join(names).split("/")[-2:])
    return last[-1] in known or last[-1:] in CARRIES or last in CARRIES


def _is_equinox_norm_param(names: list[str]) -> bool:
    """Whether the last of these fields is a bias, or the weight of a module called a norm."""
    if names[-1:] == ["bias"]:
        return True
    fields = [name for name in names[:-1] if not name.isdigit()]
    return names[-1:] == ["weight"] and "norm" in "".join(fields[-1:]).lower()


def _name(key: Any) -> str:
    """Return the name of one entry of a key path: of a dictionary, an attribute or a sequence."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _statistics(node: PyTree) -> PyTree | None:
    """Return one norm's statistics, from their type or a dictionary of their names, or `None`."""
    if _running.is_stats(node):
        return node
    return _names.read_statistics(node) if isinstance(node, Mapping) else None


def running_of(node: PyTree) -> PyTree:
    """Return the running statistics of a node, also if it accumulates."""
    return node.running if isinstance(node, Accumulator) else node


def _like(node: PyTree, stats: PyTree) -> PyTree:
    """Return `stats` as a dictionary, of the type of `node`, if `node` is one."""
    if not isinstance(node, Mapping):
        return stats
    values = _names.to_dict(stats)
    return values if isinstance(node, dict) else type(node)(values)  # type: ignore[call-arg]


def has_statistics(tree: PyTree) -> bool:
    """Whether a tree has a norm's statistics, as a node of ours or as a dictionary."""
    return any(_statistics(node) is not None for node in _nodes(tree))


def _nodes(tree: PyTree) -> list[PyTree]:
    """Return the leaves of a tree, with each norm's statistics as one leaf."""
    return jax.tree.leaves(tree, is_leaf=lambda node: _statistics(node) is not None)


def map_statistics(tree: PyTree, change: Callable[[PyTree], PyTree]) -> PyTree:
    """Change every norm's statistics; dictionaries stay dictionaries."""

    def swap(node: PyTree) -> PyTree:
        stats = _statistics(node)
        return node if stats is None else _like(node, change(stats))

    return jax.tree.map(swap, tree, is_leaf=lambda node: _statistics(node) is not None)
