"""Cells: the equations of one step, with norms by place."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from normjax import _checks, _impl, _words
from normjax.base import Norm, PyTree
from normjax.recurrent import _fused
from normjax.recurrent._contract import Gates, NormAt, hold
from normjax.recurrent._initializers import Initializer
from normjax.recurrent._layer import Recurrent, structure
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
    inputs: ClassVar[dict[str, tuple[int, int]]] = {"norm_x": (0, 4)}

    norm_sum: SeqNorm | None = None
    norm_c: SeqNorm | None = None
    forget_bias: float = 0.0
    zoneout_c: float = 0.0
    carry_normalized: bool = False
    impl: _impl.Impl = "xla"

    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, h: jax.Array, carry: LSTMCarry
    ) -> tuple[LSTMCarry, Gates]:
        """One step; the cell update itself is not normalized, so gradients flow along c."""
        zh = norm("norm_h", h @ params["w_h"])
        z = norm("norm_sum", zx + zh) + params["bias"][None]
        i, f, g, o = jnp.split(z, 4, axis=-1)
        i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
        c = f * carry.c + i * jnp.tanh(g)
        shown = norm("norm_c", c)
        h = o * jnp.tanh(shown)
        following = LSTMCarry(shown if self.carry_normalized else c, h)
        return following, {"input": i, "forget": f, "output": o}

    def by_kernel(
        self, params: PyTree, state: PyTree, x: jax.Array, carry: LSTMCarry, how: dict[str, Any]
    ) -> Any:
        """Run the BN-LSTM's recurrence as one program."""
        if self.impl == "xla" or not _fused.serves(x, self.hidden):
            return None
        return _fused.run(self, params, state, x, carry, how)

    def zoneout(self, key: jax.Array | None, old: LSTMCarry, new: LSTMCarry) -> LSTMCarry:
        """Hold units of c and h, each with its own probability."""
        key_c, key_h = (None, None) if key is None else jax.random.split(key)
        return LSTMCarry(
            hold(key_c, self.zoneout_c, old.c, new.c), hold(key_h, self.zoneout_h, old.h, new.h)
        )

    def start_carry(self, batch: int, dtype: Any) -> LSTMCarry:
        """Return zeros."""
        zero = jnp.zeros((batch, self.hidden), dtype)
        return LSTMCarry(zero, zero)

    def start_bias(self, dtype: Any) -> dict[str, jax.Array]:
        """Zeros, but for the forget gate's."""
        blocks = jnp.zeros((4, self.hidden), dtype).at[1].set(self.forget_bias)
        return {"bias": blocks.reshape(-1)}


@dataclasses.dataclass(frozen=True, repr=False)
class GRU(Recurrent):
    """The value behind `gru`; see there."""

    factory: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3
    places: ClassVar[dict[str, int]] = {"norm_x": 2, "norm_h": 2, "norm_xn": 1, "norm_hn": 1}
    inputs: ClassVar[dict[str, tuple[int, int]]] = {"norm_x": (0, 2), "norm_xn": (2, 3)}

    norm_xn: SeqNorm | None = None
    norm_hn: SeqNorm | None = None

    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, h: jax.Array, carry: jax.Array
    ) -> tuple[jax.Array, Gates]:
        """One step; the reset gate multiplies after the recurrent weights, so one matmul serves."""
        two = 2 * self.hidden
        zh = h @ params["w_h"]
        bias = params["bias"][None]
        gates = zx[:, :two] + norm("norm_h", zh[:, :two]) + bias[:, :two]
        r, z = jnp.split(jax.nn.sigmoid(gates), 2, axis=-1)
        recurrent = norm("norm_hn", zh[:, two:]) + params["bias_hn"][None]
        n = jnp.tanh(zx[:, two:] + bias[:, two:] + r * recurrent)
        return (1 - z) * n + z * carry, {"reset": r, "update": z}

    def start_carry(self, batch: int, dtype: Any) -> jax.Array:
        """Return zeros."""
        return jnp.zeros((batch, self.hidden), dtype)

    def start_bias(self, dtype: Any) -> dict[str, jax.Array]:
        """Zeros; the candidate's recurrent term has one of its own, inside the reset."""
        return {**super().start_bias(dtype), "bias_hn": jnp.zeros((self.hidden,), dtype)}


@dataclasses.dataclass(frozen=True, repr=False)
class RNN(Recurrent):
    """The value behind `rnn`; see there."""

    factory: ClassVar[str] = "rnn"
    gates: ClassVar[int] = 1
    places: ClassVar[dict[str, int]] = {"norm_x": 1, "norm_h": 1, "norm_sum": 1}
    inputs: ClassVar[dict[str, tuple[int, int]]] = {"norm_x": (0, 1)}

    norm_sum: SeqNorm | None = None
    activation: str = "tanh"

    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, h: jax.Array, carry: jax.Array
    ) -> tuple[jax.Array, Gates]:
        """One step."""
        zh = norm("norm_h", h @ params["w_h"])
        z = norm("norm_sum", zx + zh) + params["bias"][None]
        return ACTIVATIONS[self.activation](z), {}

    def start_carry(self, batch: int, dtype: Any) -> jax.Array:
        """Return zeros."""
        return jnp.zeros((batch, self.hidden), dtype)


