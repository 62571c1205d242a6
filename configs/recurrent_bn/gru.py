"""GRUs with batch or layer norm in the places of their own, on scikit-learn's digits by pixel.

Paper:     Ba, Kiros, Hinton, "Layer Normalization", 2016, supplement, equations 26 to 28; with
           batch norm as in Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017.
Numbers:   none published.
Command:   python -m experiments.train --config=configs/recurrent_bn/gru.py:bn_gru \
               --workdir=runs/digits/bn_gru

Variants: gru, bn_gru, ln_gru: norms of the gates' two terms (norm_x, norm_h) and of the candidate's
(norm_xn, norm_hn), as `normjax.recurrent.bn_gru` and `ln_gru` have them; bn_gru_x, the input terms
alone; bn_gru_2, two layers with a norm between them (norm_between) too. A place of your own:
--config.model.norm_hn.name=none. The recipe is that of `digits.py`.
"""

import ml_collections

from experiments.config.defaults import default, timesteps

TERMS = ("norm_x", "norm_h", "norm_xn", "norm_hn")
VARIANTS = ("gru", "bn_gru", "ln_gru", "bn_gru_x", "bn_gru_2")


def get_config(variant: str = "bn_gru"):
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; variants: {', '.join(VARIANTS)}.")
    config = default()
    config.name = variant
    model = {"cell": "gru", "hidden": 100, "head_init": "orthogonal"}
    model |= {"kernel_init": "orthogonal_joint", "learn_carry": True}
    steps = {"lift": "per_step", "max_steps": timesteps(config), "decay": 0.99}
    bn = {"name": "batch_norm", "scale_init": 0.1, "use_bias": False, "eps": 1e-5, **steps}
    norm = {"name": "layer_norm", "eps": 1e-5} if variant == "ln_gru" else bn
    if variant != "gru":
        places = ("norm_x", "norm_xn") if variant == "bn_gru_x" else TERMS
        model |= {place: dict(norm) for place in places}
    if variant == "bn_gru_2":
        model |= {"depth": 2, "norm_between": {"name": "batch_norm", **steps}}
    config.model = ml_collections.ConfigDict(model)
    config.lock()
    return config
