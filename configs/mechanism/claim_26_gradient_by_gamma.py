"""Measures gradients of a batch-normalized RNN through time, by gamma, at initialization.

Read off the figure: about 1e-2 at the last step for all; 1e-3 at the first for gamma 0.1 to 0.3,
1e-22 for 0.6, 0 in float32 for 0.7 and above. Nothing is smaller than in the paper but the number
of gammas; the figure is drawn by python -m experiments.gradient_flow.
"""

from __future__ import annotations

import numpy as np
from experiments.ledger.rules import Claim, contrast, more

from configs.mechanism import _nets
from experiments import gradient_flow

CLAIM = Claim(
    number=26,
    statement="In a batch-normalized tanh RNN the gradient survives 784 steps with gamma 0.1; "
    "with 0.6 it loses far more than with 0.3, and with 1.0 far more than with 0.6",
    source="Cooijmans et al. 2017, figure 1a",
    expect="under 2 decades lost at gamma 0.1, over 10 at 0.6, underflow at 1.0",
    arms=("0.1", "0.3", "0.6", "1.0"),
    rules=(
        contrast("minus decades lost at 0.1", (-1.0, "0.1", "decades_lost"), by=-2.0),
        more("0.6", "0.3", "decades_lost", by=5.0),
        more("1.0", "0.6", "decades_lost", by=5.0),
    ),
    minutes=1,
)


def measure(arm, seed):
    """Decades between |dL/dh| at the last step and at the first; below 1e-45 there is no number."""
    pixels, labels = _nets.batch(seed, 100, side=28)
    gamma = float(arm)
    norm = gradient_flow.measure(pixels, labels, gammas=(gamma,), seed=seed).norms[gamma]
    log = np.log10(np.maximum(np.asarray(norm, np.float64), 1e-45))
    return {
        "decades_lost": log[-1] - log[0],
        "log10_first": log[0],
        "log10_last": log[-1],
        "first_step_above_0": float(np.argmax(norm > 0) + 1),
    }
