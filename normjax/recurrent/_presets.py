"""Presets: each published recurrent normalization, one line over the parts."""

from __future__ import annotations

from typing import Any

from normjax._internal import _hints
from normjax.base import Norm
from normjax.norms._batch import batch_norm
from normjax.norms._layer import layer_norm
from normjax.norms._rms import rms_norm
from normjax.recurrent._base import Layer
from normjax.recurrent._gru import gru
from normjax.recurrent._lstm import lstm
from normjax.recurrent._per_step import Clock, per_step
from normjax.recurrent._recurrent import Recurrent
from normjax.recurrent._reparam import ReparamRecurrent
from normjax.recurrent._rnn import rnn
from normjax.recurrent._seq_norm import SeqNorm
from normjax.recurrent._sequence_wise import sequence_wise
from normjax.recurrent._shared import shared
from normjax.statistics._types import Debias
from normjax.weights._weight_norm import weight_norm


@_hints.with_hints(lstm)
def bn_lstm(
    hidden: int,
    max_steps: int,
    *,
    scale_init: float = 0.1,
    eps: float = 1e-5,
    decay: float = 0.99,
    forget_bias: float = 1.0,
    allow_single: bool = False,
    debias: Debias = "warmup",
    clock: Clock = "row",
    **options: Any,
) -> Recurrent:
    r"""Batch-normalized LSTM of Cooijmans et al.: across time, statistics per step.

    $$(i, f, g, o) = BN(W_h h_{t-1}; \gamma_h, 0) + BN(W_x x_t; \gamma_x, 0) + b$$
    $$c_t = \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g), \qquad
      h_t = \sigma(o) \odot \tanh(BN(c_t; \gamma_c, \beta_c))$$

    The betas of the two terms would be the bias over again and are left out; that of the cell
    is kept. The cell that is carried is not normalized.

    Args:
        hidden: number of units.
        max_steps: steps with statistics of their own, the longest training length; later steps
            use the last ones.
        scale_init: start of the gammas; 0.1 keeps tanh from saturating (the paper's finding).
        eps: added to the variance, 1e-5 in the authors' scripts.
        decay: weight of the old running value; the authors' 0.99 (MNIST) and 0.95 (PTB).
        forget_bias: start of the forget gate's bias, 1 in the authors' code.
        allow_single: as in `batch_norm`, for a batch of one sequence.
        debias: as in `batch_norm`: the running averages are those of the data alone, from the
            first update on, and the latest count most while there are few. `False`: Flax's and
            torch's, and their layout of the state.
        clock: as in `per_step`, for rows with `resets` or a `mask`.
        options: other arguments of `lstm`, such as `recurrent_init`, `learn_carry`, `h0_noise`.

    Returns:
        A `Recurrent`.

    Raises:
        ValueError: as `lstm` and `per_step`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from normjax import recurrent
        >>> layer = recurrent.bn_lstm(4, max_steps=5)
        >>> params, state = layer.init(jax.random.key(0), features=3)
        >>> x = jax.random.normal(jax.random.key(1), (8, 5, 3))
        >>> (y, carry), state = layer.apply(params, state, x, stats="batch")
        >>> state["norm_c"].mean.shape
        (5, 4)

    Reference:
        Cooijmans, Ballas, Laurent, Gulcehre, Courville, "Recurrent Batch Normalization", 2017,
        equations 6 to 8.
    """
    bare = _bn(scale_init, eps, decay, allow_single, debias, use_bias=False)
    term = per_step(bare, max_steps, clock=clock)
    cell = per_step(_bn(scale_init, eps, decay, allow_single, debias), max_steps, clock=clock)
    return lstm(hidden, norm_x=term, norm_h=term, norm_c=cell, forget_bias=forget_bias, **options)


