"""Splits on the disk, read in the background: the same batches, the same numbers, exact resume."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.config import defaults, validate
from experiments.data import batches, datasets, splits
from experiments.runtime import run, together
from experiments.usage import UsageError
from tests._support import processes
from tests._support import tfds_sets as sets
from tests.experiments.test_named_sets import own_config


class Counted:
    """Examples that say which numbers were asked for."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def read(self, numbers):
        numbers = np.asarray(numbers)
        return splits.Split(numbers[:, None].astype(np.float32), numbers % 3)


@pytest.mark.parametrize("shuffle", ["epoch", "once"])
def test_a_stream_has_the_batches_of_the_indices(shuffle):
    split = splits.Streamed(Counted(50), start=5, stop=45)
    stream = batches.training(split, 8, 3, shuffle)
    order = batches.batches(40, 8, 3, shuffle)
    for _ in range(12):  # more than two epochs
        np.testing.assert_array_equal(next(stream).pixels[:, 0], next(order) + 5)
    assert stream.get_state() == order.get_state()
    again = batches.training(split, 8, 3, shuffle)
    again.set_state(order.get_state())
    np.testing.assert_array_equal(next(again).pixels[:, 0], next(order) + 5)


def test_several_steps_of_a_stream_are_one_split_with_indices():
    split = splits.Streamed(Counted(30))
    rows, index = batches.next_rows(split, batches.training(split, 4, 0), 3)
    assert index.tolist() == np.arange(12).reshape(3, 4).tolist() and len(rows.labels) == 12
    whole = Counted(30).read(np.arange(30))
    same, wanted = batches.next_rows(whole, batches.training(whole, 4, 0), 3)
    assert same is whole
    np.testing.assert_array_equal(rows.pixels[index, 0], wanted)


@pytest.fixture
def root(tmp_path):
    sets.write_set(tmp_path, {"train": sets.images(70), "test": sets.images(33, seed=1)}, shards=2)
    return tmp_path


@pytest.mark.slow
def test_a_set_on_the_disk_trains_to_the_same_numbers(root):
    """Batch norm, padded evaluation, two steps a call; and continued in memory, to the bit."""
    keys = {"variant": "bn_mlp", "steps_per_call": 2, "data.augment": "flip,crop:1"}
    whole = run.train(own_config(root, **keys), root / "memory")
    streamed = own_config(root, **{**keys, "data.memory": 0.0})
    dataset = datasets.load_config_data(validate.check(streamed))
    assert isinstance(dataset.train, splits.Streamed) and isinstance(dataset.test, splits.Streamed)
    other = run.train(streamed, root / "disk")
    assert other["test"] == whole["test"] and other["valid"] == whole["valid"]
    assert processes.rows(root / "disk") == processes.rows(root / "memory")
    run.train(own_config(root, **{**keys, "steps": 6, "data.memory": 0.0}), root / "half")
    run.train(own_config(root, **keys), root / "half")
    processes.compare(root / "half", root / "memory")


@pytest.mark.slow
def test_processes_that_read_change_no_number(root):
    keys = {"variant": "bn_mlp", "data.memory": 0.0}
    run.train(own_config(root, **keys), root / "thread")
    run.train(own_config(root, **keys, **{"data.workers": 2}), root / "workers")
    processes.compare(root / "workers", root / "thread")


def test_sizes_of_a_split_on_the_disk_are_limited_without_reading(root):
    options = {"layout": "images", "memory": 0.0, "train_size": 10}
    train = datasets.load("patches", data_dir=str(root), options=options).train
    assert splits.size(train) == 10
    whole = datasets.load("patches", data_dir=str(root), options={"layout": "images"}).train
    jax.tree.map(
        np.testing.assert_array_equal,
        splits.take(train, np.array([9, 2])),
        splits.take(whole, np.array([9, 2])),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draw": 1}, "config.data.draw needs a data set in memory"),
        ({"shift": 1}, "config.data.shift and contrast needs a data set in memory"),
        ({"train_size": 64}, "the train split of patches has 63 examples"),
    ],
)
def test_what_wants_all_examples_at_once_is_refused(root, options, message):
    with pytest.raises(UsageError, match=message):
        datasets.load("patches", data_dir=str(root), options={"memory": 0.0, **options})


def test_runs_side_by_side_want_their_data_in_memory(root):
    config = own_config(root, **{"data.memory": 0.0})
    with pytest.raises(UsageError, match=r"config\.data\.memory, .* write --together=1"):
        together.train_together([config, {**config.to_dict(), "seed": 1}], [root / "a", root / "b"])
    assert not (root / "a").exists() or not any((root / "a").iterdir())


def test_a_record_that_is_damaged_on_the_disk_is_told_first(root):
    (shard,) = (root / "patches" / "1.0.0").glob("*-train.*-00001-of-00002")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UsageError, match=r"is damaged"):
        run.train(own_config(root, **{"data.memory": 0.0}), root / "run")
    assert not (root / "run").exists()


def test_where_the_data_are_is_free_to_change():
    config = defaults.default().to_dict()
    other = {**config, "data": {**config["data"], "memory": 0.0, "workers": 3}}
    assert not defaults.differences(config, other)
    older = {**config, "data": {k: v for k, v in config["data"].items() if k != "augment"}}
    assert not defaults.differences(older, config)
    (line,) = defaults.differences(older, {**config, "data": {**config["data"], "augment": "flip"}})
    assert "config.data.augment: '' there, 'flip' asked for" in line


@pytest.mark.slow
def test_a_worker_ends_with_a_run_that_is_killed(tmp_path):
    """It would hold the pipes of the run open, and its memory."""
    script = tmp_path / "reads.py"
    script.write_text(
        "import time\n"
        "from experiments.data import batches, splits\n"
        "from tests.experiments.test_streams import Counted\n"
        "if __name__ == '__main__':\n"
        "    next(batches.training(splits.Streamed(Counted(50), 1), 4, 0))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = str(pathlib.Path(__file__).parents[2])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root}, **pipes
    )
    assert child.stdout.readline() == "ready\n"
    child.kill()
    child.communicate(timeout=60)
