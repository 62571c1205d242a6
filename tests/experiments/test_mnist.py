"""A BN-LSTM and an LSTM on real MNIST, read through `tfds.data_source`, short and small."""

from __future__ import annotations

import math

import pytest

from configs.recurrent_bn import mnist, pmnist
from experiments import train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "variant"), [(mnist, "lstm"), (pmnist, "bn_lstm")], ids=["mnist", "pmnist"]
)
def test_a_short_run_on_real_mnist(task, variant, data_dir, tmp_path):
    config = task.get_config(variant)
    with config.unlocked():
        config.update(steps=12, log_every=4, eval_every=12, checkpoint_every=12, batch_size=50)
        config.model.hidden = 8
        config.data_dir = str(data_dir / "tensorflow_datasets")
        config.data.update(train_size=5000, valid_size=1000, test_size=1000)  # of all that is read
        config.eval_batch_size = 500
        config.population.batch_size = 2500
    final = train.train(config, tmp_path / "run")
    assert final["steps"] == 12 and final["dataset"] == task.__name__.rpartition(".")[2]
    for split in ("valid", "test"):
        for kind in ("population", "batch", "running"):
            scores = final[split][kind]
            assert math.isfinite(scores["loss"]) and 0 < scores["accuracy"] < 1
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 12 // 4 + 1
