"""What the claims of the tutorial's notebook share: the notebook as it was, and LeNet tuned.

senliuy, keras_layerNorm_mlp_lstm, mnist.ipynb: LeNet-5 with norms after the tanh of its two dense
layers, bytes 0 to 255 as inputs, SGD at 0.01, Keras's eps 1e-3 and decay 0.99, 60,000 images (here
50,000, the rest validates), one seed, training metrics alone. Its initialization was Keras's
Glorot, here LeCun's. `train.loss` is the mean over the last pass, as Keras prints it.
"""

from __future__ import annotations

from typing import Any

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Scale

SOURCE = "senliuy, keras_layerNorm_mlp_lstm, mnist.ipynb"
KERAS = {
    "none": {"name": "none"},
    "bn": {"name": "batch_norm", "decay": 0.99, "eps": 1e-3},
    "ln": {"name": "layer_norm", "eps": 1e-3},
}
DATA = {"mnist5k": (14, 5000), "mnist50k": (14, 50_000), "notebook": (28, 50_000)}


def scales(batch: int, passes: int, minutes: tuple[float, float, float]) -> tuple[Scale, ...]:
    """Return two sizes with tuned rates and inputs in [0, 1], and the notebook's own."""
    end = f", {passes} passes in batches of {batch}"
    small, middle, whole = minutes
    tuned = "training images drawn anew, rates tuned, inputs in [0, 1]"
    return (
        Scale("mnist5k", 1, f"MNIST 14 x 14, 5,000 {tuned}{end}", 32, small),
        Scale("mnist50k", 10, f"MNIST 14 x 14, 50,000 {tuned}{end}", 8, middle),
        Scale(
            "notebook",
            39,
            f"the notebook as it was: MNIST 28 x 28, bytes 0 to 255, SGD at 0.01{end}; 50,000 "
            "training images (the source: 60,000)",
            replicates=16,
            minutes=whole,
            of_source=True,
            rates=(0.01,),
        ),
    )


def lenet(arm: str, scale: str, batch: int, passes: int) -> Any:
    """Norms after the tanh of the dense layers; a row of metrics for each pass."""
    side, count = DATA[scale]
    notebook = scale == "notebook"
    config = _protocol.lenet(
        arm,
        side=side,
        train_size=count,
        valid_size=5000,
        rows=passes,
        steps=passes * (count // batch),
        norm_dense=(KERAS if notebook else _protocol.NORMS)[arm],
        order=("act", "norm"),
        raw=notebook,
    )
    config.batch_size = batch
    if batch == 8:
        config.steps_per_call = 25
    return config