@_hints.with_hints(lstm)
def bn_lstm_ablations(
    hidden: int,
    max_steps: int,
    *,
    scale_init: float = 0.1,
    debias: Debias = "warmup",
    **options: Any,
) -> dict[str, Recurrent]:
    """The BN-LSTM beside what its authors and others vary in it, one thing at a time.

    Args:
        hidden: number of units.
        max_steps: steps with statistics of their own.
        scale_init: start of the gammas, but for `"gamma_1"`.
        debias: as in `bn_lstm`.
        options: other arguments of `lstm`.

    Returns:
        Layers by name: `"bn_lstm"`; `"sum"`, one norm on the sum of both terms; `"shared"`,
        statistics shared over time; `"gamma_1"`; `"carry_normalized"`, the normalized cell is
        carried; `"cell_plain"`, no norm on the cell; `"vertical"` and `"horizontal"`, the
        input or the recurrent term alone.

    Raises:
        ValueError: as `lstm` and `per_step`.

    Example:
        >>> from normjax import recurrent
        >>> sorted(recurrent.bn_lstm_ablations(4, max_steps=5))[:4]
        ['bn_lstm', 'carry_normalized', 'cell_plain', 'gamma_1']

    Reference:
        Cooijmans et al., "Recurrent Batch Normalization", 2017, sections 3 and 4, and the flags
        of its script; Laurent et al., "Batch Normalized Recurrent Neural Networks", 2016.
    """
    options = {"forget_bias": 1.0} | options
    norm = batch_norm(scale_init=scale_init, debias=debias)
    bare = batch_norm(scale_init=scale_init, debias=debias, use_bias=False)
    term, cell = per_step(bare, max_steps), per_step(norm, max_steps)
    common = shared(bare)
    return {
        "bn_lstm": bn_lstm(hidden, max_steps, scale_init=scale_init, debias=debias, **options),
        "sum": lstm(hidden, norm_sum=term, norm_c=cell, **options),
        "shared": lstm(hidden, norm_x=common, norm_h=common, norm_c=shared(norm), **options),
        "gamma_1": bn_lstm(hidden, max_steps, scale_init=1.0, debias=debias, **options),
        "carry_normalized": lstm(
            hidden, norm_x=term, norm_h=term, norm_c=cell, carry_normalized=True, **options
        ),
        "cell_plain": lstm(hidden, norm_x=term, norm_h=term, **options),
        "vertical": lstm(hidden, norm_x=term, **options),
        "horizontal": lstm(hidden, norm_h=term, **options),
    }


@_hints.with_hints(gru)
def bn_gru(
    hidden: int,
    max_steps: int,
    *,
    scale_init: float = 0.1,
    eps: float = 1e-5,
    decay: float = 0.99,
    allow_single: bool = False,
    debias: Debias = "warmup",
    clock: Clock = "row",
    **options: Any,
) -> Recurrent:
    r"""Batch-normalized GRU: recurrent batch norm in the four places of the layer norm paper.

    $$(r, z) = \sigma\big(BN(W_x x_t) + BN(W_h h_{t-1}) + b\big), \qquad
      n = \tanh\big(BN(W_n x_t) + b_n + r \odot (BN(U_n h_{t-1}) + b_{hn})\big)$$

    Args:
        hidden: number of units.
        max_steps: steps with statistics of their own.
        scale_init: start of the gammas; the betas would repeat the biases and are left out.
        eps: added to the variance.
        decay: weight of the old running value.
        allow_single: as in `batch_norm`, for a batch of one sequence.
        debias: as in `batch_norm`: the running averages are those of the data alone, from the
            first update on, and the latest count most while there are few. `False`: Flax's and
            torch's, and their layout of the state.
        clock: as in `per_step`, for rows with `resets` or a `mask`.
        options: other arguments of `gru`.

    Returns:
        A `Recurrent`.

    Raises:
        ValueError: as `gru` and `per_step`.

    Example:
        >>> from normjax import recurrent
        >>> recurrent.bn_gru(4, max_steps=5).norm_hn.max_steps
        5

    Reference:
        Cooijmans et al., "Recurrent Batch Normalization", 2017; the equations are those of Ba,
        Kiros, Hinton, "Layer Normalization", 2016, with batch norm in their places.
    """
    bare = _bn(scale_init, eps, decay, allow_single, debias, use_bias=False)
    term = per_step(bare, max_steps, clock=clock)
    return gru(hidden, norm_x=term, norm_h=term, norm_xn=term, norm_hn=term, **options)


