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
# # Batch norm from the equations
#
# **Question:** how does batch norm change a gradient in the backward pass, and which numbers replace the batch once training is over?
#
# The notebook derives four parts and checks each against the library: forward pass, backward pass, population statistics, and folding into the previous layer. The data are scikit-learn's digits after one random dense layer.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import normjax as nj
from normjax import analysis
from normjax.analysis import plots

images = load_digits().data.astype(np.float32) / 16
w = jax.random.normal(jax.random.key(0), (64, 8)) / 8
z = jnp.asarray(images) @ w  # [1797, 8]: the input of the norm
batch = z[:100]

norm = nj.batch_norm()
params, state = norm.init(batch.shape)
params = params._replace(scale=jnp.linspace(0.5, 2.0, 8))

# %% [markdown]
# ## Forward
#
# For each feature over the $m$ samples of a batch:
#
# $$\mu = \frac1m\sum_i x_i, \qquad \sigma^2 = \frac1m\sum_i (x_i-\mu)^2, \qquad \hat x_i = \frac{x_i-\mu}{\sqrt{\sigma^2+\epsilon}}, \qquad y_i = \gamma\,\hat x_i + \beta$$

# %%
x64, gamma, beta = (np.asarray(v, np.float64) for v in (batch, *params))
mu, var = x64.mean(0), x64.var(0)
s = np.sqrt(var + norm.eps)
x_hat = (x64 - mu) / s
y, state_after = norm.apply(params, state, batch, stats="batch")
print(f"forward: largest difference from float64 {np.abs(gamma * x_hat + beta - y).max():.1e}")

# %% [markdown]
# ## Backward
#
# $\mu$ and $\sigma^2$ depend on every sample, so each $x_j$ reaches each $y_i$ in three ways. With $s=\sqrt{\sigma^2+\epsilon}$:
#
# $$\frac{\partial \hat x_i}{\partial x_j} = \frac1s\Big(\underbrace{\delta_{ij}}_{\text{itself}} - \underbrace{\tfrac1m}_{\text{through }\mu} - \underbrace{\tfrac1m\hat x_i\hat x_j}_{\text{through }\sigma}\Big)$$
#
# Multiplying by the gradient of the loss $dy_i$ and summing over $i$ gives, with $g_i=\gamma\,dy_i$:
#
# $$dx_j = \frac1s\Big(g_j - \overline{g} - \hat x_j\,\overline{g\hat x}\Big), \qquad d\gamma = \sum_i dy_i\,\hat x_i, \qquad d\beta = \sum_i dy_i$$
#
# This is a projection: the result has mean 0 over the batch and is orthogonal to $\hat x$. Directions in which the output cannot change receive no gradient.

# %%
dy = np.asarray(jax.random.normal(jax.random.key(1), batch.shape), np.float64)
g = gamma * dy
dx = (g - g.mean(0) - x_hat * (g * x_hat).mean(0)) / s

_, back = jax.vjp(lambda p, x: norm.apply(p, state, x, stats="batch")[0], params, batch)
d_params, d_x = back(jnp.asarray(dy, jnp.float32))
for name, by_hand, by_jax in (
    ("dx", dx, d_x),
    ("dgamma", (dy * x_hat).sum(0), d_params.scale),
    ("dbeta", dy.sum(0), d_params.bias),
):
    print(f"{name:6}: largest difference from autodiff {np.abs(by_hand - by_jax).max():.1e}")

# %% [markdown]
# ## Population
#
# After training, a single image has no batch. Two estimates can replace the batch statistics: the running average of training, $d\cdot\text{old}+(1-d)\cdot\text{batch}$, which starts at mean 0 and variance 1, and one exact pass over the data, `nj.population_statistics`. How far off is the running average after $k$ batches?

# %%
batches = z[:1700].reshape(17, 100, 8)
exact = nj.population_statistics(norm, params, state, list(batches))


def distance(decay, steps=170):
    """Relative error of the running variance after each batch."""
    averaging = nj.batch_norm(decay=decay)

    def step(state, b):
        _, state = averaging.apply(params, state, b, stats="batch")
        return state, jnp.linalg.norm(state.var - exact.var) / jnp.linalg.norm(exact.var)

    return jax.lax.scan(step, state, jnp.tile(batches, (steps // 17, 1, 1)))[1]


np.testing.assert_allclose(exact.var, np.asarray(z[:1700], np.float64).var(0), rtol=1e-5)

# %%
left, right = plots.new_axes(1, 2)
for name, method in (("batch norm", norm), ("no norm", nj.identity())):
    plots.plot_norm_identities(analysis.norm_identities(method, batch), left, label=name)
left.set_title("what is left of each identity of dx", loc="left")
for decay, color, style in zip((0.9, 0.99), plots.COLOURS, ("-", "--"), strict=False):
    error = distance(decay)
    right.semilogy(np.arange(1, 171), error, style, color=color, lw=2.2, label=f"decay {decay}")
right.set(xlabel="batches seen", ylabel="relative error of the running variance")
right.set_title("running average against the exact pass", loc="left")
right.legend(frameon=False, labelcolor="#767676")
plt.show()

# %% [markdown]
# ## Folding
#
# With fixed statistics, batch norm is one multiplication and one addition per feature, which can be folded into the previous layer:
#
# $$W' = W\,\frac{\gamma}{s}, \qquad b' = \beta - \frac{\gamma\mu}{s}$$

# %%
kernel, bias = nj.fold_dense(w, None, nj.fold(norm, params, exact))
two = norm.apply(params, exact, jnp.asarray(images) @ w, stats="running")[0]
one = jnp.asarray(images) @ kernel + bias
print(
    f"folded: largest difference {np.abs(two - one).max():.1e} of values up to {np.abs(two).max():.1f}"
)

# %% [markdown]
# **Answer:** in the backward pass, batch norm removes from the gradient its mean over the batch and its component along $\hat x$, and divides the rest by $s$. In the left figure, the residuals of batch norm are only rounding; without a norm, they are not. After training, population statistics replace the batch. The running average forgets its start (mean 0, variance 1) like decay$^k$, so with a decay of 0.99 it is still far off after a hundred batches, while one exact pass is correct immediately. At test time, the norm costs nothing, because it can be folded into the previous layer.
