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
# # Small batches
#
# **Question:** how small can a batch be before batch norm's noise does more harm than good, and which norms are unaffected?
#
# Batch norm's mean and variance over $m$ samples are estimates with an error of order $1/\sqrt m$. In training, the network adapts to that noise; in evaluation, there is none. Batch renorm corrects each batch towards the running statistics; group and layer norm do not depend on other samples. The experiment trains a small network on scikit-learn's digits, with the same number of epochs for each batch size, a learning rate proportional to it, and three seeds.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import normjax as nj
from normjax.analysis import plots

images, labels = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(images))
x = jnp.asarray(images[order] / 16, jnp.float32)
y = jnp.asarray(labels[order])
train_x, train_y, test_x, test_y = x[:1280], y[:1280], x[1280:], y[1280:]
EPOCHS, WIDTHS = 5, (64, 64, 64, 10)

norms = {
    "batch norm": nj.batch_norm(decay=0.95),
    "batch renorm": nj.batch_renorm(decay=0.95),
    "group norm, 4 groups": nj.group_norm(groups=4),
    "layer norm": nj.layer_norm(),
}

# %% [markdown]
# The network is two functions, which receive and return the state of the norms. Every batch has room for 32 samples and a `mask` selects those that count, so one compiled program serves all batch sizes. Batch renorm's bounds increase over the first half of training, as in its paper (`nj.renorm_schedule`).


# %%
def start(key, norm):
    keys = jax.random.split(key, len(WIDTHS) - 1)
    weights = [
        jax.random.normal(k, (n, m)) * np.sqrt(2 / n)
        for k, n, m in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    ]
    affine, state = zip(*(norm.init((1, width)) for width in WIDTHS[1:-1]), strict=True)
    return (weights, jnp.zeros(10), affine), state


def network(norm, params, state, x, stats, mask=None, hyper=None):
    weights, bias, affine = params
    new = []
    for w, a, s in zip(weights, affine, state, strict=False):
        x, s = norm.apply(a, s, x @ w, stats=stats, mask=mask, hyper=hyper)
        x = jax.nn.relu(x)
        new.append(s)
    return x @ weights[-1] + bias, tuple(new)


@functools.partial(jax.jit, static_argnums=1)
def error(key, norm, batch):
    """Test error after training, with running statistics, in percent."""
    key_start, key_order = jax.random.split(key)
    steps = EPOCHS * len(train_x) // batch
    counts = jnp.arange(32) < batch

    def loss(params, state, rows, hyper):
        scores, state = network(norm, params, state, train_x[rows], "batch", counts[:, None], hyper)
        right = jnp.take_along_axis(jax.nn.log_softmax(scores), train_y[rows][:, None], 1)[:, 0]
        return -jnp.sum(right, where=counts) / batch, state

    def step(i, carry):
        hyper = {}
        if "r_max" in norm.hyper_names:
            hyper = nj.renorm_schedule(1000 * i // steps, start=100, r_end=500, d_end=500)
        rows = jax.random.randint(jax.random.fold_in(key_order, i), (32,), 0, len(train_x))
        gradient, state = jax.grad(loss, has_aux=True)(*carry, rows, hyper)
        rate = 0.1 * batch / 32
        return jax.tree.map(lambda p, g: p - rate * g, carry[0], gradient), state

    trained = jax.lax.fori_loop(0, steps, step, start(key_start, norm))
    scores, _ = network(norm, *trained, test_x, "running")
    return 100 * (scores.argmax(1) != test_y).mean()


BATCHES, SEEDS = (2, 4, 8, 32), jax.random.split(jax.random.key(0), 3)
errors = {
    name: np.array([[float(error(key, norm, b)) for key in SEEDS] for b in BATCHES])
    for name, norm in norms.items()
}

# %%
ax = plots.new_axes()
marks = zip(plots.COLOURS, ("-", "--", "-.", ":"), "osD^", strict=False)
for (name, e), (color, style, mark) in zip(errors.items(), marks, strict=False):
    ax.errorbar(
        BATCHES,
        e.mean(1),
        e.std(1),
        ls=style,
        marker=mark,
        ms=8,
        lw=2.2,
        capsize=4,
        color=color,
        label=name,
    )
ax.set_xscale("log", base=2)
ax.set_xticks(BATCHES, [str(b) for b in BATCHES])
ax.set(xlabel="batch size (samples)", ylabel="test error (%), 3 seeds ± std", yscale="log")
ax.set_yticks([3, 4, 6, 10, 20, 30], ["3", "4", "6", "10", "20", "30"])
ax.minorticks_off()
ax.legend(frameon=False, labelcolor="#767676")
plt.show()
for name, e in errors.items():
    print(
        f"{name:22}",
        "   ".join(
            f"batch {b}: {m:.1f} ± {s:.1f} %"
            for b, m, s in zip(BATCHES, e.mean(1), e.std(1), strict=True)
        ),
    )

# %% [markdown]
# **Answer:** with 32 samples, all four are the same. Down to 4 samples, batch norm loses a little; with 2, it fails, because two values normalized by their own mean and variance can only be $\pm 1$. Batch renorm, which relies on the running statistics, more than halves this error but does not remove it. Group and layer norm do not depend on the batch at all. The order is the same as in Wu and He (2018), on a far smaller problem.
