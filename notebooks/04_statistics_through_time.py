# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Per-step statistics, and sequences longer than in training
#
# **Question:** recurrent batch norm stores statistics for each time step up to $T_{max}$. When do they stop changing, and what happens to a longer sequence?
#
# Cooijmans et al. (2017) store one mean and variance per step, because the first steps are a transient, and reuse those of step $T_{max}$ for later steps. This is right if the statistics are stationary by then. The experiment uses an LSTM with batch norm and random weights on two kinds of data. *Stationary*: noise with the same distribution at all times. *Digits*: scikit-learn's 8×8 images read pixel by pixel; their margins are black.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import normjax as nj
from normjax import analysis, recurrent
from normjax.analysis import plots

LENGTH, BATCH, HIDDEN = 64, 256, 32
digits = load_digits().data[: 4 * BATCH, :, None] / 16
data = {
    "stationary": jax.random.uniform(jax.random.key(0), (4 * BATCH, LENGTH, 1)),
    "digits": jnp.asarray(digits, jnp.float32),
}

# %% [markdown]
# `layer.info` returns the statistics of each norm at each step; `analysis.stationarity` compares them with the mean and variance of the last quarter of the sequence. `norm_h` normalizes $W_h h_{t-1}$, `norm_x` normalizes $W_x x_t$.

# %%
layer = recurrent.bn_lstm(HIDDEN, max_steps=LENGTH)
params, state = layer.init(jax.random.key(1), features=1)
measure = jax.jit(lambda x: layer.info(params, state, x, stats="batch").moments)
result = {}
for name, x in data.items():
    for place, moments in measure(x).items():
        result[name, place] = analysis.stationarity(moments, tolerance=0.1)
        steps = int(result[name, place].steps)
        print(f"{name:10} {place}: within 0.1 of stationary after step {steps:2d} of {LENGTH}")

# %% [markdown]
# The next cell compares choices of $T_{max}$. For each, population statistics are computed on sequences of $T_{max}$ steps (the longest in training) and then used on all 64 steps. The outputs are compared with those that use statistics of all 64 steps.

# %%
CUTS = (1, 2, 4, 8, 16, 32, 48, 64)


def outputs(x, cut):
    """Outputs of all steps, with the statistics of the first `cut`."""
    short = recurrent.bn_lstm(HIDDEN, max_steps=cut)
    start = short.init(jax.random.key(1), features=1)[1]
    fitted = nj.population_statistics(short, params, start, [{"x": x[:, :cut]}])
    return short.apply(params, fitted, x, stats="running")[0][0]


def errors(x):
    """Relative error of the outputs past T_max, for each T_max."""
    right = outputs(x, LENGTH)
    return [
        float(jnp.linalg.norm((outputs(x, c) - right)[:, c:]) / jnp.linalg.norm(right[:, c:]))
        for c in CUTS[:-1]
    ]


beyond = {name: errors(x[:BATCH]) for name, x in data.items()}

# %%
left, right = plots.new_axes(1, 2)
time = np.arange(1, LENGTH + 1)
for (name, error), color in zip(beyond.items(), plots.COLOURS, strict=False):
    for place, style in (("norm_x", ":"), ("norm_h", "-")):
        distance = np.maximum(result[name, place].spread, 1e-3)
        left.semilogy(time, distance, style, color=color, lw=2.2, label=f"{name}, {place}")
    right.loglog(CUTS[:-1], error, marker="o", color=color, lw=2.2, label=name)
left.axhline(0.1, color="#767676", lw=1.2, ls=(0, (2, 3)))
left.set(xlabel="time step t", ylabel="log of std, distance from stationary", ylim=(8e-4, 2e3))
left.set_title("spread, step by step", loc="left")
right.set(
    xlabel="T_max (steps with statistics of their own)",
    ylabel="relative error of outputs past T_max",
)
right.set_title("the last step's statistics reused", loc="left")
right.set_xticks(CUTS[:-1], [str(c) for c in CUTS[:-1]])
right.minorticks_off()
left.legend(frameon=False, labelcolor="#767676")
plt.show()
for name, error in beyond.items():
    print(
        f"{name:10}: error past T_max",
        ", ".join(f"{c}: {e:.0%}" for c, e in zip(CUTS, error, strict=False)),
    )

# %% [markdown]
# **Answer:** statistics become stationary if the data do. On stationary data, the statistics of the hidden term need tens of steps for the transient after $h_0 = 0$, and the error past $T_{max}$ decreases with $T_{max}$. A $T_{max}$ inside the transient is useless, because the variance of the first steps is far smaller than that of later steps, and the norm divides by it. On digits read pixel by pixel, the input term never becomes stationary: the edge columns are black in nearly every image, so the variance of such a step is near 0, and reusing its statistics on another pixel makes the input explode (here, every $T_{max}$ from 8 on ends at the right edge). Choose $T_{max}$ as the longest training length. For longer sequences, check `stationarity` first, for `norm_x` as well as `norm_h`.
