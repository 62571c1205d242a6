"""Trains an MLP on one example at a time under batch norm, layer norm and none.

Batch norm of one example outputs its bias whatever the input. The permutation-invariant MLP (after
a convolution, batch norm of one example still has its places). Test accuracy is with running
statistics.
"""

from experiments.ledger.rules import Claim, contrast

from configs.mlp_cnn import _protocol

ACCURACY = "test.running.accuracy"

CLAIM = Claim(
    number=21,
    statement="At batch size 1 a network with layer norm learns, and one with batch norm does not",
    source="Ba, Kiros, Hinton 2016, section 1",
    expect="test accuracy above 70 % with layer norm, below 30 % with batch norm",
    arms=("none", "bn", "ln"),
    rules=(
        contrast(f"ln, {ACCURACY}", (1.0, "ln", ACCURACY), by=0.7),
        contrast(f"minus bn, {ACCURACY}", (-1.0, "bn", ACCURACY), by=-0.3),
    ),
    rates=(0.01, 0.03),
    tune="valid.running.accuracy",
    minutes=2,
    scale="MLP, MNIST 14 x 14, 2,000 examples seen",
    twin="configs/mlp_cnn/full.py:21.ARM",
)


def get_config(arm):
    """Norms before ReLU."""
    config = _protocol.mlp(arm, norm_dense=_protocol.NORMS[arm], steps=2000)
    config.batch_size = 1
    config.steps_per_call = 20
    return config
