"""The simple recurrent cell."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax.base import Norm
from normjax.recurrent._activations import ACTIVATION_BY_NAME
from normjax.recurrent._base import Gates, NormAt
from normjax.recurrent._initializers import Initializer
from normjax.recurrent._input_terms import InputSchedule
from normjax.recurrent._recurrent import Recurrent
from normjax.recurrent._seq_norm import SeqNorm
from normjax.statistics._types import PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class RNN(Recurrent):
    """Plain recurrent layer as a value; made by `rnn`."""

    factory: ClassVar[str] = "rnn"
    gates: ClassVar[int] = 1
    places: ClassVar[dict[str, int]] = {"norm_x": 1, "norm_h": 1, "norm_sum": 1}
    inputs: ClassVar[dict[str, tuple[int, int]]] = {"norm_x": (0, 1)}

    norm_sum: Norm | SeqNorm | None = None
    activation: str = "tanh"

    def __post_init__(self) -> None:
        """Refuse as `Recurrent`, and an unknown activation."""
        super().__post_init__()
        _checks.one_of("activation", self.activation, tuple(ACTIVATION_BY_NAME))

    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, h: jax.Array, carry: jax.Array
    ) -> tuple[jax.Array, Gates]:
        """One step."""
        zh = norm("norm_h", h @ params["w_h"])
        z = norm("norm_sum", zx + zh) + params["bias"][None]
        return ACTIVATION_BY_NAME[self.activation](z), {}

    def start_carry(self, batch: int, dtype: Any) -> jax.Array:
        """Return zeros."""
        return jnp.zeros((batch, self.hidden), dtype)


@_hints.with_hints()
def rnn(
    hidden: int,
    *,
    activation: str = "tanh",
    norm_x: Norm | SeqNorm | None = None,
    norm_h: Norm | SeqNorm | None = None,
    norm_sum: Norm | SeqNorm | None = None,
    kernel_init: Initializer = "lecun_normal",
    recurrent_init: Initializer = "orthogonal",
    learn_carry: bool = False,
    h0_noise: float = 0.0,
    zoneout_h: float = 0.0,
    dropout_h: float = 0.0,
    remat_steps: int | None = None,
    time_major: bool = False,
    input_schedule: InputSchedule | None = None,
) -> Recurrent:
    r"""Plain recurrent layer with a norm in any place.

    $$h_t = \phi\Big(N_{sum}\big(N_x(W_x x_t) + N_h(W_h h_{t-1})\big) + b\Big)$$

    Args:
        hidden: number of units.
        activation: `"tanh"`, `"relu"` or `"clipped_relu"` (Deep Speech 2's, at 20).
        norm_x: on the input term ("vertical"), computed for all steps at once.
        norm_h: on the recurrent term ("horizontal").
        norm_sum: on their sum.
        kernel_init: start of `w_x`, as in `lstm`.
        recurrent_init: start of `w_h`, as in `lstm`; `"identity"` is the identity.
        learn_carry: learn the first hidden state, which starts at 0.
        h0_noise: standard deviation of noise on the first hidden state, in both modes.
        zoneout_h: probability that a hidden unit keeps its old value, as in `lstm`.
        dropout_h: probability that one is hidden from the recurrent weights, as in `lstm`.
        remat_steps: backward, run so many steps at a time again from the carry they began with,
            and keep only that carry of the others: less memory for one more pass forward, least
            at about the root of the length. `None`: keep all steps.
        time_major: x is `[time, batch, features]`.
        input_schedule: when input terms are made and measured: `"before_loop"`, both for all steps
            at once, which suits accelerators, and batches split under `jit`; `"in_loop"`, both step
            by step; `"measure_in_loop"`, made at once and measured step by step. `None`: at once
            where `axis_name` or the type of x says that the batch is split, else by its shape, as
            suits one CPU.

    Returns:
        A `Recurrent` whose carry is the hidden state.

    Raises:
        TypeError: something in the place of a norm that is none.
        ValueError: an unknown activation or initializer, a norm without the lift it needs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import recurrent
        >>> layer = recurrent.rnn(4, activation="relu", recurrent_init="identity")
        >>> params, state = layer.init(jax.random.key(0), features=3)
        >>> (y, h), state = layer.apply(params, state, jnp.ones((2, 5, 3)), stats="running")
        >>> bool((y[:, -1] == h).all())
        True

    Reference:
        Elman, "Finding Structure in Time", 1990; Laurent et al., "Batch Normalized Recurrent
        Neural Networks", 2016, equations 6 to 9.
    """
    return RNN(**locals())
