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
# # Why gamma starts at 0.1
#
# **Question:** batch norm across time failed for some authors and worked for others. What does the initial gamma have to do with it?
#
# Cooijmans et al. (2017) explain it by the gradient: in a batch-normalized tanh RNN, gamma is the standard deviation of the input of tanh, and this determines how much of the gradient passes through each step. The experiment uses real digits (scikit-learn's, 8×8 enlarged to 28×28, so that a sequence has 784 steps), at initialization.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import normjax as nj
from normjax import analysis, recurrent

images, labels = load_digits(return_X_y=True)
large = np.kron(images[:100].reshape(-1, 8, 8) / 16, np.ones((1, 4, 4)))[:, 2:30, 2:30]
x = jnp.asarray(large.reshape(100, 784, 1), jnp.float32)
y = jnp.asarray(labels[:100])
head = jax.nn.initializers.orthogonal()(jax.random.key(1), (100, 10))

# %% [markdown]
# The loss is the cross-entropy of the last step. `gradient_through_time` computes its derivative with respect to the hidden state of every step.


# %%
def loss(_, h):
    return -jnp.take_along_axis(jax.nn.log_softmax(h @ head), y[:, None], 1).mean()


def flow(gamma):
    layer = recurrent.rnn(
        100,
        norm_sum=recurrent.per_step(nj.batch_norm(scale_init=gamma), max_steps=784),
        kernel_init="orthogonal",
        recurrent_init="identity",
        h0_noise=0.1,
    )
    params, state = layer.init(jax.random.key(0), features=1)
    return analysis.gradient_through_time(layer, params, state, x, loss, key=jax.random.key(2))


gammas = (0.1, 0.3, 0.5, 0.7, 1.0)
norms = {gamma: np.asarray(flow(gamma).norm) for gamma in gammas}

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
colors = plt.get_cmap("viridis_r")(np.linspace(0.15, 1, len(gammas)))
for (gamma, norm), color in zip(norms.items(), colors, strict=True):
    left.semilogy(
        np.arange(1, 785), np.where(norm > 0, norm, np.nan), color=color, label=f"{gamma:.1f}"
    )
left.set(xlabel="time step t", ylabel="gradient norm of the loss at h_t")
left.legend(title="gamma", frameon=False)

z = np.random.RandomState(0).randn(4000)
spread = np.linspace(0.02, 1.2, 60)
slope = np.array([1 - np.tanh(s * z) ** 2 for s in spread])
right.plot(spread, slope.mean(1), color="#0072B2")
right.fill_between(spread, *np.quantile(slope, (0.25, 0.75), axis=1), color="#0072B2", alpha=0.2)
right.set(
    xlabel="standard deviation of what tanh sees (gamma)",
    ylabel="derivative of tanh: mean, quartiles",
)
plt.show()
for gamma, norm in norms.items():
    print(f"gamma {gamma:.1f}: gradient at t=784 {norm[-1]:.1e}, at t=1 {norm[0]:.1e}")

# %% [markdown]
# **Answer:** if the input of tanh has unit variance, less than two thirds of the gradient passes through each step on average; over hundreds of steps, nothing is left. With gamma 0.1, tanh is nearly linear at initialization, and the gradient reaches the first step. Layer norm, whose authors found a gain of 1 better, does not force the same variance on every unit.
