"""Folds the norms of a whole model into the layers around them, by path: `fold_model`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from normjax._internal import _checks
from normjax.base import Affine, Norm
from normjax.state import _names, _paths
from normjax.state._fold import fold, fold_conv, fold_dense
from normjax.state._fold_next import fold_next
from normjax.statistics._types import PyTree


@dataclasses.dataclass(frozen=True)
class FoldRule:
    """Say which norm of a model goes into which layers; for `fold_model`.

    Attributes:
        norm: the norm, with the eps of the model.
        path: its path in the parameters, names joined by `/`. A `*` stands for one name or part
            of one, so that one rule serves all blocks of a model.
        before: path of the layer before it, which takes gain, bias and statistics as `fold` does.
            Each `*` is filled with what it stands for in `path`, in order.
        behind: path or paths of the layers that read its output, which take gain and bias as
            `fold_next` does.
        options: keywords of `fold_conv` or `fold_next`, such as `{"padding": "VALID"}`.
    """

    norm: Norm
    path: str
    before: str | None = None
    behind: str | Sequence[str] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the rule names a norm and one side of it."""
        _checks.require_instance("norm", self.norm, Norm, "FoldRule")
        behind = (self.behind,) if isinstance(self.behind, str) else tuple(self.behind)
        object.__setattr__(self, "behind", behind)
        if bool(self.before) == bool(behind):
            raise ValueError(
                f"FoldRule({self.path!r}) names one side: write before= for the layer whose output "
                "the norm reads, or behind= for those that read the norm's"
            )


def fold_model(variables: Mapping[str, Any], rules: Sequence[FoldRule]) -> dict[str, Any]:
    """Fold the norms of a whole model into the layers around them, by path.

    The model for serving is the same without these norms where they went into the layer before,
    and with norms of `use_scale=False, use_bias=False` where they went into those behind. A layer
    that took a bias has one: define it with `use_bias=True`.

    Args:
        variables: those of a Flax model, `{"params": …, "batch_stats": …}`, or the parameters alone
            where no rule needs statistics. An NNX model gives its parameters and statistics in one
            nested dictionary, `nnx.to_pure_dict(nnx.state(model))`.
        rules: which norms go where, applied in this order.

    Returns:
        New nested dictionaries: kernels and biases that took the norms, and no entries of what is
        folded.

    Raises:
        TypeError: a norm cannot be folded on this side; see `fold` and `fold_next`.
        ValueError: a path matches nothing, a layer has no kernel, a layer reads two norms, or
            folding would not be exact.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> params = {
        ...     "norm": {"scale": jnp.full(2, 3.0)},
        ...     "query": {"kernel": jnp.ones((2, 1))},
        ...     "key": {"kernel": jnp.ones((2, 1))},
        ... }
        >>> rule = nj.FoldRule(nj.rms_norm(), "norm", behind=("query", "key"))
        >>> nj.fold_model(params, [rule])["query"]["kernel"].tolist()
        [[3.0], [3.0]]

    Reference:
        Graef, Wasielewski, Clapp, "FlashNorm: Fast Normalization for LLMs", 2024.
    """
    plain = variables.unfreeze() if hasattr(variables, "unfreeze") else variables
    tree = _paths.copied(plain)
    params = tree["params"] if isinstance(tree.get("params"), dict) else tree
    stats = tree.get("batch_stats", {}) if params is not tree else tree
    readers: dict[str, str] = {}
    for rule in rules:
        known = _paths.nodes(params).keys() | _paths.nodes(stats).keys()
        matched = [(p, m) for p in sorted(known) if (m := _paths.match(rule.path, p)) is not None]
        if not matched:
            raise ValueError(f"no norm is at {rule.path!r}{_paths.near(rule.path, known)}")
        for path, found in matched:
            if rule.before is not None:
                layer = _paths.fill(rule.before, found, rule.path)
                _fold_before(rule, path, layer, params, stats)
                continue
            for template in rule.behind:
                layer = _paths.fill(template, found, rule.path)
                if layer in readers:
                    raise ValueError(
                        f"{layer!r} would take the gains of {readers[layer]!r} and of {path!r}: a "
                        "layer reads one norm"
                    )
                readers[layer] = path
                _fold_behind(rule, path, layer, params)
            for name in ("scale", "bias"):
                _paths.drop(params, f"{path}/{name}")
    return tree


def _fold_before(
    rule: FoldRule, path: str, at: str, params: dict[str, Any], stats: dict[str, Any]
) -> None:
    """Fold one norm into the layer before it, and remove it."""
    layer = _layer(at, params)
    affine = _affine(path, params)
    running = {k: v for k, v in (_paths.get(stats, path) or {}).items() if k not in affine._fields}
    if rule.norm.stateful and not running:
        raise ValueError(
            f"{rule.norm.factory} at {path!r} has no statistics: pass the model's variables, "
            '{"params": …, "batch_stats": …}'
        )
    state: PyTree = _names.read_statistics(running) if running else ()
    folded = fold(rule.norm, affine, running if state is None else state)
    kernel, bias = layer["kernel"], layer.get("bias")
    if kernel.ndim == 2 and not rule.options:
        layer["kernel"], layer["bias"] = fold_dense(kernel, bias, folded)
    else:
        layer["kernel"], layer["bias"] = fold_conv(kernel, bias, folded, **rule.options)
    for name in (*affine._fields, *running):
        _paths.drop(params, f"{path}/{name}")
        _paths.drop(stats, f"{path}/{name}")


def _fold_behind(rule: FoldRule, path: str, at: str, params: dict[str, Any]) -> None:
    """Fold gain and bias of one norm into one layer that reads it."""
    layer = _layer(at, params)
    affine = _affine(path, params)
    kernel, bias = fold_next(rule.norm, affine, layer["kernel"], layer.get("bias"), **rule.options)
    layer["kernel"] = kernel
    if bias is not None:
        layer["bias"] = bias


def _layer(at: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a layer; raise unless it has a kernel."""
    layer = _paths.get(params, at)
    if not isinstance(layer, dict) or "kernel" not in layer:
        layers = [p for p, node in _paths.nodes(params).items() if "kernel" in node]
        raise ValueError(f"no layer with a kernel is at {at!r}{_paths.near(at, layers)}")
    return layer


def _affine(path: str, params: dict[str, Any]) -> Affine:
    """Return the gain and bias of a norm; one without parameters has no entry."""
    node = _paths.get(params, path) or {}
    if "kernel" in node:
        raise ValueError(f"a layer with a kernel is at {path!r}, not a norm: narrow the rule")
    return Affine(node.get("scale"), node.get("bias"))
