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
# # Vertical batch norm by depth
#
# **Question:** batch norm on the input term only, between the layers of a recurrent stack: does it help, and from which depth?
#
# Laurent et al. (2016) and Deep Speech 2 (Amodei et al., 2016) do not normalize the recurrent term, only the input from the layer *below*: $h_t^l = \phi(\mathrm{BN}(W_x h_t^{l-1}) + W_h h_{t-1}^l)$. Two kinds of statistics are possible: of each frame over the batch (`per_step`), or of the whole sequence and batch (`sequence_wise`). Deep Speech 2 gained little with one layer and much with five and more. The experiment uses tanh stacks that read the eight rows of a digit, with the same number of parameters at every depth.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import normjax as nj
from normjax import recurrent
from normjax.analysis import plots

images, labels = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(images))
x = jnp.asarray(images[order] / 16, jnp.float32).reshape(-1, 8, 8)  # eight rows, eight steps
y = jnp.asarray(labels[order])
train_x, train_y, test_x, test_y = x[:1280], y[:1280], x[1280:], y[1280:]
STEPS, BATCH, SEEDS, BUDGET, DEPTHS = 300, 64, 3, 12_000, (1, 3, 5, 7)


def vertical(kind):
    norm = nj.batch_norm(use_bias=False, decay=0.9)
    return {
        "none": None,
        "frame by frame": recurrent.per_step(norm, max_steps=8),
        "sequence-wise": recurrent.sequence_wise(norm),
    }[kind]


def build(depth, kind):
    """A stack of `depth` layers, as wide as the budget of weights allows."""
    width = int(np.sqrt(BUDGET / (2 * depth - 1)))
    layers = [recurrent.rnn(width, norm_x=vertical(kind)) for _ in range(depth)]
    return recurrent.stack(layers), width


# %% [markdown]
# Training is one scan; the three seeds are trained together under `vmap`. At test time, the statistics are those of the whole training set, from `nj.population_statistics`.


# %%
def trained(depth, kind, rate):
    net, width = build(depth, kind)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def scores(params, state, x, stats):
        (_, ends), state = net.apply(params["net"], state, x, stats=stats)
        return ends[-1] @ params["head"], state

    def loss(params, state, rows):
        out, state = scores(params, state, train_x[rows], "batch")
        right = jnp.take_along_axis(jax.nn.log_softmax(out), train_y[rows][:, None], 1)
        return -right.mean(), state

    def run(key):
        params, state = net.init(key, features=8)
        params = {"net": params, "head": jnp.zeros((width, 10))}

        def step(carry, key):
            params, state, opt = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(train_x))
            (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, rows)
            updates, opt = tx.update(grads, opt, params)
            return (optax.apply_updates(params, updates), state, opt), value

        start = (params, state, tx.init(params))
        (params, state, _), losses = jax.lax.scan(step, start, jax.random.split(key, STEPS))
        if net.stateful:
            state = nj.population_statistics(net, params["net"], state, [{"x": train_x}])
        out, _ = scores(params, state, test_x, "running")
        return losses, 100 * jnp.mean(jnp.argmax(out, 1) != test_y)

    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS))


kinds = ("none", "frame by frame", "sequence-wise")
losses, errors = {}, {}
for kind in kinds:
    for depth in DEPTHS:
        losses[kind, depth], errors[kind, depth] = map(np.asarray, trained(depth, kind, 3e-3))

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for i, kind in enumerate(kinds):
    look = {"color": plots.COLOURS[i], "marker": "os^"[i], "capsize": 3, "label": kind}
    curves = (
        [losses[kind, d].mean(1) for d in DEPTHS],  # over training: how fast it learns
        [errors[kind, d] for d in DEPTHS],
    )
    for ax, curve in zip(axes, curves, strict=True):
        values = np.array(curve)
        ax.errorbar(DEPTHS, values.mean(1), values.std(1, ddof=1), **look)
axes[0].set_ylabel("training loss, mean over 300 steps (nats)")
axes[1].set_ylabel(f"test error (%), {SEEDS} seeds ± std")
for ax in axes:
    ax.set_xticks(DEPTHS)
    ax.set_xlabel("layers, at one number of weights")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
axes[0].legend(frameon=False)
plt.show()
for kind in kinds:
    print(f"{kind:15s}", [f"{errors[kind, d].mean():.1f} %" for d in DEPTHS])

# %% [markdown]
# **Answer.** Vertical batch norm helps more the deeper the stack is, and only with statistics of the whole sequence. With one layer, the mean training loss falls from 0.214 to 0.195 nats, with seven from 0.473 to 0.360. Statistics of each frame alone, here over 64 rows of pixels, have almost no effect. On the test digits, the three methods are within each other's spread up to five layers; with seven layers, sequence-wise batch norm makes 3.5 % errors and the plain stack 5.0 %. With so few seeds, this last difference is a hint, not a verdict: claims 9 to 12 of the ledger test the same question on spoken digits with paired seeds. Depth does not help at this number of weights, with or without a norm.
