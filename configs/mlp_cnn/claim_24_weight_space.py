"""Trains an MLP with norms of its weights.

Batch norm is shown beside them. The cosine layers have a learned gain and bias, starting at 1 and
0, since a network of numbers within [-1, 1] needs it; gains of the others as initialized. On seed 0
cosine norm and data-dependent initialization chose 0.1, the smallest rate of the grid, and the
others 1, the largest: their best may lie outside.
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.rules import Claim, less

WN = {"weight": {"name": "weight_norm"}}
ARMS = {
    "none": {},
    "wn": WN,
    "wn_init": {**WN, "data_init": True},
    "wn_mean_only": {**WN, "norm_dense": {"name": "mean_only_batch_norm"}, "bias": False},
    "cosine": {"weight": {"name": "cosine_dense", "use_scale": True}},
    "bn": {"norm_dense": _protocol.NORMS["bn"]},
}

CLAIM = Claim(
    number=24,
    statement="Weight norm, weight norm with data-dependent initialization or mean-only batch "
    "norm, and cosine norm each train the permutation-invariant MLP faster than plain weights",
    source="Salimans, Kingma 2016; Luo et al. 2017",
    expect="lower mean training loss than none for each",
    arms=tuple(ARMS),
    rules=tuple(
        less(arm, "none", "area.train") for arm in ("wn", "wn_init", "wn_mean_only", "cosine")
    ),
    rates=(0.1, 0.3, 1.0),
    tune="area.train",
    minutes=3,
    scale="MLP of 2 x 100 units, MNIST 14 x 14, 5,000 training images; the papers: CIFAR-10, "
    "MNIST with 1,000 units",
    twin="configs/mlp_cnn/full.py:24.ARM",
)


def get_config(arm):
    """Two hidden layers of ReLU."""
    return _protocol.mlp(arm, **ARMS[arm])