@_hints.with_hints(lstm)
def vertical_bn_lstm(
    hidden: int,
    max_steps: int | None = None,
    *,
    eps: float = 1e-5,
    decay: float = 0.99,
    allow_single: bool = False,
    debias: Debias = "warmup",
    **options: Any,
) -> Recurrent:
    r"""LSTM of Laurent et al.: batch norm on the input term alone, never across time.

    $$(i, f, g, o) = BN(W_x x_t) + W_h h_{t-1} + b$$

    Args:
        hidden: number of units.
        max_steps: with a number, frame by frame: statistics of each step, for where the future
            may not be seen (language models); `None`, sequence-wise: over time and batch
            together, padding left out (speech).
        eps: added to the variance.
        decay: weight of the old running value.
        allow_single: as in `batch_norm`, for a batch of one sequence.
        debias: as in `batch_norm`: the running averages are those of the data alone, from the
            first update on, and the latest count most while there are few. `False`: Flax's and
            torch's, and their layout of the state.
        options: other arguments of `lstm`.

    Returns:
        A `Recurrent`.

    Raises:
        ValueError: as `lstm` and `per_step`.

    Example:
        >>> from normjax import recurrent
        >>> recurrent.vertical_bn_lstm(4).norm_x
        sequence_wise(norm=batch_norm(use_bias=False, debias='warmup'))

    Reference:
        Laurent, Pereyra, Brakel, Zhang, Bengio, "Batch Normalized Recurrent Neural Networks",
        2016, equations 9 (frame-wise), 10 and 11 (sequence-wise).
    """
    return lstm(hidden, norm_x=_vertical(max_steps, eps, decay, allow_single, debias), **options)


@_hints.with_hints(rnn)
def deep_speech_rnn(
    hidden: int,
    max_steps: int | None = None,
    *,
    eps: float = 1e-5,
    decay: float = 0.99,
    allow_single: bool = False,
    debias: Debias = "warmup",
    **options: Any,
) -> Recurrent:
    r"""Recurrent layer of Deep Speech 2: sequence-wise batch norm on the input term, clipped relu.

    $$h_t = \min\big(\max(BN(W_x x_t) + W_h h_{t-1} + b,\; 0),\; 20\big)$$

    Args:
        hidden: number of units.
        max_steps: `None` for the published, sequence-wise statistics; a number for those of
            each step.
        eps: added to the variance.
        decay: weight of the old running value.
        allow_single: as in `batch_norm`, for a batch of one sequence.
        debias: as in `batch_norm`: the running averages are those of the data alone, from the
            first update on, and the latest count most while there are few. `False`: Flax's and
            torch's, and their layout of the state.
        options: other arguments of `rnn`.

    Returns:
        A `Recurrent`; the published model is a stack of `bidirectional(…, merge="sum")`.

    Raises:
        ValueError: as `rnn` and `per_step`.

    Example:
        >>> from normjax import recurrent
        >>> recurrent.deep_speech_rnn(4).activation
        'clipped_relu'

    Reference:
        Amodei et al., "Deep Speech 2: End-to-End Speech Recognition in English and Mandarin",
        2016, section 3.2.
    """
    return rnn(
        hidden,
        activation="clipped_relu",
        norm_x=_vertical(max_steps, eps, decay, allow_single, debias),
        **options,
    )


@_hints.with_hints(lstm)
def ln_lstm(hidden: int, *, eps: float = 1e-5, **options: Any) -> Recurrent:
    r"""Layer-normalized LSTM of Ba et al.

    $$(i, f, g, o) = LN(W_h h_{t-1}; \alpha_1, \beta_1) + LN(W_x x_t; \alpha_2, \beta_2) + b,
      \qquad h_t = \sigma(o) \odot \tanh(LN(c_t; \alpha_3, \beta_3))$$

    Each norm spans all four gates together. Gains start at 1, which the authors found better
    than the 0.1 of recurrent batch norm; there is no forget bias in their code.

    Args:
        hidden: number of units.
        eps: added to the variance, 1e-5 in the authors' code.
        options: other arguments of `lstm`.

    Returns:
        A `Recurrent`.

    Raises:
        ValueError: as `lstm`.

    Example:
        >>> from normjax import recurrent
        >>> recurrent.ln_lstm(4).stateful
        False

    Reference:
        Ba, Kiros, Hinton, "Layer Normalization", 2016, supplement, equations 20 to 22.
    """
    norm = layer_norm(eps=eps)
    return lstm(hidden, norm_x=norm, norm_h=norm, norm_c=norm, **options)


