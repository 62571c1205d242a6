"""The feed-forward claims at the size of their sources: an arm of a claim, with the whole data.

    python -m experiments.train --config=configs/mlp_cnn/full.py:13.bn --workdir=runs/full/13/bn

A variant is CLAIM.ARM, as in the claim's file. What `_protocol.py` made smaller is put back: images
of 28 x 28, all 50,000 for training, LeNet's windows of 5 x 5 and dense layers of 120 and 84 units,
the MLP's layers of 1,000 (Salimans, Kingma 2016), and 20 passes over the data at the batch size of
the arm. The learning rate is the arm's; the sources' grids are in each claim's file.

Cost:      minutes on one GPU, hours on two CPU cores.
"""

from experiments.config.defaults import TRAIN_SIZE
from experiments.ledger import records
from experiments.usage import UsageError

PASSES = 20


def get_config(variant: str = "13.bn"):
    number, _, arm = variant.partition(".")
    known = [n for n, (path, _) in records.files().items() if path.parent.name == "mlp_cnn"]
    if not number.isdigit() or int(number) not in known:
        raise UsageError(f"{variant!r} is no CLAIM.ARM; claims: {', '.join(map(str, known))}.")
    study = records.module(int(number))
    if arm not in study.CLAIM.arms or not hasattr(study, "get_config"):
        raise UsageError(f"claim {number} trains no arm {arm!r}; {', '.join(study.CLAIM.arms)}.")
    config = study.get_config(arm)
    with config.unlocked():
        config.name = f"{number}_{arm}"
        config.data.side = 28
        config.data.train_size = 0
        if config.model.get("arch") == "lenet":
            config.model.update(kernel=5, hidden=120)
        elif config.model.get("arch") == "mlp":
            config.model.hidden = 1000
        steps = PASSES * TRAIN_SIZE[config.dataset] // config.batch_size
        config.steps = steps - steps % 100
        config.log_every = config.eval_every = config.checkpoint_every = config.steps // 20
    return config
