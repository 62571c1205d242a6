"""One set of statistics for all time steps: `shared`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from normjax._internal import _hints
from normjax.base import Call, Norm
from normjax.recurrent._seq_norm import SeqNorm
from normjax.statistics import _merge
from normjax.statistics._types import PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Shared(SeqNorm):
    """One set of statistics for all steps, as a value; made by `shared`."""

    factory: ClassVar[str] = "shared"

    def update_state(self, state: PyTree, measured: PyTree, call: Call) -> PyTree:
        """Move the one set of statistics by the moments of all steps together."""
        if measured is None:
            return state
        return self.norm.update(state, _merge.merge_axis(measured), call)


@_hints.with_hints()
def shared(norm: Norm) -> SeqNorm:
    """Keep one set of statistics for all steps: the ablation that the recurrent paper warns of.

    In mode `"batch"` each step is still normalized by its own batch; what is kept for mode
    `"running"` are the moments of all steps together.

    Args:
        norm: the norm of one step.

    Returns:
        A `SeqNorm` with the norm's own state.

    Raises:
        TypeError: `norm` is not a `Norm`.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> seq = recurrent.shared(nj.batch_norm(decay=0.0))
        >>> params, state = seq.init((1, 1))
        >>> x = jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]])
        >>> _, state = seq.apply(params, state, x, stats="batch")
        >>> state.mean.tolist()
        [3.5]

    Reference:
        Cooijmans et al., "Recurrent Batch Normalization", 2017, section 3 (against it).
    """
    return Shared(norm)


def lift(norm: Any, place: str, *, stepwise: bool) -> SeqNorm | None:
    """Return the `SeqNorm` of a place of a layer; a stateless norm needs no lift."""
    if norm is None or isinstance(norm, SeqNorm):
        if isinstance(norm, SeqNorm) and stepwise and not norm.stepwise:
            raise ValueError(
                f"{place}={norm!r} needs the whole sequence, and {place} sees one step at a time: "
                f"write {place}=per_step({norm.norm!r}, max_steps=...)"
            )
        return norm
    if not isinstance(norm, Norm):
        raise TypeError(
            f"{place}={norm!r} is not a norm: write for example {place}=layer_norm() or "
            f"{place}=per_step(batch_norm(scale_init=0.1), max_steps=...)"
        )
    if norm.stateful:
        raise ValueError(
            f"{place}={norm!r} keeps statistics, so say which over time: "
            f"per_step({norm!r}, max_steps=...), shared(...)"
            + ("" if stepwise else " or sequence_wise(...)")
        )
    return Shared(norm)
