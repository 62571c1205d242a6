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
# # Whitening
#
# **Question:** batch norm gives every feature variance 1 but does not remove correlations. What is gained by removing them too, and how much of that do a few Newton steps achieve?
#
# Standardizing scales the axes; whitening also rotates the data, by some $W$ with $W^TW=\Sigma^{-1}$. PCA rotates them onto the principal axes; ZCA is the symmetric root $\Sigma^{-1/2}$ and stays closest to the data. `decorrelated_batch_norm` is ZCA on each batch; `iterative_norm` approximates it by Newton's iteration, without an eigendecomposition.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import normjax as nj
from normjax import analysis
from normjax.analysis import plots

run = lambda norm, x: norm.apply(*norm.init(x.shape), x, stats="batch")[0]
flat = jax.random.normal(jax.random.key(0), (400, 2)) @ jnp.array([[2.0, 0.8], [0.0, 0.35]]) + 1.0
m = nj.second_moments(flat)
pictures = {
    "data": flat - m.mean,
    "batch norm": run(nj.batch_norm(), flat),
    "PCA": nj.whiten(flat, nj.pca_whitening(m, 1e-6)),
    "ZCA = decorrelated": run(nj.decorrelated_batch_norm(eps=1e-6), flat),
    "2 Newton steps": run(nj.iterative_norm(iterations=2), flat),
    "7 Newton steps": run(nj.iterative_norm(iterations=7), flat),
}

# %%
axes = plots.new_axes(1, 6, figsize=(13.5, 2.6), sharex=True, sharey=True)
hue = np.arctan2(*np.asarray(flat - m.mean).T)  # the same colour is the same sample
for ax, (name, points) in zip(axes, pictures.items(), strict=True):
    ax.scatter(*np.asarray(points).T, c=hue, cmap="twilight", s=8, lw=0)
    ax.set_title(name, fontsize=12)
    ax.set(aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
plt.show()

# %% [markdown]
# ## The benefit: a round bowl
#
# With a squared error, the Hessian of a linear layer is the covariance $\Sigma$ of its inputs. The ratio of its largest to its smallest eigenvalue determines how slow gradient descent is. Here, the inputs are 16 tanh units of a random layer on scikit-learn's digits, normalized by each method.

# %%
images = jnp.asarray(load_digits().data / 16, jnp.float32)
hidden = jnp.tanh(images @ (jax.random.normal(jax.random.key(1), (64, 16)) / 4))
target = jnp.asarray(load_digits().target[:, None] / 9 - 0.5, jnp.float32)
norms = {
    "none": nj.identity(),
    "batch norm": nj.batch_norm(),
    **{f"iterative norm, {t}": nj.iterative_norm(iterations=t) for t in (1, 3, 5, 9)},
    "decorrelated": nj.decorrelated_batch_norm(),
}


def study(norm, steps=100):
    """Eigenvalues of the loss, and the loss under gradient descent at rate 1 / largest."""
    h = run(norm, hidden)
    loss = lambda w: 0.5 * jnp.mean((h @ w["kernel"] + w["bias"] - target) ** 2)
    w = {"kernel": jnp.zeros((16, 1)), "bias": jnp.zeros(1)}
    values = analysis.hessian_spectrum(loss, w, iterations=17).values
    step = lambda w, _: (
        jax.tree.map(lambda a, g: a - g / values[0], w, jax.grad(loss)(w)),
        loss(w),
    )
    best, *_ = jnp.linalg.lstsq(jnp.concatenate([h, jnp.ones((len(h), 1))], 1), target)
    least = loss({"kernel": best[:-1], "bias": best[-1]})
    return values, jax.lax.scan(step, w, None, steps)[1] - least


found = {name: jax.jit(study, static_argnums=0)(norm) for name, norm in norms.items()}

# %%
left, right = plots.new_axes(1, 2)
shown = {k: v for k, v in found.items() if k not in ("iterative norm, 1", "iterative norm, 9")}
styles = zip(plots.COLOURS, ("-", "--", "-.", ":", (0, (3, 1))), "osD^v", strict=False)
for (name, (values, excess)), (color, style, mark) in zip(shown.items(), styles, strict=False):
    left.semilogy(np.arange(1, 18), values, ls=style, marker=mark, color=color, lw=2, label=name)
    right.semilogy(
        np.where(excess > 1e-7, excess, np.nan), ls=style, color=color, lw=2.2, label=name
    )
left.set(xlabel="eigenvalue of the Hessian, largest first", ylabel="eigenvalue")
left.set_title("curvature (16 weights and a bias)", loc="left")
left.legend(frameon=False, labelcolor="#767676", fontsize=11)
right.set(
    xlabel="step of gradient descent, rate 1 / largest eigenvalue", ylabel="loss above its minimum"
)
right.set_title("what it means for training", loc="left")
plt.show()
for name, (values, excess) in found.items():
    print(
        f"{name:18} largest / smallest eigenvalue {values[0] / values[-1]:9.1f}   excess loss after 100 steps {excess[-1]:.1e}"
    )

# %% [markdown]
# **Answer:** a round bowl. With whitened inputs, the Hessian of a linear layer is the identity, and one step of gradient descent at rate 1 reaches the minimum (its curve is below the range of the figure from the start). Batch norm already removes the largest part: the unequal variances, and the mean that couples the bias to every feature. Newton's iteration corrects the large eigenvalues first: after three steps, the small ones are smaller than with batch norm; five steps (the paper's choice) are better than batch norm; nine steps whiten.