@_hints.with_hints(gru)
def ln_gru(hidden: int, *, eps: float = 1e-5, **options: Any) -> Recurrent:
    r"""Layer-normalized GRU of Ba et al.: four norms, the reset gate after `LN(U h)`.

    $$(r, z) = \sigma\big(LN(W_h h_{t-1}) + LN(W_x x_t)\big), \qquad
      n = \tanh\big(LN(W_n x_t) + r \odot LN(U_n h_{t-1})\big)$$

    Args:
        hidden: number of units.
        eps: added to the variance.
        options: other arguments of `gru`.

    Returns:
        A `Recurrent`.

    Raises:
        ValueError: as `gru`.

    Example:
        >>> from normjax import recurrent
        >>> recurrent.ln_gru(4).norm_hn
        shared(norm=layer_norm())

    Reference:
        Ba, Kiros, Hinton, "Layer Normalization", 2016, supplement, equations 26 to 28.
    """
    norm = layer_norm(eps=eps)
    return gru(hidden, norm_x=norm, norm_h=norm, norm_xn=norm, norm_hn=norm, **options)


@_hints.with_hints(lstm)
def rms_lstm(hidden: int, *, eps: float = 1e-5, **options: Any) -> Recurrent:
    r"""LSTM with RMS norm in the places of the layer-normalized one.

    $$(i, f, g, o) = RMS(W_h h_{t-1}) + RMS(W_x x_t) + b, \qquad
      h_t = \sigma(o) \odot \tanh(RMS(c_t))$$

    Args:
        hidden: number of units.
        eps: added to the mean square.
        options: other arguments of `lstm`.

    Returns:
        A `Recurrent`.

    Raises:
        ValueError: as `lstm`.

    Example:
        >>> from normjax import recurrent
        >>> recurrent.rms_lstm(4).norm_c
        shared(norm=rms_norm())

    Reference:
        Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    norm = rms_norm(eps=eps)
    return lstm(hidden, norm_x=norm, norm_h=norm, norm_c=norm, **options)


@_hints.with_hints(lstm)
def wn_lstm(hidden: int, **options: Any) -> Layer:
    r"""LSTM with weight norm on both weights, each made once a call and outside the scan.

    $$w = g \, \frac{v}{\|v\|}$$

    Args:
        hidden: number of units.
        options: arguments of `lstm`.

    Returns:
        A `Layer`.

    Raises:
        ValueError: as `lstm`.

    Example:
        >>> import jax
        >>> from normjax import recurrent
        >>> params, _ = recurrent.wn_lstm(4).init(jax.random.key(0), features=3)
        >>> params["w_h"].v.shape, params["w_h"].g.shape
        ((4, 16), (16,))

    Reference:
        Salimans, Kingma, "Weight Normalization", 2016.
    """
    rules = (("w_x", weight_norm()), ("w_h", weight_norm()))
    return ReparamRecurrent(lstm(hidden, **options), rules)


def _bn(
    scale_init: float,
    eps: float,
    decay: float,
    allow_single: bool,
    debias: Debias,
    *,
    use_bias: bool = True,
) -> Norm:
    return batch_norm(
        scale_init=scale_init,
        eps=eps,
        decay=decay,
        use_bias=use_bias,
        allow_single=allow_single,
        debias=debias,
    )


def _vertical(
    max_steps: int | None, eps: float, decay: float, allow_single: bool, debias: Debias
) -> SeqNorm:
    # The layer's own bias does beta's work.
    norm = _bn(1.0, eps, decay, allow_single, debias, use_bias=False)
    return sequence_wise(norm) if max_steps is None else per_step(norm, max_steps)
