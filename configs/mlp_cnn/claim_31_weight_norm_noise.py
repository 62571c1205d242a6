"""Trains an MLP with weight norm at large learning rates and in small batches.

In the source the growth of |v| makes training robust to the learning rate, and there is no noise
from batches. Rate 3 at batch 128, rate 0.3 at batch 4.

The permutation-invariant MLP; rates are the question, so none is tuned. Recurrent networks, which
the source names too, are not tried here. At rate 3 both arms ended near chance, so that rule says
only that weight norm did not rescue it.
"""

from experiments.ledger.rules import Claim, more

from configs.mlp_cnn import _protocol

ARMS = {
    "none_rate_3": (128, 3.0, {}),
    "wn_rate_3": (128, 3.0, {"weight": {"name": "weight_norm"}}),
    "none_batch_4": (4, 0.3, {}),
    "wn_batch_4": (4, 0.3, {"weight": {"name": "weight_norm"}}),
}

CLAIM = Claim(
    number=31,
    statement="Weight norm tolerates larger learning rates, and the noisier gradients of small "
    "batches, than plain weights do",
    source="Salimans, Kingma 2016, sections 2.1 and 5",
    expect="over 5 points of test accuracy ahead of none, at a rate where none suffers",
    arms=tuple(ARMS),
    rules=(
        more("wn_rate_3", "none_rate_3", "test.population.accuracy", by=0.05),
        more("wn_batch_4", "none_batch_4", "test.population.accuracy", by=0.05),
    ),
    minutes=2,
    scale="MLP of 2 x 100 units, MNIST 14 x 14, 5,000 training images; no recurrent network",
    twin="configs/mlp_cnn/full.py:31.ARM",
)


def get_config(arm):
    """Batch, rate and weights of an arm."""
    size, rate, model = ARMS[arm]
    config = _protocol.mlp(arm, steps=300 if size == 128 else 1000, **model)
    config.batch_size = size
    config.optim.learning_rate = rate
    return config
