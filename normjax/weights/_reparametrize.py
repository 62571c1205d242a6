"""Reparametrization of whole models: weights are found by their path in a params pytree."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax

from normjax._internal import _checks
from normjax._internal._exportable import exportable
from normjax.base import Reparam, Stats
from normjax.statistics._types import PyTree, is_accumulator

Rules = Mapping[str | Callable[[str], bool], Reparam]


@exportable
class ReparamState(NamedTuple):
    """State of a reparametrized layer: the layer's own, and one for each weight by path."""

    inner: PyTree
    weights: dict[str, PyTree]


@dataclasses.dataclass(frozen=True, repr=False)
class ReparamLayer:
    """A layer with some of its weights reparametrized, as a value; made by `reparam`."""

    factory: ClassVar[str] = "reparam"

    layer: Any
    rules: tuple[tuple[str, Reparam], ...]

    def init(self, *args: Any, **keywords: Any) -> tuple[PyTree, ReparamState]:
        """Return the layer's `(params, state)`, with the selected weights reparametrized.

        Args:
            *args: what the layer's `init` takes.
            **keywords: the same.

        Returns:
            `(params, ReparamState)`.

        Raises:
            ValueError: a path of the rules that does not exist.
        """
        params, state = self.layer.init(*args, **keywords)
        key: Any = keywords.get("key", args[0] if args else None)
        dtype = getattr(key, "dtype", None)
        if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            key = None
        params, weights = reparametrize(params, dict(self.rules), key=key)
        return params, ReparamState(state, weights)

    def apply(
        self, params: PyTree, state: ReparamState, *args: Any, stats: Stats, **keywords: Any
    ) -> tuple[Any, ReparamState]:
        """Compute every weight once and run the layer, scans inside included, with them.

        Args:
            params: what `init` returned.
            state: what `init` or the last `apply` returned.
            *args: what the layer's `apply` takes after its state.
            stats: `"batch"` or `"running"`, for the weights and the layer.
            **keywords: what the layer's `apply` takes.

        Returns:
            What the layer returns, with the state `ReparamState`.
        """
        params, weights = self.materialized(params, state, stats)
        out, inner = self.layer.apply(params, state.inner, *args, stats=stats, **keywords)
        return out, ReparamState(inner, weights)

    def materialized(
        self, params: PyTree, state: ReparamState, stats: Stats
    ) -> tuple[PyTree, dict[str, PyTree]]:
        """Return the layer's params as a call of this mode has them, and the weights' next states.

        Every method that runs the layer makes its weights here, so that all run one model.
        """
        inner, weights = state
        # A pass that gathers statistics measures one model: its weights must not move meanwhile.
        gathers = any(map(is_accumulator, jax.tree.leaves(inner, is_leaf=is_accumulator)))
        return materialize(params, weights, dict(self.rules), stats="running" if gathers else stats)

    @property
    def stateful(self) -> bool:
        """Whether the layer or one of its weights has a state."""
        of_weights = any(rule.stateful for _, rule in self.rules)
        return of_weights or bool(getattr(self.layer, "stateful", False))

    def __repr__(self) -> str:
        """Show the call that makes it."""
        rules = ", ".join(f"{path!r}: {rule!r}" for path, rule in self.rules)
        return f"{self.factory}({self.layer!r}, {{{rules}}})"


@functools.singledispatch
def wrap_layer(layer: Any, rules: tuple[tuple[str, Reparam], ...]) -> ReparamLayer:
    """Make the value that `reparam` returns; a family of layers registers a class of its own."""
    return ReparamLayer(layer, rules)


def reparam(layer: Any, rules: Mapping[str, Reparam]) -> ReparamLayer:
    """Reparametrize weights of a layer, and compute each of them once per call.

    The weights are made before the layer runs, so outside of any scan over time:
    `reparam(lstm(100), {"w_x": weight_norm(), "w_h": weight_norm()})` is a weight-normalized
    LSTM that normalizes once a sequence and not once a step.

    Args:
        layer: any value with `init(...) -> (params, state)` and
            `apply(params, state, x, *, stats, ...) -> (output, state)`: a recurrent layer, a
            `cosine_dense`, a norm, another reparametrized layer.
        rules: a `Reparam` for each path of its params, names joined by "/"; `*` stands for
            anything, so `"w_*"` is both weights of a recurrent layer. The first rule that fits
            a path is used.

    Returns:
        A layer of the same kind, for a `recurrent.Layer` another one: hashable, with equality,
        `repr` and pickle.

    Raises:
        TypeError: something that is no `Reparam`, a path that is no string.
        ValueError: no rules; and, when `init` is called, a path that does not exist.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> layer = nj.reparam(recurrent.lstm(8), {"w_*": nj.weight_norm()})
        >>> params, state = layer.init(jax.random.key(0), features=3)
        >>> params["w_h"].v.shape, params["w_h"].g.shape
        ((8, 32), (32,))
        >>> (y, carry), state = layer.apply(params, state, jnp.ones((2, 5, 3)), stats="batch")
        >>> y.shape
        (2, 5, 8)
    """
    for need in ("init", "apply"):
        if not callable(getattr(layer, need, None)):
            raise TypeError(f"reparam() wraps a layer with init and apply, and {layer!r} has none")
    pairs = _pairs(rules)
    for path, _ in pairs:
        if not isinstance(path, str):
            raise TypeError(
                f"reparam() takes paths as strings, so that the layer stays a value, not {path!r}: "
                'write a pattern such as "w_*" (functions are for reparametrize)'
            )
    return wrap_layer(layer, tuple(pairs))


