"""What changes nothing: rescaled and recentred weights and data, by method.

Paper:     Ba, Kiros, Hinton, "Layer Normalization", 2016, section 5.1 and table 1 (batch, weight
           and layer norm); Luo et al., "Cosine Normalization", 2017 (its row follows from its
           equation).
Claim:     the table's yes and no, for the outputs, and 5.2's consequence: a rescaled weight has
           a gradient smaller by as much.
Expected:             weights: all  vector  recentred | data: all  recentred  one case
           batch norm           yes  yes     no              yes   yes        no
           weight norm          yes  yes     no              no    no         no
           layer norm           yes  no      yes             yes   no         yes
           cosine norm          yes  yes     no              yes   no         yes
Cost:      25 measurements on 100 MNIST images of 14 x 14, 64 units: under 1 minute.
Command:   python -m experiments.claim 27

"One case" is each image times its own number. A yes allows 1 % for eps = 1e-5, a no asks for more
than 5 %.
"""

from __future__ import annotations

import jax

import normjax
from configs.mechanism import _nets
from experiments.ledger.rules import Claim, contrast
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
    told = {name: getattr(report, name) for name in rows}
    yes = [told[name] for name, word in zip(rows, table[arm], strict=True) if word == "y"]
    no = [told[name] for name, word in zip(rows, table[arm], strict=True) if word == "n"]
    found = {f"output.{name}": float(change.output) for name, change in told.items()}
    found["no"] = min(float(change.output) for change in no)
    found["weight_gradient_ratio"] = float(report.weight_rescale.ratio)
    if yes:
        found["yes"] = max(float(change.output) for change in yes)
        found["gradient"] = max(float(change.gradient) for change in yes)
    return found
