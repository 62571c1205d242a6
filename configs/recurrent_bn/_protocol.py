"""What the sequential-image experiments of the recurrent batch norm paper share.

Cooijmans, Ballas, Laurent, Gülçehre, Courville, "Recurrent Batch Normalization", ICLR 2017,
arXiv:1603.09025, section 5.1, and the authors' `sequential_mnist.py` where the paper is silent:

* one LSTM of 100 units, its last h read out by a softmax; readout orthogonal, its bias 0;
* recurrent weights: identity in the cell candidate's block, the gates row-orthonormal; input
  weights one random row of norm 1; forget bias 1 (script); h0 and c0 learned, from 0;
* RMSProp, learning rate 1e-3, 0.9 (the paper; the script has decay 0.5: --config.optim.decay=0.5),
  gradients clipped to global norm 1 first, batches of 100;
* BN-LSTM: scale (gamma) 0.1, eps 1e-5, statistics for each step, scale and bias shared over time,
  no bias in x and h (the layer's own serves), one in the cell; running averages keep 0.99;
* the baseline keeps that cell bias, so the two differ by the normalization alone;
* the best validation accuracy with batch statistics picks the parameters; test numbers are given
  with population statistics, estimated again over the training set.

Every variant has the same keys but for its norms; `--config.gamma=0.3` sets the initial scale of
all norms of a variant at once. The learning rate, gamma and hidden size that the authors searched:
{1e-2, 1e-3, 1e-4}, {.1, .3, .5, .7, 1}, {100, 200, 400}.
"""

from __future__ import annotations

import difflib
from typing import Any

import ml_collections

from experiments.config.defaults import default, timesteps

# Variant: its norms by place, and gamma's start (None: there is no scale to set).
# "per_step", "shared" and "once" are one batch or layer norm each, written out by `norm`.
VARIANTS: dict[str, tuple[dict[str, str], float | None]] = {
    "lstm": ({}, None),
    "bn_lstm": ({"norm_x": "per_step", "norm_h": "per_step", "norm_c": "per_step"}, 0.1),
    # Statistics shared over time: the ablation that the paper says fails.
    "bn_shared": ({"norm_x": "shared", "norm_h": "shared", "norm_c": "shared"}, 0.1),
    # One norm on the sum of both terms (a flag of the authors' script).
    "bn_sum": ({"norm_sum": "per_step", "norm_c": "per_step"}, 0.1),
    # Vertical only (Laurent et al. 2015, whose gamma is 1), horizontal only.
    "bn_x": ({"norm_x": "per_step"}, 1.0),
    "bn_h": ({"norm_h": "per_step"}, 0.1),
    # Layer norm in the same places (Ba et al. 2016, gamma 1). With one input per step the norm of
    # W_x x_t nearly forgets the size of x_t: a known weakness of this task, kept as published.
    "ln_lstm": ({"norm_x": "layer", "norm_h": "layer", "norm_c": "layer"}, 1.0),
}


def norm(kind: str, place: str, gamma: Any, steps: int) -> dict[str, Any]:
    """One norm of a variant; but for the cell's, a bias would repeat the layer's own."""
    common = {"eps": 1e-5, "use_bias": place == "norm_c", "scale_init": gamma}
    if kind == "layer":
        return {"name": "layer_norm", **common}
    lift = {"lift": kind, "max_steps": steps} if kind == "per_step" else {"lift": kind}
    return {"name": "batch_norm", **lift, "decay": 0.99, **common}


def sequential_images(dataset: str, variant: str) -> ml_collections.ConfigDict:
    """The config of a variant on a data set, with the paper's protocol."""
    if variant not in VARIANTS:
        close = difflib.get_close_matches(variant, VARIANTS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no variant {variant!r}; variants: {', '.join(VARIANTS)}.{hint}")
    places, gamma = VARIANTS[variant]
    config = default()
    config.name = variant
    config.dataset = dataset
    config.model.update(
        kernel_init="orthogonal_joint",
        recurrent_init="identity",
        forget_bias=1.0,
        learn_carry=True,
        h0_noise=0.0,
    )
    if gamma is not None:
        config.gamma = gamma
    for place, kind in places.items():
        options = norm(kind, place, None, timesteps(config))
        config.model[place] = ml_collections.ConfigDict(options)
        config.model[place].scale_init = config.get_ref("gamma")
    if "norm_c" not in places:
        config.model.norm_c = ml_collections.ConfigDict({"name": "identity", "use_bias": True})
    return config
