"""Trains an MLP with dropout, weight decay or fixed batches, with and without batch norm.

The source drops dropout, makes L2 five times smaller and shuffles the training examples anew for
each pass (1 % better).

The MLP, 2 x 200 units of ReLU, on the first 512 images of Fashion-MNIST, 62 passes in batches of
32 with momentum 0.9, so that there is much to overfit; the last parameters are judged, since
picking the best ones is a regularizer too. Dropout 0.2 of hidden units and L2 1e-3 are the
strengths with the lowest validation loss without a norm for seed 0 at rate 0.1 (of 0.2, 0.5 and
1e-3, 3e-3): what is needed there. "once" deals the batches once and for all, and shuffles their
order. LeNet and this MLP on 1,024 images were tried before, for seed 0 without a norm; LeNet did
not overfit there.
"""

from experiments.ledger.rules import Claim, contrast

from configs.mlp_cnn import _protocol

ACCURACY = "test.population.accuracy"
CHANGES = {
    "plain": {},
    "dropout": {"model.dropout": 0.2},
    "l2": {"optim.l2": 1e-3},
    "once": {"data.shuffle": "once"},
}


def gain(change, more, less):
    """What a change adds under one norm, beyond what it adds under the other."""
    return contrast(
        f"({more}_{change} - {more}_plain) - ({less}_{change} - {less}_plain), {ACCURACY}",
        (1.0, f"{more}_{change}", ACCURACY),
        (-1.0, f"{more}_plain", ACCURACY),
        (-1.0, f"{less}_{change}", ACCURACY),
        (1.0, f"{less}_plain", ACCURACY),
    )


CLAIM = Claim(
    number=20,
    statement="With batch norm less dropout and L2 are needed, and shuffling between epochs "
    "matters more",
    source="Ioffe, Szegedy 2015, section 4.2.1",
    expect="dropout and L2 add less accuracy with batch norm; fixed batches cost more with it",
    arms=tuple(f"{norm}_{change}" for norm in ("none", "bn") for change in CHANGES),
    rules=(
        gain("dropout", "none", "bn"),
        gain("l2", "none", "bn"),
        gain("once", "none", "bn"),
    ),
    rates=(0.01, 0.03),
    tune="valid.population.accuracy",
    minutes=5,
    scale="MLP of 2 x 200 units, Fashion-MNIST 14 x 14, 512 training images",
    twin="configs/mlp_cnn/full.py:20.ARM",
)


def get_config(arm):
    """Batch norm before ReLU, or none."""
    norm, _, change = arm.partition("_")
    options = {"dataset": "fashion_mnist", "steps": 1000, "hidden": 200, "dropout": 0.0}
    config = _protocol.mlp(arm, norm_dense=_protocol.NORMS[norm], **options)
    config.batch_size = 32
    config.steps_per_call = 20
    config.eval_every = config.steps
    config.eval_batch_size = 500
    config.data.train_size = 512
    config.data.valid_size = 2000
    config.optim.momentum = 0.9
    config.update_from_flattened_dict(CHANGES[change])
    return config
