"""Statistics over time and batch together: `sequence_wise`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _hints
from normjax.base import Call, Norm
from normjax.recurrent._seq_norm import SeqNorm, normalize_without_update
from normjax.statistics._types import PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class SequenceWise(SeqNorm):
    """Statistics over time and batch together, as a value; made by `sequence_wise`."""

    factory: ClassVar[str] = "sequence_wise"
    stepwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is no norm, and a norm that averages over other axes."""
        super().__post_init__()
        if self.norm.stateful and getattr(self.norm, "axes", None) is not None:
            raise ValueError(
                f"sequence_wise averages over time and batch, and {self.norm!r} names axes: "
                "leave axes=None"
            )

    def init(
        self, shape: tuple[int, ...], dtype: Any = jnp.float32, *, key: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Make `(params, state)` for sequences of steps of `shape`."""
        return self.norm.init((shape[0], 1, *shape[1:]), dtype, key=key)

    def sequence(
        self, params: PyTree, state: PyTree, x: jax.Array, call: Call
    ) -> tuple[jax.Array, PyTree]:
        """Normalize over time and batch together."""
        # [time, batch, features] to [batch, time, features]: norms of one sample, or of parts of
        # the batch, go by the first axis.
        x = x.swapaxes(0, 1)
        if call.mask is not None:
            call = dataclasses.replace(call, mask=call.mask.swapaxes(0, 1))
        y, measured = normalize_without_update(self.norm, params, state, x, call)
        return y.swapaxes(0, 1), measured

    def normalize_step(self, *args: Any, **keywords: Any) -> Any:
        """Refuse: one step does not have the whole sequence."""
        raise ValueError(
            "sequence_wise needs the whole sequence, which a recurrent term never has: use it as "
            "norm_x, and per_step(norm, max_steps) in the other places"
        )

    def update_state(self, state: PyTree, measured: PyTree, call: Call) -> PyTree:
        """Move the statistics as the norm itself does."""
        return state if measured is None else self.norm.update(state, measured, call)


@_hints.with_hints()
def sequence_wise(norm: Norm) -> SeqNorm:
    r"""Take statistics over time and batch together, padding left out.

    $$\mu = \frac1n \sum_{i=1}^{B} \sum_{t=1}^{T_i} x_{i,t}, \qquad n = \sum_i T_i$$

    Works only where the whole sequence is known: the input projection, `norm_x`.

    Args:
        norm: a norm over all axes but the last.

    Returns:
        A `SeqNorm` with the norm's own state.

    Raises:
        TypeError: `norm` is not a `Norm`.
        ValueError: `norm` names axes of its own.

    Example:
        >>> import jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> seq = recurrent.sequence_wise(nj.batch_norm(decay=0.0))
        >>> params, state = seq.init((1, 1))
        >>> x = jnp.array([[[0.0], [2.0]], [[4.0], [8.0]]])
        >>> y, state = seq.apply(params, state, x, stats="batch")
        >>> state.mean.tolist(), round(float(y.std()), 3)
        ([3.5], 1.0)

    Reference:
        Laurent, Pereyra, Brakel, Zhang, Bengio, "Batch Normalized Recurrent Neural Networks",
        2016; Amodei et al., "Deep Speech 2", 2016.
    """
    return SequenceWise(norm)
