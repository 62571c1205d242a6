"""Folds the norms of a recurrent layer, as used in inference, into constants: `fold`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from normjax.base import Affine
from normjax.norms._identity import identity
from normjax.recurrent._base import Layer
from normjax.recurrent._bidirectional import Bidirectional
from normjax.recurrent._per_step import PerStep
from normjax.recurrent._recurrent import Recurrent
from normjax.recurrent._seq_norm import SeqNorm
from normjax.recurrent._shared import Shared
from normjax.recurrent._stack import Stack
from normjax.state import _names
from normjax.state._fold import fold as fold_norm
from normjax.state._fold import is_folded
from normjax.statistics._types import PyTree

L = TypeVar("L", bound=Layer)

_CONSTANTS = identity(use_scale=True, use_bias=True)


def fold(layer: L, params: PyTree, state: PyTree) -> tuple[L, PyTree, PyTree]:
    r"""Fold the norms of a layer, as in inference, into one multiplication and addition a place.

    $$\mathrm{BN}_t(z) = s_t \odot z + b_t, \qquad
      s_t = \frac{\gamma}{\sqrt{\sigma_t^2 + \epsilon}}, \quad b_t = \beta - s_t \odot \mu_t$$

    The result is a layer of the same kind, with constants `identity(use_scale=True,
    use_bias=True)` in place of the norms with running statistics: per step under `per_step`,
    one set under `shared` and `sequence_wise`. It takes all arguments of the layer (lengths,
    carries, devices), has no statistics, and is for serving: training it trains the constants.

    Args:
        layer: an `lstm`, `gru` or `rnn`, a `stack` or a `bidirectional` of them. Norms that depend
            on the sample, and those between layers, stay as they are.
        params: its parameters.
        state: its state, with the statistics that inference uses.

    Returns:
        `(layer, params, state)` of the folded layer. Its `apply` with either mode gives what the
        layer gives with `stats="running"`.

    Raises:
        TypeError: another kind of layer, such as a reparametrized one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import recurrent
        >>> layer = recurrent.bn_lstm(4, max_steps=5)
        >>> params, state = layer.init(jax.random.key(0), features=3)
        >>> served, constants, empty = recurrent.fold(layer, params, state)
        >>> constants["norm_h"].scale.shape
        (5, 16)
        >>> (y, _), _ = served.apply(constants, empty, jnp.ones((2, 5, 3)), stats="running")
        >>> y.shape
        (2, 5, 4)

    Reference:
        Ioffe, Szegedy, "Batch Normalization", 2015, algorithm 2, line 11; Cooijmans et al.,
        "Recurrent Batch Normalization", 2017 (statistics of each step).
    """
    made: Any
    if isinstance(layer, Stack):
        new = dict(params), dict(state)
        parts = {name: fold(part, params[name], state[name]) for name, part in layer.parts.items()}
        for tree, index in zip(new, (1, 2), strict=True):
            tree |= {name: part[index] for name, part in parts.items()}
        made = dataclasses.replace(layer, layers=tuple(part[0] for part in parts.values()))
        return made, *new
    if isinstance(layer, Bidirectional):
        sides: dict[str, Any] = {
            n: fold(part, params[n], state[n]) for n, part in layer.parts.items()
        }
        directions: dict[str, Any] = {n: side[0] for n, side in sides.items()}
        made = dataclasses.replace(layer, **directions)
        return made, *({n: side[i] for n, side in sides.items()} for i in (1, 2))
    if not isinstance(layer, Recurrent):
        raise TypeError(
            f"fold takes an lstm, gru or rnn, a stack or a bidirectional of them, and got {layer!r}"
            ": materialize a reparametrized layer's weights first"
        )
    new_params, new_state = dict(params), dict(state)
    places: dict[str, Any] = {}
    for place, norm in layer.norms().items():
        if not is_folded(norm.norm):
            continue
        lifted, affine = _constants(norm, *_named(layer, place, norm, params, state))
        places[place], new_params[place], new_state[place] = lifted, affine, ()
    # A kernel that trains batch norms has none to run.
    options: dict[str, Any] = {"impl": "xla"} if getattr(layer, "impl", "xla") == "kernel" else {}
    made = dataclasses.replace(layer, **places, **options)
    return made, new_params, new_state


def _constants(norm: SeqNorm, params: PyTree, state: PyTree) -> tuple[SeqNorm, Affine]:
    """Return the lifted constants of one place, and their values."""
    if isinstance(norm, PerStep):
        state = norm.state_for_inference(state)
        of_steps = None if norm.share_params else 0
        affine = jax.vmap(lambda p, s: fold_norm(norm.norm, p, s), (of_steps, 0))(params, state)
        return dataclasses.replace(norm, norm=_CONSTANTS, share_params=False), affine
    # One set: also of `sequence_wise`, as constants need no sequence.
    folded = fold_norm(norm.norm, params, norm.state_for_inference(state))
    return Shared(_CONSTANTS), Affine(*map(jnp.asarray, folded))


def _named(
    layer: Recurrent, place: str, norm: SeqNorm, params: PyTree, state: PyTree
) -> tuple[PyTree, PyTree]:
    """Return a norm's params and state in their own types, where they are mappings."""
    shape = (1, layer.places[place] * layer.hidden)
    templates = jax.eval_shape(lambda: norm.init(shape, key=jax.random.key(0)))
    own, statistics = (
        _names.from_dict(template, tree[place]) if isinstance(tree[place], Mapping) else tree[place]
        for template, tree in zip(templates, (params, state), strict=True)
    )
    return own, statistics
