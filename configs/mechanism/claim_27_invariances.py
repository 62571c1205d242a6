"""Measures what changes when weights and data are rescaled and recentred, by method.

The table, with cosine norm's row from the equation of its paper:

                     weights: all  vector  recentred | data: all  recentred  one case
batch norm           yes  yes     no              yes   yes        no
weight norm          yes  yes     no              no    no         no
layer norm           yes  no      yes             yes   no         yes
cosine norm          yes  yes     no              yes   no         yes

"One case" is each image times its own number. A yes allows 1 % for eps = 1e-5, a no requires more
than 5 %. 25 measurements on 100 MNIST images of 14 x 14, 64 units.
"""

from __future__ import annotations

import jax
from experiments.ledger.rules import Claim, contrast

import normjax
from configs.mechanism import _nets
from normjax import analysis

ARMS = ("bn", "wn", "ln", "cosine")

CLAIM = Claim(
    number=27,
    statement="The invariances of batch, weight, layer and cosine norm to scale and shift of "
    "weights and data are those of the table, and weights times s have a gradient over s",
    source="Ba, Kiros, Hinton 2016, table 1; Luo et al. 2017",
    expect="every yes below 1 %, every no above 5 %",
    arms=(*ARMS, "none"),
    rules=(
        *(contrast(f"minus change at a yes, {a}", (-1.0, a, "yes"), by=-0.01) for a in ARMS),
        *(contrast(f"change at a no, {a}", (1.0, a, "no"), by=0.05) for a in ARMS),
        *(contrast(f"minus gradient error, {a}", (-1.0, a, "gradient"), by=-0.01) for a in ARMS),
        contrast("change at a no, none", (1.0, "none", "no"), by=0.05),
    ),
    minutes=1,
)


def measure(arm, seed):
    """The largest change where the table says yes, of output and gradient; the smallest at a no."""
    rows = ("weight_rescale", "weight_vector_rescale", "weight_recentre")
    rows += ("data_rescale", "feature_shift", "sample_rescale")
    table = {"bn": "yynyyn", "wn": "yynnnn", "ln": "ynyyny", "cosine": "yynyny", "none": "nnnnnn"}
    cosine = normjax.cosine_dense(64)
    methods = {
        "bn": normjax.batch_norm(),
        "wn": normjax.weight_norm(),
        "ln": normjax.layer_norm(),
        "cosine": lambda x, w: cosine.apply({"kernel": w}, (), x, stats="batch")[0],
        "none": normjax.identity(),
    }
    pixels, _ = _nets.batch(seed, 100)
    w = jax.random.normal(jax.random.key(seed), (pixels.shape[1], 64)) / pixels.shape[1] ** 0.5
    report = analysis.invariance(methods[arm], pixels, w)
    changes = {name: getattr(report, name) for name in rows}
    yes = [changes[name] for name, word in zip(rows, table[arm], strict=True) if word == "y"]
    no = [changes[name] for name, word in zip(rows, table[arm], strict=True) if word == "n"]
    metrics = {f"output.{name}": float(change.output) for name, change in changes.items()}
    metrics["no"] = min(float(change.output) for change in no)
    metrics["weight_gradient_ratio"] = float(report.weight_rescale.ratio)
    if yes:
        metrics["yes"] = max(float(change.output) for change in yes)
        metrics["gradient"] = max(float(change.gradient) for change in yes)
    return metrics
