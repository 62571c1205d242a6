"""Trains LeNet with tanh at batch 8 under batch norm, layer norm and none.

As claim 13, but with batch 8 and 5 epochs in the source's mnist.ipynb: training loss none .054, BN
.122, LN .049. The source has training metrics alone, which batch norm computes with noisy
statistics; whether test accuracy follows is tested here too.
"""

from experiments.ledger.rules import Claim, less, more

from configs.mlp_cnn import _protocol

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
    twin="configs/mlp_cnn/full.py:14.ARM",
)


def get_config(arm):
    """Norms after the activation, in the dense layers."""
    norm = _protocol.NORMS[arm]
    config = _protocol.lenet(arm, norm_dense=norm, order=("act", "norm"), steps=1000)
    config.batch_size = 8
    return config
