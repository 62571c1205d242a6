"""Weight norm, mean-only batch norm, data-dependent initialization, cosine norm on an MLP.

Paper:     Salimans, Kingma, "Weight Normalization", 2016, sections 2 to 4; Luo et al., "Cosine
           Normalization", 2017.
Claim:     each of them trains faster than plain weights, on the permutation-invariant MLP.
Expected:  lower mean training loss than none for weight norm, weight norm with data-dependent
           initialization, weight norm with mean-only batch norm, and cosine norm.
Twin:      configs/mlp_cnn/full.py:24.ARM
Cost:      6 arms, 8 runs of 300 steps each: about 3 minutes on two CPU cores.
Command:   python -m experiments.claim 24

Batch norm is shown beside them. The cosine layers have a learned gain and bias, starting at 1 and
0, since a network of numbers within [-1, 1] needs it; gain of the others as initialized.
On seed 0 cosine norm and data-dependent initialization took 0.1, the smallest rate of the grid, and
the others 1, the largest: their best may lie outside.
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
)


def get_config(arm):
    """Two hidden layers of ReLU."""
    return _protocol.mlp(arm, **ARMS[arm])
