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
# # Bring your own norm
#
# **Question:** how much code does a new normalization need, and does it then work everywhere: in Linen, in NNX, per step in an LSTM?
#
# The example measures spread by the mean absolute deviation, $\tfrac1m\sum|x_i-\mu|$, instead of the standard deviation: it is cheaper in half precision and less sensitive to outliers (Hoffer et al. 2018). For normally distributed data, the standard deviation $\sigma$ is $\sqrt{\pi/2}$ times the mean absolute deviation. Everything else is inherited from batch norm.

# %%
import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import normjax as nj
from normjax import linen, recurrent
from normjax import nnx as nj_nnx
from normjax.analysis import plots


@dataclasses.dataclass(frozen=True, repr=False)
class L1BatchNorm(type(nj.batch_norm())):
    """Batch norm whose spread is the mean absolute deviation."""

    factory: ClassVar[str] = "l1_batch_norm"

    def moments(self, params, x, *, mask=None, axis_name=None):
        m = super().moments(params, x, mask=mask, axis_name=axis_name)
        deviation = nj.moments(
            jnp.abs(x - m.mean.astype(x.dtype)), self.axes, mask=mask, axis_name=axis_name
        )
        return m._replace(var=jnp.pi / 2 * deviation.mean**2)


norm = L1BatchNorm(axes=None, decay=0.9)
norm

# %% [markdown]
# A norm makes four choices (which set, where the statistics come from, what is done with them, the affine map), and this one changes only *what is measured*. `init`, `transform`, the running average, `mask` and `axis_name` are inherited. CONTRIBUTING shows how to write a norm from scratch and run the test batteries on it.

# %%
x = jax.random.normal(jax.random.key(0), (1000, 3)) * jnp.array([1.0, 2.0, 3.0])
x = x.at[0].set(200.0)  # an outlier
for each in (norm, nj.batch_norm()):
    y, _ = each.apply(*each.init(x.shape), x, stats="batch")
    print(f"{each!r:45} std of the other 999:", np.round(y[1:].std(0), 2))

# %% [markdown]
# ## In Linen, in NNX, in an LSTM
#
# The same norm is used in all three. The data are scikit-learn's digits; the LSTM reads each image as 8 rows.

# %%
images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
STEPS, BATCH = 120, 64
rows = jax.random.randint(jax.random.key(1), (STEPS, BATCH), 0, len(images))
cross_entropy = lambda scores, y: optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()
optimizer = optax.adam(3e-3)


class LinenModel(nn.Module):
    norm: nj.Norm

    @nn.compact
    def __call__(self, x, stats):
        x = nn.relu(linen.Normalize(self.norm)(nn.Dense(64)(x), stats=stats))
        return nn.Dense(10)(x)


def train_linen(norm):
    model = LinenModel(norm)
    variables = model.init(jax.random.key(0), images[:1], stats="running")

    def loss(params, state, batch):
        scores, new = model.apply(
            {"params": params, "batch_stats": state},
            images[batch],
            stats="batch",
            mutable=["batch_stats"],
        )
        return cross_entropy(scores, labels[batch]), new["batch_stats"]

    return fit(loss, variables["params"], variables["batch_stats"])


def train_lstm(norm):
    lifted = recurrent.per_step(norm, max_steps=8)
    layer = recurrent.lstm(32, norm_x=lifted, norm_h=lifted, norm_c=lifted)
    params, state = layer.init(jax.random.key(0), features=8)
    head = jax.nn.initializers.lecun_normal()(jax.random.key(2), (32, 10))

    def loss(params, state, batch):
        (_, carry), state = layer.apply(
            params["lstm"], state, images[batch].reshape(-1, 8, 8), stats="batch"
        )
        return cross_entropy(carry.h @ params["head"], labels[batch]), state

    return fit(loss, {"lstm": params, "head": head}, state)


def fit(loss, params, state):
    def step(carry, batch):
        params, state, moments = carry
        (value, state), g = jax.value_and_grad(loss, has_aux=True)(params, state, batch)
        updates, moments = optimizer.update(g, moments)
        return (optax.apply_updates(params, updates), state, moments), value

    return jax.jit(lambda carry: jax.lax.scan(step, carry, rows)[1])(
        (params, state, optimizer.init(params))
    )


# %% [markdown]
# NNX modules hold their own state; `train()` and `eval()` set the mode, as for Flax's own layers.


# %%
class NnxModel(nnx.Module):
    def __init__(self, norm, rngs):
        self.inner = nnx.Linear(64, 64, rngs=rngs)
        self.norm = nj_nnx.Normalize(norm, 64, rngs=rngs)
        self.outer = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.outer(nnx.relu(self.norm(self.inner(x))))


def train_nnx(norm):
    model = NnxModel(norm, nnx.Rngs(0))
    model.train()
    moments = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(model, moments, batch):
        value, g = nnx.value_and_grad(lambda m: cross_entropy(m(images[batch]), labels[batch]))(
            model
        )
        moments.update(model, g)
        return value

    return np.array([float(step(model, moments, batch)) for batch in rows])


# %%
axes = plots.new_axes(1, 3, figsize=(13, 3.9), sharey=True)
trainers = {"Linen": train_linen, "NNX": train_nnx, "LSTM, norms in x, h and c": train_lstm}
for ax, (name, train) in zip(axes, trainers.items(), strict=True):
    for method, color, style in (
        (norm, plots.COLOURS[0], "-"),
        (nj.batch_norm(decay=0.9), plots.COLOURS[1], "--"),
    ):
        curve = np.asarray(train(method))
        ax.semilogy(np.arange(1, STEPS + 1), curve, style, color=color, lw=2, label=method.factory)
        print(f"{name:26} {method.factory:14} loss of the last 10 steps {curve[-10:].mean():.3f}")
    ax.set_title(name, loc="left")
    ax.set_xlabel("training step")
axes[0].set_ylabel("cross-entropy (nats)")
axes[0].legend(frameon=False, labelcolor="#767676")
plt.show()

# %% [markdown]
# **Answer:** a norm that only measures differently needs one method, `moments`. The same norm then trains in all three, step for step like batch norm if the data have no outliers. The first table shows the difference with one outlier: the other 999 samples should have a standard deviation of 1; in the first feature, batch norm reduces it to 0.16 and the mean absolute deviation to 0.80.
