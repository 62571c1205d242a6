"""The LSTM cell."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from normjax._internal import _checks, _hints
from normjax._internal._exportable import exportable
from normjax.base import Norm
from normjax.recurrent import _lstm_cudnn, _lstm_kernel
from normjax.recurrent._activations import lstm_gates, sigmoid, tanh
from normjax.recurrent._base import Gates, NormAt
from normjax.recurrent._carry import zoneout
from normjax.recurrent._initializers import Initializer
from normjax.recurrent._input_terms import InputSchedule
from normjax.recurrent._recurrent import Recurrent, Run
from normjax.recurrent._scan import LayerCall
from normjax.recurrent._seq_norm import SeqNorm
from normjax.statistics._types import PyTree

Impl = Literal["xla", "kernel", "cudnn"]


@exportable
class LSTMCarry(NamedTuple):
    """Cell and hidden state, `[batch, hidden]` each, in Flax's order."""

    c: Any
    h: Any


@dataclasses.dataclass(frozen=True, repr=False)
class LSTM(Recurrent):
    """LSTM as a value; made by `lstm`."""

    factory: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4
    places: ClassVar[dict[str, int]] = {"norm_x": 4, "norm_h": 4, "norm_sum": 4, "norm_c": 1}
    inputs: ClassVar[dict[str, tuple[int, int]]] = {"norm_x": (0, 4)}

    norm_sum: Norm | SeqNorm | None = None
    norm_c: Norm | SeqNorm | None = None
    forget_bias: float = 0.0
    zoneout_c: float = 0.0
    carry_normalized: bool = False
    impl: Impl = "xla"

    def __post_init__(self) -> None:
        """Refuse as `Recurrent`, and what a kernel or cuDNN does not compute where it is asked."""
        super().__post_init__()
        _checks.number("forget_bias", self.forget_bias)
        _checks.dropout_rate("zoneout_c", self.zoneout_c)
        _checks.one_of("impl", self.impl, get_args(Impl))
        if self.impl == "kernel":
            _lstm_kernel.check(self)
        if self.impl == "cudnn":
            _lstm_cudnn.check(self)

    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, h: jax.Array, carry: LSTMCarry
    ) -> tuple[LSTMCarry, Gates]:
        """One step; the cell update itself is not normalized, so gradients flow along c."""
        # [batch, 4 * hidden]
        zh = norm("norm_h", h @ params["w_h"])
        z = norm("norm_sum", zx + zh) + params["bias"][None]
        if self.input_schedule == "before_loop":
            # For accelerators: few kernels. The last tanh is not stored but computed again.
            (i, f, g, o), last_tanh = lstm_gates(z), jnp.tanh
        else:
            # On a CPU one array of all gates costs copies (benchmarks/README.md).
            i, f, g, o = jnp.split(z, 4, axis=-1)
            i, f, g, o, last_tanh = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o), tanh
        c = f * carry.c + i * g
        c_normalized = norm("norm_c", c)
        h = o * last_tanh(c_normalized)
        following = LSTMCarry(c_normalized if self.carry_normalized else c, h)
        return following, {"input": i, "forget": f, "output": o}

    def run_at_once(
        self, params: PyTree, state: PyTree, x: jax.Array, carry: LSTMCarry, call: LayerCall
    ) -> Run | None:
        """Run the recurrence by the BN-LSTM's kernel or by cuDNN."""
        if self.impl == "kernel" and _lstm_kernel.supports(x, call, self.hidden):
            return Run(*_lstm_kernel.run(self, params, state, x, carry, call))
        if self.impl == "cudnn" and _lstm_cudnn.supports(x, call):
            return Run(*_lstm_cudnn.run(self, params, x, carry, call))
        return None

    def zoneout(self, key: jax.Array | None, old: LSTMCarry, new: LSTMCarry) -> LSTMCarry:
        """Hold units of c and h, each with its own probability."""
        if not (self.zoneout_c or self.zoneout_h):
            return new
        key_c, key_h = (None, None) if key is None else jax.random.split(key)
        return LSTMCarry(
            zoneout(key_c, self.zoneout_c, old.c, new.c),
            zoneout(key_h, self.zoneout_h, old.h, new.h),
        )

    def start_carry(self, batch: int, dtype: Any) -> LSTMCarry:
        """Return zeros."""
        zero = jnp.zeros((batch, self.hidden), dtype)
        return LSTMCarry(zero, zero)

    def start_bias(self, dtype: Any) -> dict[str, jax.Array]:
        """Zeros, but for the forget gate's."""
        blocks = jnp.zeros((4, self.hidden), dtype).at[1].set(self.forget_bias)
        return {"bias": blocks.reshape(-1)}


@_hints.with_hints()
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
    input_schedule: InputSchedule | None = None,
    impl: Impl = "xla",
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
        remat_steps: backward, run so many steps at a time again from the carry they began with,
            and keep only that carry of the others: less memory for one more pass forward, least
            at about the root of the length. `None`: keep all steps.
        time_major: x is `[time, batch, features]`.
        input_schedule: when input terms are made and measured: `"before_loop"`, both for all steps
            at once, which suits accelerators, and batches split under `jit`, and gates are stored
            in one array, for fewer kernels; `"in_loop"`, both step by step; `"measure_in_loop"`,
            made at once and measured step by step. `None`: at once where `axis_name` or the type
            of x says that the batch is split, else by its shape, as suits one CPU.
        impl: `"xla"`, or `"kernel"`: training with batch norms in `norm_h` and `norm_c` is one
            program over all steps on a TPU or GPU (`normjax.kernels`); elsewhere its twin, a plain
            scan, runs. It keeps h and c of each step and has no use for `remat_steps`. On an H100
            it is slower than the scan for one model, and about level with it for 130 of them under
            `jax.vmap`; no TPU has run it. `"cudnn"`, without norms: one call of cuDNN on a GPU,
            which is seldom faster than the scan there, and elsewhere the scan.

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
    return LSTM(**locals())
