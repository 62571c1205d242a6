"""The GRU cell."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from normjax._internal import _hints
from normjax.base import Norm
from normjax.recurrent._activations import sigmoid, tanh
from normjax.recurrent._base import Gates, NormAt
from normjax.recurrent._initializers import Initializer
from normjax.recurrent._input_terms import InputSchedule
from normjax.recurrent._recurrent import Recurrent
from normjax.recurrent._seq_norm import SeqNorm
from normjax.statistics._types import PyTree

JOINT = {"norm_x3": ("norm_x", "norm_xn"), "norm_h3": ("norm_h", "norm_hn")}


@dataclasses.dataclass(frozen=True, repr=False)
class GRU(Recurrent):
    """GRU as a value; made by `gru`."""

    factory: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3
    places: ClassVar[dict[str, int]] = {
        "norm_x": 2,
        "norm_h": 2,
        "norm_xn": 1,
        "norm_hn": 1,
        "norm_x3": 3,
        "norm_h3": 3,
        "norm_sum": 2,
        "norm_sumn": 1,
    }
    inputs: ClassVar[dict[str, tuple[int, int]]] = {
        "norm_x": (0, 2),
        "norm_xn": (2, 3),
        "norm_x3": (0, 3),
    }

    norm_xn: Norm | SeqNorm | None = None
    norm_hn: Norm | SeqNorm | None = None
    norm_x3: Norm | SeqNorm | None = None
    norm_h3: Norm | SeqNorm | None = None
    norm_sum: Norm | SeqNorm | None = None
    norm_sumn: Norm | SeqNorm | None = None

    def __post_init__(self) -> None:
        """Refuse as `Recurrent`, and a term that is normalized as a whole and in parts."""
        super().__post_init__()
        for whole, parts in JOINT.items():
            both = [place for place in parts if getattr(self, place) is not None]
            if getattr(self, whole) is not None and both:
                raise ValueError(
                    f"{whole} normalizes both gates and the candidate together, and "
                    f"{' and '.join(both)} a part of them: write {whole} or the parts"
                )

    @property
    def input_places(self) -> dict[str, tuple[int, int]]:
        """`norm_x3` over all blocks, or `norm_x` and `norm_xn` over their own."""
        joint = self.norm_x3 is not None
        return {name: of for name, of in self.inputs.items() if (name == "norm_x3") == joint}

    def cell(
        self, params: PyTree, norm: NormAt, zx: jax.Array, h: jax.Array, carry: jax.Array
    ) -> tuple[jax.Array, Gates]:
        """One step; the reset gate multiplies after the recurrent weights, so one matmul serves."""
        two = 2 * self.hidden
        # [batch, 3 * hidden]: both gates, then the candidate
        zh = norm("norm_h3", h @ params["w_h"])
        bias = params["bias"][None]
        gates = norm("norm_sum", zx[:, :two] + norm("norm_h", zh[:, :two])) + bias[:, :two]
        r, z = jnp.split(sigmoid(gates), 2, axis=-1)
        recurrent = norm("norm_hn", zh[:, two:]) + params["bias_hn"][None]
        n = tanh(norm("norm_sumn", zx[:, two:] + r * recurrent) + bias[:, two:])
        return (1 - z) * n + z * carry, {"reset": r, "update": z}

    def start_carry(self, batch: int, dtype: Any) -> jax.Array:
        """Return zeros."""
        return jnp.zeros((batch, self.hidden), dtype)

    def start_bias(self, dtype: Any) -> dict[str, jax.Array]:
        """Zeros; the candidate's recurrent term has one of its own, inside the reset."""
        return {**super().start_bias(dtype), "bias_hn": jnp.zeros((self.hidden,), dtype)}


@_hints.with_hints()
def gru(
    hidden: int,
    *,
    norm_x: Norm | SeqNorm | None = None,
    norm_h: Norm | SeqNorm | None = None,
    norm_xn: Norm | SeqNorm | None = None,
    norm_hn: Norm | SeqNorm | None = None,
    norm_x3: Norm | SeqNorm | None = None,
    norm_h3: Norm | SeqNorm | None = None,
    norm_sum: Norm | SeqNorm | None = None,
    norm_sumn: Norm | SeqNorm | None = None,
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
    r"""GRU with a norm in the layer norm paper's four places, on whole terms, or on their sums.

    $$(r, z) = \sigma\big(N_{sum}(N_x(W_x x_t) + N_h(W_h h_{t-1})) + b\big)$$
    $$n = \tanh\big(N_{sumn}(N_{xn}(W_n x_t) + r \odot (N_{hn}(U_n h_{t-1}) + b_{hn})) + b_n\big),
      \qquad h_t = (1 - z) \odot n + z \odot h_{t-1}$$

    The reset gate multiplies after `U_n h`. Without norms it is Flax's `GRUCell` and, with its
    two biases a gate added, torch's `nn.GRU`. The layer norm paper writes 1 - z for z.

    Args:
        hidden: number of units.
        norm_x: on the input term of both gates, computed for all steps at once.
        norm_h: on the recurrent term of both gates.
        norm_xn: on the input term of the candidate, computed for all steps at once.
        norm_hn: on the recurrent term of the candidate, before the reset gate.
        norm_x3: on the input term of both gates and the candidate together, in place of `norm_x`
            and `norm_xn`, as haste's layer-normalized GRU has it.
        norm_h3: the same on the recurrent term, in place of `norm_h` and `norm_hn`.
        norm_sum: on the sum of both gates' terms; `group_norm(groups=2)` normalizes the sum of
            each gate by itself.
        norm_sumn: on the sum of the candidate's terms, after the reset gate.
        kernel_init: start of `w_x`, as in `lstm`.
        recurrent_init: start of `w_h`, as in `lstm`.
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
        ValueError: an unknown initializer, a norm without the lift it needs, a term that is
            normalized as a whole and in parts.

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
    return GRU(**locals())
