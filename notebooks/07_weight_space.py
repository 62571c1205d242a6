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
# # Normalizing the weight instead
#
# **Question:** weight norm, weight standardization and spectral norm do not use the data. Which properties of batch norm do they share?
#
# The notebook measures three properties: the scale of activations through depth, the changes that have no effect on the output, and the length of a weight during training. The data are scikit-learn's digits.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import normjax as nj
from normjax import analysis
from normjax.analysis import plots

x = jnp.asarray(load_digits().data[:500] / 16, jnp.float32)
DEPTH, WIDTH = 12, 64
weights = [
    0.05 * jax.random.normal(k, (64, WIDTH)) for k in jax.random.split(jax.random.key(0), DEPTH)
]

# %% [markdown]
# ## Through depth
#
# The network uses ReLU, and its initial weights are far too small (std 0.05). Weight norm alone does not change the initial function; its data-dependent initialization sets gains and biases from one batch, layer by layer.


# %%
def spreads(ws, norm=None):
    """Standard deviation of the pre-activations of each layer."""
    h, out = x, []
    for w in ws:
        z = h @ w
        if norm is not None:
            z = norm.apply(*norm.init(z.shape), z, stats="batch")[0]
        out.append(float(z.std()))
        h = jax.nn.relu(z)
    return out


def made(method):
    """The weights that a method computes from these at the start."""
    return [method.apply(*method.init(w), stats="batch")[0] for w in weights]


dense = (lambda w, x: x @ w, jax.nn.relu)
layers, _ = nj.data_dependent_stack(
    [dense] * DEPTH, [{"kernel": w, "bias": jnp.zeros(WIDTH)} for w in weights], x
)


def started():
    h, out = x, []
    for layer in layers:
        w, _ = nj.weight_norm().apply(layer["kernel"], (), stats="batch")
        z = h @ w + layer["bias"]
        out.append(float(z.std()))
        h = jax.nn.relu(z)
    return out


depth = {
    "nothing = weight norm": spreads(weights),
    "weight norm, data-dependent start": started(),
    "weight standardization, fan-in": spreads(made(nj.weight_standardization(fan_in=True))),
    "spectral norm": spreads(made(nj.spectral_norm(iterations=20))),
    "batch norm": spreads(weights, nj.batch_norm()),
}

# %% [markdown]
# ## The length of a weight
#
# Weight norm's gradient is orthogonal to $v$, so a step of size $c=\eta\|\nabla_v L\|/\|v\|$ makes $v$ longer by $\sqrt{1+c^2}$, never shorter. A learning rate that is too large makes $v$ long, and a long $v$ turns slowly: the effective step size adjusts itself.

# %%
inputs = x - x.mean(0)
target = jnp.tanh(inputs @ (0.5 * jax.random.normal(jax.random.key(1), (64, 16))))
first = 0.5 * jax.random.normal(jax.random.key(2), (64, 16))
loss = lambda w: jnp.mean((jnp.tanh(inputs @ w) - target) ** 2)


def train(rate, method=None, steps=200):
    """Loss and mean length of v through training, by plain gradient descent."""
    params = first if method is None else method.init(first)[0]
    make = (lambda p: p) if method is None else (lambda p: method.apply(p, (), stats="batch")[0])

    def step(p, _):
        value, g = jax.value_and_grad(lambda p: loss(make(p)))(p)
        v = p if method is None else p.v
        new = jax.tree.map(lambda a, b: a - rate * b, p, g)
        return new, (value, jnp.linalg.norm(v, axis=0).mean())

    return jax.lax.scan(step, params, None, steps)[1]


rates = jnp.array([1.0, 10.0, 100.0, 1e3, 1e4])
trained = {
    "the weight itself": None,
    "weight norm": nj.weight_norm(),
    "weight norm, direction alone": nj.weight_norm(train="direction"),
}
trained = {
    name: jax.jit(jax.vmap(lambda rate, m=method: train(rate, m)))(rates)
    for name, method in trained.items()
}

# %%
left, middle, right = plots.new_axes(1, 3, figsize=(16, 4.3))
styles = ("-", "--", "-.", ":", (0, (3, 1)))
marks = zip(plots.COLOURS, styles, "osD^v", strict=False)
for (name, spread), (color, style, mark) in zip(depth.items(), marks, strict=False):
    layer = np.arange(1, DEPTH + 1)
    left.semilogy(layer, spread, ls=style, marker=mark, color=color, lw=2, label=name)
left.set(xlabel="layer", ylabel="std of the pre-activations", ylim=(1e-8, 3))
left.set_title("scale through depth, at the start", loc="left")
left.legend(frameon=False, labelcolor="#767676", fontsize=11)
lengths = trained["weight norm, direction alone"][1]
for rate, length, color, style in zip(rates, lengths, plots.COLOURS, styles, strict=False):
    middle.plot(length, ls=style, color=color, lw=2.2, label=f"learning rate {rate:g}")
middle.set(xlabel="training step", ylabel="mean length of v", yscale="log", ylim=(3, 1e5))
middle.set_title("a large step makes v long", loc="left")
middle.legend(frameon=False, labelcolor="#767676")
marks = zip(plots.COLOURS, styles, "osD", strict=False)
for (name, (losses, _)), (color, style, mark) in zip(trained.items(), marks, strict=False):
    right.loglog(rates, losses[:, -1], ls=style, marker=mark, color=color, lw=2.2, label=name)
right.set(xlabel="learning rate", ylabel="loss after 200 steps")
right.set_title("which steps train", loc="left")
right.legend(frameon=False, labelcolor="#767676")
plt.show()
for name, (losses, _) in trained.items():
    print(f"{name:30} last loss at each rate", np.round(losses[:, -1], 4))

# %% [markdown]
# ## Changes without effect

# %%
methods = {
    "batch norm": nj.batch_norm(),
    "weight norm": nj.weight_norm(),
    "weight standardization": nj.weight_standardization(),
    "spectral norm": nj.spectral_norm(iterations=20),
}
ax = None
for name, method in methods.items():
    ax = plots.plot_invariance(analysis.invariance(method, x[:64], first), ax, label=name)
ax.figure.set_size_inches(9, 5)
plt.show()

# %% [markdown]
# **Answer:** the methods share batch norm's invariances to changes of the weight: to its length (all three) and to the length of each weight vector (weight norm and standardization). Standardization also shares one invariance to the data: adding a constant to all inputs changes nothing. These invariances make the step size adjust itself: if only the direction is trained, learning rates from 10 to 1,000 work, while only the first of these works for the weight itself. The gain g has no such protection. The methods do not share the invariances to the data, so the scale of activations depends on the weights: weight norm starts as the original network, standardization and spectral norm fix the weight but not the signal, and only the data-dependent initialization gives batch norm's scale through depth, once, for one batch.