@_words.told()
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
    carry_normalized: bool = False,
    learn_carry: bool = False,
    h0_noise: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    dropout_h: float = 0.0,
    remat_steps: int | None = None,
    time_major: bool = False,
    impl: _impl.Impl = "xla",
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
        carry_normalized: carry `N_c(c_t)` to the next step, the ablation of the authors' script.
        learn_carry: learn the first cell and hidden state, which start at 0.
        h0_noise: standard deviation of noise on the first hidden state, in both modes.
        zoneout_h: probability that a hidden unit keeps its old value (Krueger et al. 2017).
        zoneout_c: the same for the cell.
        dropout_h: probability that a hidden unit is hidden from the recurrent weights, one draw
            a sequence (Gal and Ghahramani 2016). Zoneout and dropout act in mode `"batch"`
            where `apply` is given a `key`.
        remat_steps: backward, run so many steps at a time again from what they began with, and
            keep of the others the carry alone: less memory for one more pass forward; about the
            root of the length is least. `None`: keep all steps.
        time_major: x is `[time, batch, features]`.
        impl: `"xla"`, or `"kernel"`: training with batch norms in `norm_h` and `norm_c` is one
            program over all steps on a TPU (`normjax.kernels`), which no device has tried yet and
            a CPU interprets, slowly. It keeps h and c of each step and has no use for
            `remat_steps`.

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
    layer = structure(
        LSTM,
        hidden=hidden,
        norm_x=norm_x,
        norm_h=norm_h,
        norm_sum=norm_sum,
        norm_c=norm_c,
        kernel_init=kernel_init,
        recurrent_init=recurrent_init,
        forget_bias=forget_bias,
        carry_normalized=carry_normalized,
        learn_carry=learn_carry,
        h0_noise=h0_noise,
        zoneout_h=zoneout_h,
        zoneout_c=zoneout_c,
        dropout_h=dropout_h,
        remat_steps=remat_steps,
        time_major=time_major,
        impl=_impl.check(impl),
    )
    if impl == "kernel":
        _fused.check(layer)
    return layer


@_words.told()
def gru(
    hidden: int,
    *,
    norm_x: Norm | SeqNorm | None = None,
    norm_h: Norm | SeqNorm | None = None,
    norm_xn: Norm | SeqNorm | None = None,
    norm_hn: Norm | SeqNorm | None = None,
    kernel_init: Initializer = "lecun_normal",
    recurrent_init: Initializer = "orthogonal",
    learn_carry: bool = False,
    h0_noise: float = 0.0,
    zoneout_h: float = 0.0,
    dropout_h: float = 0.0,
    remat_steps: int | None = None,
    time_major: bool = False,
) -> Recurrent:
    r"""GRU with a norm in any of the layer norm paper's four places.

    $$(r, z) = \sigma\big(N_x(W_x x_t) + N_h(W_h h_{t-1}) + b\big)$$
    $$n = \tanh\big(N_{xn}(W_n x_t) + b_n + r \odot (N_{hn}(U_n h_{t-1}) + b_{hn})\big), \qquad
      h_t = (1 - z) \odot n + z \odot h_{t-1}$$

    The reset gate multiplies after `U_n h`. Without norms it is Flax's `GRUCell` and, with its
    two biases a gate added, torch's `nn.GRU`. The layer norm paper writes 1 - z for z.

    Args:
        hidden: number of units.
        norm_x: on the input term of both gates, computed for all steps at once.
        norm_h: on the recurrent term of both gates.
        norm_xn: on the input term of the candidate, computed for all steps at once.
        norm_hn: on the recurrent term of the candidate, before the reset gate.
        kernel_init: start of `w_x`, as in `lstm`.
        recurrent_init: start of `w_h`, as in `lstm`.
        learn_carry: learn the first hidden state, which starts at 0.
        h0_noise: standard deviation of noise on the first hidden state, in both modes.
        zoneout_h: probability that a hidden unit keeps its old value, as in `lstm`.
        dropout_h: probability that one is hidden from the recurrent weights, as in `lstm`.
        remat_steps: backward, run so many steps at a time again from what they began with, and
            keep of the others the carry alone: less memory for one more pass forward; about the
            root of the length is least. `None`: keep all steps.
        time_major: x is `[time, batch, features]`.

    Returns:
        A `Recurrent` whose carry is the hidden state.

    Raises:
        TypeError: something in the place of a norm that is none.
        ValueError: an unknown initializer, a norm without the lift it needs.

    Example:
        >>> import jax, jax.numpy as jnp, normjax as nj
        >>> from normjax import recurrent
        >>> ln = nj.layer_norm(use_bias=False)
        >>> layer = recurrent.gru(4, norm_x=ln, norm_h=ln, norm_xn=ln, norm_hn=ln)
        >>> params, state = layer.init(jax.random.key(0), features=3)
        >>> (y, h), state = layer.apply(params, state, jnp.ones((2, 5, 3)), stats="batch")
        >>> y.shape
        (2, 5, 4)

    Reference:
        Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014; Ba,
        Kiros, Hinton, "Layer Normalization", 2016, supplement.
    """
    return structure(
        GRU,
        hidden=hidden,
        norm_x=norm_x,
        norm_h=norm_h,
        norm_xn=norm_xn,
        norm_hn=norm_hn,
        kernel_init=kernel_init,
        recurrent_init=recurrent_init,
        learn_carry=learn_carry,
        h0_noise=h0_noise,
        zoneout_h=zoneout_h,
        dropout_h=dropout_h,
        remat_steps=remat_steps,
        time_major=time_major,
    )


@_words.told()
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
        remat_steps: backward, run so many steps at a time again from what they began with, and
            keep of the others the carry alone: less memory for one more pass forward; about the
            root of the length is least. `None`: keep all steps.
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
        RNN,
        hidden=hidden,
        activation=activation,
        norm_x=norm_x,
        norm_h=norm_h,
        norm_sum=norm_sum,
        kernel_init=kernel_init,
        recurrent_init=recurrent_init,
        learn_carry=learn_carry,
        h0_noise=h0_noise,
        zoneout_h=zoneout_h,
        dropout_h=dropout_h,
        remat_steps=remat_steps,
        time_major=time_major,
    )
