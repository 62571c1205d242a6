"""Measures the derivative of tanh against the standard deviation of its input.

Unit variance, which gamma 1 gives, puts tanh where its derivative is well below 1 (figure 1b: about
0.6). 100,000 normal draws for each deviation; the figure has 1,000.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from experiments.ledger.rules import Claim, contrast, less

CLAIM = Claim(
    number=29,
    statement="The mean derivative of tanh is near 1 for inputs of standard deviation 0.1 and well "
    "below 1 for unit deviation",
    source="Cooijmans et al. 2017, figure 1b",
    expect="above 0.98 at 0.1, below 0.7 at 1, falling in between",
    arms=("0.1", "0.3", "0.6", "1.0"),
    rules=(
        contrast("derivative at 0.1", (1.0, "0.1", "derivative"), by=0.98),
        contrast("minus derivative at 1.0", (-1.0, "1.0", "derivative"), by=-0.7),
        less("0.6", "0.3", "derivative", by=0.05),
        less("1.0", "0.6", "derivative", by=0.05),
    ),
    minutes=0.1,
)


def measure(arm, seed):
    """Mean of tanh'(x), x normal, and the decades that 100 such factors in a row would take."""
    x = float(arm) * jax.random.normal(jax.random.key(seed), (100_000,))
    slope = jax.vmap(jax.grad(jnp.tanh))(x)
    return {
        "derivative": float(slope.mean()),
        "lower_quartile": float(jnp.quantile(slope, 0.25)),
        "decades_in_100_steps": float(-100 * jnp.log10(slope).mean()),
    }
