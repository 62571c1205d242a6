"""Small character transformers on Shakespeare, for the claims about their norms.

The recipe of `characters.py`: AdamW with b2 of 0.99 and weight decay 0.1, clipping at 1, a cosine
to 0; 64 features in 4 heads, 2,000 updates of 32 segments of 64 characters. Warm-up takes 5 % of
the updates. Each replicate draws 12,000 of the 15,685 training segments. Embeddings start with a
deviation of 1, since dynamic tanh and erf see them as they are, and their authors enlarge them in
language models.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs.language.characters import NORMS
from experiments.config.defaults import default
from experiments.ledger.claims import Scale

LOSS = "test.population.loss"
STEPS = 2000
DEPTHS = {"blocks2": 2, "blocks6": 6, "blocks12": 12}
SECONDS = 42.0  # of a run on two cores, for each block
ALL = NORMS | {"derf": {"name": "dynamic_erf"}}
QK = {"name": "layer_norm", "use_bias": False}  # as in ViT-22B


def scales(runs: int, source: str) -> tuple[Scale, ...]:
    """Return three depths for so many runs a replicate, the last for a device."""
    found = []
    for name, depth in DEPTHS.items():
        text = (
            f"Shakespeare by characters, {depth} blocks of 64 features, {STEPS:,} updates of 32 "
            f"segments of 64 (the source: {source})"
        )
        minutes = float(f"{runs * depth * SECONDS / 60:.2g}")
        device = "gpu" if depth > 6 else "cpu"
        count = 16 if depth == 2 else 8
        found.append(Scale(name, depth, text, replicates=count, minutes=minutes, device=device))
    return tuple(found)


def transformer(
    arm: str, scale: str, norm: str, *, position: str = "pre", qk: bool = False, warm: bool = True
) -> Any:
    """The config of a transformer at a depth; `qk`: queries and keys are normalized too."""
    config = default()
    config.name = arm
    config.task, config.dataset = "language", "text"
    config.data.update(text="tinyshakespeare", length=64, train_size=12_000)
    config.batch_size, config.eval_batch_size = 32, 64
    config.steps, config.select = STEPS, "loss"
    config.log_every = config.eval_every = STEPS // 20
    config.checkpoint_every = STEPS
    config.optim.update(name="adamw", learning_rate=3e-3, weight_decay=0.1, b2=0.99)
    config.optim.update(schedule="cosine", warmup=STEPS // 20 if warm else 0)
    model = {"arch": "transformer", "width": 64, "heads": 4, "depth": DEPTHS[scale]}
    model |= {"embed_std": 1.0, "position": position}
    model |= {"norm": ALL[norm], "norm_qk": QK if qk else ALL["none"]}
    config.model = ml_collections.ConfigDict(model)
    return config
