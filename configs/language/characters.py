"""Character language models on a folder of text: transformers and linear recurrent units.

Claim:     none; it is a start for questions about where and which norms stand.
Numbers:   none.
Cost:      2,000 updates of 32 x 128 characters; on two CPU cores that had other work too about
           1.3 s each for a transformer, 0.9 s for linear recurrent units.
Command:   python -m experiments.train --config=configs/language/characters.py:pre_ln \
               --config.data.text=FOLDER --workdir=runs/characters/pre_ln

Variants: a place and a norm, such as pre_ln, post_ln, sandwich_ln, pre_rms, pre_dyt, pre_bn, pre_qk
(RMSNorm with QK-norm); lru_ln, lru_bn, lru_post_ln. AdamW, rate 1e-3, 100 steps of warm-up and a
cosine. FOLDER is any folder of text files, or tinyshakespeare where NORMJAX_DATA_DIR has it.
"""

import ml_collections

from experiments.config.defaults import default

NORMS = {
    "ln": {"name": "layer_norm"},
    "rms": {"name": "rms_norm"},
    "dyt": {"name": "dynamic_tanh"},
    "bn": {"name": "batch_norm", "decay": 0.99},
    "none": {"name": "none"},
}
NORMS["qk"] = NORMS["rms"]
PLACES = ("pre", "post", "sandwich", "lru", "lru_post")
VARIANTS = tuple(f"{place}_{norm}" for place in PLACES for norm in NORMS)


def get_config(variant: str = "pre_ln"):
    place, _, kind = variant.rpartition("_")
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; variants: {', '.join(VARIANTS)}.")
    config = default()
    config.name = variant
    config.task, config.dataset = "language", "text"
    config.data.text, config.data.length = "tinyshakespeare", 128
    config.batch_size, config.eval_batch_size = 32, 32
    config.steps, config.select = 2000, "loss"
    config.log_every, config.eval_every, config.checkpoint_every = 50, 200, 200
    config.optim.update(name="adamw", learning_rate=1e-3, weight_decay=0.1, b2=0.99)
    config.optim.update(schedule="cosine", warmup=100)
    if place.startswith("lru"):
        model = {"arch": "lru", "width": 128, "states": 128, "depth": 4, "norm": NORMS[kind]}
        model["position"] = "post" if place == "lru_post" else "pre"
    else:
        model = {"arch": "transformer", "width": 128, "depth": 4, "heads": 4, "norm": NORMS[kind]}
        model["position"] = place
        model["norm_qk"] = NORMS["rms" if kind == "qk" else "none"]
    config.model = ml_collections.ConfigDict(model)
    config.lock()
    return config
