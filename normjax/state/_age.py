"""How far running statistics are from their start: `statistics_age`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from normjax.state._whole_model import _statistics, running_of
from normjax.statistics import _running
from normjax.statistics._debias import Debiased
from normjax.statistics._types import PyTree


def statistics_age(state: PyTree) -> dict[str, jax.Array]:
    r"""Say how much of running statistics is data.

    $$1 - \prod_{i=1}^{n} d_i$$

    for n updates of decays $d_i$: 0 where no batch has been measured, 1 - 0.99^100 = 0.63 after
    100 updates of decay 0.99. Mode `"running"` with statistics at 0 normalizes by mean 0 and
    variance 1. Norms with `debias` know the number. Of others it is known only where they are
    exactly as they started; elsewhere it is NaN: some of the start may be left in them.

    Args:
        state: any pytree of states, or the `batch_stats` of a Linen model.

    Returns:
        By the path of each norm's statistics, names joined by "/", the number of each statistic,
        of the shape of the mean (of the sets, for covariances).

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> norm = nj.batch_norm(decay=0.5, debias=True)
        >>> params, state = norm.init((1, 1))
        >>> _, state = norm.apply(params, state, jnp.array([[1.0], [3.0]]), stats="batch")
        >>> float(nj.statistics_age({"norm": state})["norm"][0]), state.mean.tolist()
        (0.5, [2.0])
    """
    found, _ = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=lambda node: _statistics(node) is not None
    )
    ages: dict[str, jax.Array] = {}
    for path, node in found:
        stats = _statistics(node)
        if stats is not None:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            ages[name] = _age(running_of(stats))
    return ages


def _age(running: Any) -> jax.Array:
    if isinstance(running, Debiased):
        return jnp.asarray(running.weight)
    shape = _running.count_shape(running)
    started = jnp.ones(shape, bool)
    for leaf, initial in zip(running, _running.reset_running(running), strict=True):
        started &= jnp.all(leaf == initial, axis=tuple(range(len(shape), jnp.ndim(leaf))))
    dtype = jnp.finfo(jnp.asarray(running.mean).dtype).dtype
    return jnp.where(started, jnp.zeros((), dtype), jnp.full((), jnp.nan, dtype))