def reparametrize(
    params: PyTree, rules: Rules, *, key: jax.Array | None = None
) -> tuple[PyTree, dict[str, PyTree]]:
    """Reparametrize the weights of any params pytree whose path fits a rule.

    Args:
        params: params of any framework: Linen's dictionaries, the pure dictionary of an NNX
            state, an Equinox module. Output features are the last axis in Flax and the first in
            Equinox and PyTorch, which need `weight_norm(axes=…)`.
        rules: a `Reparam` for each path, names joined by "/", where `*` stands for anything:
            `{"*/kernel": weight_norm()}`; or for each function of a path that says whether it is
            meant. The first that fits is used.
        key: PRNG key, for methods that start at random.

    Returns:
        `(params, state)`: the same tree with, for the methods of this library, a
        `DirectionAndGain(v, g)` for each of these weights; and their states by path.

    Raises:
        TypeError: something that is no `Reparam`.
        ValueError: a rule that no path fits; the message lists the paths there are.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> rules = {"*/kernel": nj.weight_norm()}
        >>> model = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
        >>> params, state = nj.reparametrize(model, rules)
        >>> params["dense"]["kernel"].g.tolist()
        [2.0, 2.0]
        >>> weights, state = nj.materialize(params, state, rules, stats="batch")
        >>> weights["dense"]["kernel"].shape
        (4, 2)
    """
    pairs = _pairs(rules)
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [_name(path) for path, _ in leaves]
    matches = [_match(name, pairs) for name in names]
    for i, (pattern, _) in enumerate(pairs):
        if not any(_fits(name, pattern) for name in names):
            raise ValueError(_no_path(pattern, names))
        if i not in matches:
            raise ValueError(
                f"the rule for {pattern!r} is never used, because an earlier one fits all of its "
                "paths: write the narrower rule first"
            )
    out, state = [], {}
    for i, (name, rule, (_, leaf)) in enumerate(zip(names, matches, leaves, strict=True)):
        if rule is None:
            out.append(leaf)
            continue
        weight_key = None if key is None else jax.random.fold_in(key, i)
        try:
            written, state[name] = pairs[rule][1].init(leaf, key=weight_key)
        except (TypeError, ValueError) as error:
            error.add_note(f"(while the weight at {name!r} was rewritten)")
            raise
        out.append(written)
    return jax.tree.unflatten(tree, out), state


def materialize(
    params: PyTree, state: Mapping[str, PyTree], rules: Rules, *, stats: Stats
) -> tuple[PyTree, dict[str, PyTree]]:
    """Compute the weights: the inverse of `reparametrize`, for use inside a loss.

    `module.apply({"params": weights}, x)` then runs any Flax module as it is. What is stored is
    not written to, and its gradient is that of the method.

    Args:
        params: what `reparametrize` returned, after any number of optimizer steps.
        state: what `reparametrize` or the last `materialize` returned.
        rules: the rules that `reparametrize` was given.
        stats: `"batch"`: states move (the power iteration of `spectral_norm`); `"running"`: not.

    Returns:
        `(weights, state)`, weights in the structure that `reparametrize` was given.

    Raises:
        ValueError: `params`, `state` and `rules` that do not belong together.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> rules = {"*/kernel": nj.weight_norm()}
        >>> params, state = nj.reparametrize({"dense": {"kernel": jnp.eye(2)}}, rules)
        >>> def loss(params):
        ...     weights, _ = nj.materialize(params, state, rules, stats="batch")
        ...     return weights["dense"]["kernel"].sum()
        >>> jax.grad(loss)(params)["dense"]["kernel"].g.tolist()
        [1.0, 1.0]
    """
    _checks.stats(stats)
    pairs = _pairs(rules)
    moved: dict[str, PyTree] = {}

    def make(path: Any, node: PyTree) -> PyTree:
        name = _name(path)
        if name not in state:
            return node
        rule = _match(name, pairs)
        if rule is None:
            raise ValueError(
                f"no rule fits {name!r}, which was reparametrized: give materialize the rules that "
                "reparametrize was given"
            )
        w, moved[name] = pairs[rule][1].apply(node, state[name], stats=stats)
        return w

    weights = jax.tree_util.tree_map_with_path(
        make, params, is_leaf=lambda path, _: _name(path) in state, is_leaf_takes_path=True
    )
    if missing := sorted(set(state) - set(moved)):
        raise ValueError(
            f"params have nothing at {missing}: give materialize the params and the state that "
            "one reparametrize returned"
        )
    return weights, {name: moved[name] for name in state}


def _pairs(rules: Any) -> list[tuple[Any, Reparam]]:
    pairs = list(rules.items())
    if not pairs:
        raise ValueError('there are no rules: write {"path": weight_norm()}')
    for path, rule in pairs:
        if not isinstance(rule, Reparam):
            raise TypeError(
                f"the rule for {path!r} is {rule!r} and must be a Reparam: write "
                f"{{{path!r}: weight_norm()}}"
            )
    return pairs


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _fits(name: str, pattern: Any) -> bool:
    return pattern(name) if callable(pattern) else fnmatch.fnmatchcase(name, pattern)


def _match(name: str, pairs: list[tuple[Any, Reparam]]) -> int | None:
    """Index of the first rule that fits."""
    return next((i for i, (pattern, _) in enumerate(pairs) if _fits(name, pattern)), None)


def _no_path(pattern: Any, names: list[str]) -> str:
    close = difflib.get_close_matches(str(pattern), names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"no path fits {pattern!r}{hint}: there are {', '.join(map(repr, names)) or 'none'}"
