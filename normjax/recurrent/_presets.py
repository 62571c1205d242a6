"""Presets: each published recurrent normalization, one line over the parts."""

from __future__ import annotations

from typing import Any

from normjax._batch import batch_norm
from normjax.recurrent._cells import lstm
from normjax.recurrent._layer import Recurrent
from normjax.recurrent._lifts import per_step


def bn_lstm(
    hidden: int,
    max_steps: int,
    *,
    scale_init: float = 0.1,
    eps: float = 1e-5,
    decay: float = 0.99,
    forget_bias: float = 1.0,
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
    bn = {"scale_init": scale_init, "eps": eps, "decay": decay}
    term = per_step(batch_norm(use_bias=False, **bn), max_steps)  # type: ignore[arg-type]
    cell = per_step(batch_norm(**bn), max_steps)  # type: ignore[arg-type]
    return lstm(hidden, norm_x=term, norm_h=term, norm_c=cell, forget_bias=forget_bias, **options)
