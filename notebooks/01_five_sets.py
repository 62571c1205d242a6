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
# # Five sets, one normalization
#
# **Question:** what is the difference between batch, layer, instance and group norm?
#
# Each method subtracts a mean and divides by a standard deviation. They differ only in *which set of numbers* these are computed over. The picture below is not drawn by hand: a value is coloured if changing it changes the normalized output at the marked value, which is found by differentiating the library's own norms.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import normjax as nj

BATCH, SPACE, CHANNELS = 4, 6, 8
AT = (1, 2, 3)  # the value that is normalized: sample 1, position 2, channel 3

# %% [markdown]
# `norm.moments(params, x)` computes the statistics of a norm. The output at `AT` depends on a value either through these statistics or because it *is* that value; the gradient of the output shows which values are in the set.

# %%
norms = {
    "batch norm": nj.batch_norm(),
    "batch norm,\nper activation": nj.batch_norm(axes=(0,)),
    "layer norm\n(C, space)": nj.layer_norm(axes=(1, 2), feature_axes=-1),
    "layer norm\n(C, as in Flax)": nj.layer_norm(),
    "group norm,\n4 channels a group": nj.group_norm(group_size=4),
    "instance norm": nj.instance_norm(),
}


def averaged_over(norm):
    """True for each value that the output at AT depends on."""
    x = jax.random.normal(jax.random.key(0), (BATCH, SPACE, CHANNELS))
    params, state = norm.init(x.shape)
    output = lambda x: norm.apply(params, state, x, stats="batch")[0][AT]
    return np.abs(jax.grad(output)(x)) > 0


sets = {name: averaged_over(norm) for name, norm in norms.items()}
for name, members in sets.items():
    print(f"{name.replace(chr(10), ' '):32} {members.sum():4d} values of {members.size}")

# %%
figure, axes = plt.subplots(2, 3, figsize=(10, 3.6), layout="constrained")
for axis, (name, members) in zip(axes.flat, sets.items(), strict=True):
    # Samples side by side; within each, positions down and channels across.
    picture = np.concatenate(
        [
            np.pad(members[b].astype(float), ((0, 0), (0, 1)), constant_values=np.nan)
            for b in range(BATCH)
        ],
        1,
    )
    axis.imshow(picture, cmap="Blues", vmin=0, vmax=1.4, aspect="equal")
    axis.plot(AT[0] * (CHANNELS + 1) + AT[2], AT[1], "o", color="#D55E00", ms=5)
    axis.set_title(name, fontsize=11)
    axis.set_xticks([b * (CHANNELS + 1) + CHANNELS / 2 - 0.5 for b in range(BATCH)])
    axis.set_xticklabels([f"sample {b}" for b in range(BATCH)], fontsize=8)
    axis.set_yticks([])
    axis.set_ylabel("position", fontsize=9)
figure.suptitle(
    "Values that normalize the marked one (channels across, within each sample)", fontsize=12
)
plt.show()

# %% [markdown]
# **Answer:** batch norm computes statistics across samples, so it needs running statistics to normalize a single sample; the others compute them within one sample. Group norm with one group is layer norm over channels and space, group norm with one channel per group is instance norm, and instance norm is batch norm of a batch of one:

# %%
x = jax.random.normal(jax.random.key(1), (BATCH, SPACE, CHANNELS))
run = lambda norm, x: norm.apply(*norm.init(x.shape), x, stats="batch")[0]
ends = {
    "group norm of 1 group   = layer norm over (space, C)": (
        run(nj.group_norm(groups=1), x),
        run(nj.layer_norm(axes=(1, 2), feature_axes=-1), x),
    ),
    "group norm of C groups  = instance norm": (
        run(nj.group_norm(groups=CHANNELS), x),
        run(nj.instance_norm(), x),
    ),
    "batch norm of one sample = instance norm of it": (
        run(nj.batch_norm(), x[:1]),
        run(nj.instance_norm(), x[:1]),
    ),
}
for name, (a, b) in ends.items():
    print(f"{name}: largest difference {jnp.abs(a - b).max():.1e}")
