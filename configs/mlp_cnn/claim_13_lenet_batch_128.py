"""Trains LeNet with tanh at batch 128 under batch norm, layer norm and none.

The source's mnist.ipynb has LeNet-5 with norms after the tanh of the two dense layers, SGD at rate
0.01, batch 128, 10 epochs, one seed, and training metrics alone: training loss after 10 epochs none
.102, BN .082, LN .097; after one .838, .486, .593. Here inputs are in [0, 1] (the source: 0 to
255), the rate is tuned for each arm, and speed is the mean of the training loss over the run
(`area.train`). All three arms chose 0.3, the largest rate of the grid: the best of each may be
higher.
"""

from experiments.ledger.rules import Claim, less

from configs.mlp_cnn import _protocol

CLAIM = Claim(
    number=13,
    statement="LeNet with tanh, batch 128: batch norm trains faster than layer norm, and layer "
    "norm faster than none",
    source="senliuy, keras_layerNorm_mlp_lstm",
    expect="mean training loss BN < LN < none",
    arms=("none", "bn", "ln"),
    rules=(less("bn", "ln", "area.train"), less("ln", "none", "area.train")),
    rates=(0.03, 0.1, 0.3),
    tune="area.train",
    minutes=3,
    scale=_protocol.SCALE,
    twin="configs/mlp_cnn/full.py:13.ARM",
)


def get_config(arm):
    """Norms after the activation, in the dense layers."""
    norm = _protocol.NORMS[arm]
    return _protocol.lenet(arm, norm_dense=norm, order=("act", "norm"), steps=400)
