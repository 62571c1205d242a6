"""Cells: the equations of one step, with norms by place."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.base import Norm, PyTree
from normjax.recurrent._initializers import Initializer
from normjax.recurrent._layer import NormAt, Recurrent, structure
from normjax.recurrent._lifts import SeqNorm

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    # Deep Speech 2: min(max(x, 0), 20).
    "clipped_relu": lambda x: jnp.clip(x, 0, 20),
}


class LSTMCarry(NamedTuple):
    """Cell and hidden state, `[batch, hidden]` each, in Flax's order."""

    c: Any
    h: Any


@dataclasses.dataclass(frozen=True, repr=False)
class LSTM(Recurrent):
    """The value behind `lstm`; see there."""

    factory: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4
    places: ClassVar[dict[str, int]] = {"norm_x": 4, "norm_h": 4, "norm_sum": 4, "norm_c": 1}

    norm_c: SeqNorm | None = None
    forget_bias: float = 0.0

    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, carry: LSTMCarry
    ) -> tuple[LSTMCarry, jax.Array]:
        """One step; the cell update itself is never normalized, so gradients flow along c."""
        zh = norm("norm_h", carry.h @ params["w_h"])
        z = norm("norm_sum", zx + zh) + params["bias"][None]
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = jax.nn.sigmoid(f) * carry.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(norm("norm_c", c))
        return LSTMCarry(c, h), h

    def start_carry(self, batch: int, dtype: Any) -> LSTMCarry:
        """Return zeros."""
        zero = jnp.zeros((batch, self.hidden), dtype)
        return LSTMCarry(zero, zero)

    def start_bias(self, dtype: Any) -> jax.Array:
        """Zeros, but for the forget gate's."""
        blocks = jnp.zeros((4, self.hidden), dtype).at[1].set(self.forget_bias)
        return blocks.reshape(-1)


@dataclasses.dataclass(frozen=True, repr=False)
class RNN(Recurrent):
    """The value behind `rnn`; see there."""

    factory: ClassVar[str] = "rnn"
    gates: ClassVar[int] = 1
    places: ClassVar[dict[str, int]] = {"norm_x": 1, "norm_h": 1, "norm_sum": 1}

    activation: str = "tanh"

    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, carry: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One step."""
        zh = norm("norm_h", carry @ params["w_h"])
        h = ACTIVATIONS[self.activation](norm("norm_sum", zx + zh) + params["bias"][None])
        return h, h

    def start_carry(self, batch: int, dtype: Any) -> jax.Array:
        """Return zeros."""
        return jnp.zeros((batch, self.hidden), dtype)


def lstm(
    hidden: int,
    *,
    norm_x: Norm | SeqNorm | None = None,
    norm_h: Norm | SeqNorm | None = None,
    norm_sum: Norm | SeqNorm | None = None,
    norm_c: Norm | SeqNorm | None = None,
    kernel_init: Initializer = "lecun_normal",
    recurrent_init: Initializer = "orthogonal",
    forget_bias: float = 0.0,
    learn_carry: bool = False,
    h0_noise: float = 0.0,
    time_major: bool = False,
) -> Recurrent:
    r"""LSTM with a norm in any place.

    $$(i, f, g, o) = N_{sum}\big(N_x(W_x x_t) + N_h(W_h h_{t-1})\big) + b$$
    $$c_t = \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g), \qquad
      h_t = \sigma(o) \odot \tanh(N_c(c_t))$$

    Without norms it is Flax's `OptimizedLSTMCell` under `RNN`: same gate order i, f, g, o,
    same single bias.

    Args:
        hidden: number of units.
        norm_x: on the input term ("vertical"), computed for all steps at once.
        norm_h: on the recurrent term ("horizontal").
        norm_sum: on their sum, the variant that the literature warns of.
        norm_c: on the cell on its way to the output; the cell that is carried stays as it is.
        kernel_init: start of `w_x`: `"lecun_normal"`, `"glorot_uniform"`, `"orthogonal"` (each
            gate's block), `"orthogonal_joint"` (one matrix), … or a function of key, shape, dtype.
        recurrent_init: start of `w_h`: the same, or `"identity"` (candidate block identity, the
            gates jointly orthonormal).
        forget_bias: start of the forget gate's bias.
        learn_carry: learn the first cell and hidden state, which start at 0.
        h0_noise: standard deviation of noise on the first hidden state, in both modes.
        time_major: x is `[time, batch, features]`.

    Returns:
        A `Recurrent` with carry `LSTMCarry(c, h)`.

    Raises:
        TypeError: something in the place of a norm that is none.
        ValueError: a norm that keeps statistics without a lift, a lift in a place where it
            cannot work, an unknown initializer.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> layer = recurrent.lstm(8, norm_x=nj.layer_norm(), norm_h=nj.layer_norm())
        >>> params, state = layer.init(jax.random.key(0), features=3)
        >>> (y, carry), state = layer.apply(params, state, jnp.ones((2, 5, 3)), stats="batch")
        >>> y.shape, carry.h.shape
        ((2, 5, 8), (2, 8))

    Reference:
        Hochreiter, Schmidhuber, "Long Short-Term Memory", 1997; Cooijmans et al., "Recurrent
        Batch Normalization", 2017, equations 6 to 8.
    """
    _checks.number("forget_bias", forget_bias)
    return structure(
        LSTM(
            hidden=hidden,
            norm_x=norm_x,  # type: ignore[arg-type]  # structure() lifts plain norms
            norm_h=norm_h,  # type: ignore[arg-type]
            norm_sum=norm_sum,  # type: ignore[arg-type]
            norm_c=norm_c,  # type: ignore[arg-type]
            kernel_init=kernel_init,
            recurrent_init=recurrent_init,
            forget_bias=forget_bias,
            learn_carry=learn_carry,
            h0_noise=h0_noise,
            time_major=time_major,
        )
    )


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
    time_major: bool = False,
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
        time_major: x is `[time, batch, features]`.

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
    _checks.one_of("activation", activation, tuple(ACTIVATIONS))
    return structure(
        RNN(
            hidden=hidden,
            activation=activation,
            norm_x=norm_x,  # type: ignore[arg-type]  # structure() lifts plain norms
            norm_h=norm_h,  # type: ignore[arg-type]
            norm_sum=norm_sum,  # type: ignore[arg-type]
            kernel_init=kernel_init,
            recurrent_init=recurrent_init,
            learn_carry=learn_carry,
            h0_noise=h0_noise,
            time_major=time_major,
        )
    )
