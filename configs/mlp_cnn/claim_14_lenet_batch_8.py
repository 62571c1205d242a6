"""LeNet with tanh at batch 8: whether batch norm slows and layer norm helps.

Paper:     senliuy, keras_layerNorm_mlp_lstm (GitHub), mnist.ipynb, as claim 13 but batch 8, 5
           epochs; training metrics alone, which batch norm takes with noisy statistics.
Claim:     at batch 8 batch norm slows training, layer norm slightly helps.
Expected:  the notebook: training loss after 5 epochs none .054, BN .122, LN .049. Whether test
           accuracy follows is asked here too.
Twin:      configs/mlp_cnn/full.py:14.ARM
Cost:      3 arms, 8 runs of 1,000 steps each: about 3 minutes on two CPU cores.
Command:   python -m experiments.claim 14
"""

from configs.mlp_cnn import _protocol
from experiments.ledger.rules import Claim, less, more

CLAIM = Claim(
    number=14,
    statement="LeNet with tanh, batch 8: batch norm slows training and layer norm slightly helps, "
    "in training loss and in test accuracy",
    source="senliuy, keras_layerNorm_mlp_lstm",
    expect="mean training loss LN < none < BN; test accuracy the other way round",
    arms=("none", "bn", "ln"),
    rules=(
        more("bn", "none", "area.train"),
        less("ln", "none", "area.train"),
        less("bn", "none", "test.population.accuracy"),
        more("ln", "none", "test.population.accuracy"),
    ),
    rates=(0.01, 0.03, 0.1),
    tune="area.train",
    minutes=3,
    scale=_protocol.SCALE,
)


def get_config(arm):
    """Norms after the activation, in the dense layers."""
    norm = _protocol.NORMS[arm]
    config = _protocol.lenet(arm, norm_dense=norm, order=("act", "norm"), steps=1000)
    config.batch_size = 8
    return config
