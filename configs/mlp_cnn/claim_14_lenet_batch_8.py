"""Trains LeNet with tanh at batch 8 under batch norm, layer norm and none.

The source has training metrics alone, which batch norm computes with the noisy statistics of eight
images; test accuracy, which it does not report, is with running averages, as Keras takes them.
"""

from configs.mlp_cnn import _notebook, _protocol
from experiments.ledger.claims import Claim, Group, less, more

BATCH, PASSES = 8, 5


def claim(letter, title, statement, rule, delta, why, published=None):
    return Claim(
        letter=letter,
        title=title,
        statement=f"LeNet with tanh, batches of 8: {statement}",
        rule=rule,
        delta=delta,
        why=why,
        published=published,
        expect="training loss in pass 5: none .0540, batch norm .1222, layer norm .0491; training "
        "accuracy .9836, .9631, .9848 (the notebook's output)",
        controls=(),  # about the speed of training: what the notebook's five passes reach
        change="the notebook with more than one seed, and with a rate tuned for each norm",
        methods=("batch norm", "layer norm"),
    )


GROUP = Group(
    number=14,
    title="LeNet at batch 8: batch norm, layer norm, none",
    topic="batch size",
    source=_notebook.SOURCE,
    axis=_protocol.AXIS,
    scales=_notebook.scales(BATCH, PASSES, (0.8, 7.0, 6.5)),
    arms=("none", "bn", "ln"),
    claims=(
        claim(
            "a",
            "Batch 8: batch norm trains slower than none",
            "batch norm trains slower than no norm: its training loss in the fifth pass is higher",
            more("bn", "none", "train.loss"),
            0.034,
            "half of the source's difference, of one seed",
            0.0682,
        ),
        claim(
            "b",
            "Batch 8: layer norm trains faster than none",
            "layer norm trains faster than no norm: its training loss in the fifth pass is lower",
            less("ln", "none", "train.loss"),
            0.0025,
            "half of the source's difference, of one seed",
            0.0049,
        ),
        claim(
            "c",
            "Batch 8: batch norm tests worse than none",
            "after five passes batch norm has a lower accuracy than no norm",
            less("bn", "none", "test.running.accuracy"),
            0.01,
            "half of the 2.05 points of the source's training accuracy; it has no test accuracy",
        ),
    ),
    rates=(0.01, 0.03, 0.1, 0.3),
)


def get_config(arm, scale="mnist5k"):
    """Norms after the activation, in the dense layers."""
    return _notebook.lenet(arm, scale, BATCH, PASSES)
