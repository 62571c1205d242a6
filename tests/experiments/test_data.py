from __future__ import annotations

import time

import grain
import numpy as np
import pytest

from experiments import prepare
from experiments.config.defaults import TRAIN_SIZE
from experiments.data import batches, datasets, images, locate, splits, tfds_records
from experiments.usage import UsageError
from tests._support.few import few


def test_digits_are_split_once_and_for_all():
    sets = datasets.load("digits")
    sizes = [split.pixels.shape for split in (sets.train, sets.valid, sets.test)]
    assert sizes == [(1437, 64), (180, 64), (180, 64)]
    assert sets.train.pixels.max() == sets.white == 16.0
    assert TRAIN_SIZE["digits"] == 1437
    # frozen: a published number belongs to this very split
    assert sets.test.labels[:12].tolist() == GOLDEN
    assert np.unique(np.concatenate([s.labels for s in sets[:3]])).tolist() == list(range(10))


GOLDEN = [8, 6, 1, 7, 4, 1, 4, 7, 0, 1, 5, 6]


def test_permute_is_a_permutation_and_sample_is_not():
    permuted, sampled = images.pixel_order("permute", 0, 784), images.pixel_order("sample", 0, 784)
    assert sorted(permuted) == list(range(784))
    assert 450 < len(set(sampled)) < 540  # 784 (1 - 1/e) = 496 on average
    assert (images.pixel_order("permute", 1, 784) != permuted).any()
    np.testing.assert_array_equal(images.pixel_order("permute", 0, 784), permuted)


def test_images_are_moved_and_dimmed_by_amounts_that_never_change():
    usual, moved = (datasets.load("digits", options={"shift": n}).test.pixels for n in (0, 2))
    again = datasets.load("digits", options={"shift": 2}).test.pixels
    np.testing.assert_array_equal(moved, again)
    usual, moved = usual.reshape(-1, 8, 8), moved.reshape(-1, 8, 8)
    padded = np.pad(usual, ((0, 0), (2, 2), (2, 2)))
    places = [(i, j) for i in range(5) for j in range(5)]
    hits = [(moved == padded[:, i : i + 8, j : j + 8]).all((1, 2)) for i, j in places]
    assert np.any(hits, 0).all()  # each is its image at one of the 25 places
    assert (moved != usual).any((1, 2)).mean() > 0.9 and np.mean(hits, 1).max() < 0.15

    dim = datasets.load("digits", options={"contrast": 4.0}).test.pixels.reshape(-1, 8, 8)
    ratio = dim.std((1, 2)) / usual.std((1, 2))
    assert 0.2 < ratio.min() < 0.3 and 0.9 < ratio.max() < 1.05
    np.testing.assert_allclose(dim.mean((1, 2)), usual.mean((1, 2)), atol=0.51)  # to whole bytes


def test_every_epoch_has_all_examples_in_a_new_order():
    iterator = batches.batches(12, 4, seed=0)
    first, second = (np.concatenate([next(iterator) for _ in range(3)]) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12))
    assert (first != second).any()


def test_batches_dealt_once_come_again_in_a_new_order():
    iterator = batches.batches(50, 4, 0, "once")
    epochs = [np.stack([next(iterator) for _ in range(12)]) for _ in range(2)]
    first, second = ([tuple(rows) for rows in epoch.tolist()] for epoch in epochs)
    assert sorted(first) == sorted(second) and first != second
    assert len(set(epochs[0].ravel())) == 48  # two examples fill no batch
    assert tuple(next(batches.batches(50, 4, 1, "once"))) not in first


@pytest.mark.parametrize("small", [0, 100])
@pytest.mark.parametrize(
    "size, rows, seed",
    few({"37": (37, 5, 3), "all at once": (7, 7, 2**32 - 1), "5": (5, 4, 9)}, "37"),
)
def test_the_order_is_that_of_grains_own_pipeline(size, rows, seed, small, monkeypatch):
    """To the bit, whether an epoch's order is kept or asked for index by index."""
    monkeypatch.setattr(batches, "SMALL", small)
    shuffled = grain.MapDataset.range(size).shuffle(seed=seed)
    epochs = shuffled.repeat().batch(rows, drop_remainder=True)
    once = grain.MapDataset.source(list(shuffled.batch(rows, drop_remainder=True)))
    for shuffle, pipeline in (("epoch", epochs), ("once", once.shuffle(seed=seed).repeat())):
        iterator = batches.batches(size, rows, seed, shuffle)
        for number in range(20):
            np.testing.assert_array_equal(next(iterator), pipeline[number], strict=True)
        assert iterator.get_state() == {"next_index": 20}


@pytest.mark.parametrize("shuffle", ["epoch", "once"])
def test_the_iterator_goes_on_where_it_was(shuffle):
    iterator, again = (batches.batches(10, 4, 1, shuffle) for _ in range(2))
    for _ in range(5):
        next(iterator)
    again.set_state(iterator.get_state())
    np.testing.assert_array_equal(next(iterator), next(again))


@pytest.mark.parametrize(("size", "batch_size"), [(180, 100), (1437, 100), (10, 20), (7, 1)])
def test_evaluation_counts_every_example_once_in_even_batches(size, batch_size):
    index, weight = batches.evaluation_batches(size, batch_size)
    assert sorted(index[weight > 0]) == list(range(size))
    assert weight.sum() == size and index.shape[1] <= batch_size
    assert (weight.sum(axis=1) > index.shape[1] / 2).all()


def test_a_missing_set_is_told_at_once(tmp_path):
    began = time.perf_counter()
    with pytest.raises(UsageError) as error:
        datasets.load("pmnist", data_dir=str(tmp_path))
    assert time.perf_counter() - began < 1.0
    assert str(tmp_path) in str(error.value)
    assert f"python -m experiments.prepare mnist --data_dir={tmp_path}" in str(error.value)


def test_a_set_in_another_format_is_told(tmp_path):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(UsageError, match="stored as tfrecord, which needs TensorFlow to read"):
        locate.find("mnist", str(tmp_path))


def test_the_folder_is_looked_for_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/tfds")
    monkeypatch.delenv("NORMJAX_DATA_DIR", raising=False)
    assert str(locate.root_folder()) == "/tfds"
    monkeypatch.setenv("NORMJAX_DATA_DIR", str(tmp_path))
    assert locate.root_folder() == tmp_path
    (tmp_path / "tensorflow_datasets").mkdir()
    assert locate.root_folder() == tmp_path / "tensorflow_datasets"
    assert str(locate.root_folder("/asked")) == "/asked"
    monkeypatch.delenv("NORMJAX_DATA_DIR")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert str(locate.root_folder()).endswith("tensorflow_datasets")


def test_prepare_says_what_it_needs(tmp_path, monkeypatch):
    assert "nothing to do" in prepare.prepare("digits")
    with pytest.raises(
        UsageError, match=r"known: digits, mnist, pmnist, fashion_mnist.*Did you mean 'mnist'"
    ):
        prepare.prepare("mnits")
    with pytest.raises(UsageError, match=r"NAME or NAME/CONFIG"):
        prepare.prepare("../x")
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"preparing 'cifar10' needs tensorflow"):
        prepare.prepare("cifar10", str(tmp_path))
    with pytest.raises(UsageError, match=r"needs tensorflow.*pip install --group prepare"):
        prepare.prepare("mnist", str(tmp_path))


@pytest.mark.slow
def test_mnist_and_its_permutation(data_dir):
    if not list(data_dir.glob("**/mnist/*/dataset_info.json")):
        pytest.skip(f"mnist is not in {data_dir}")
    plain = datasets.load("mnist")
    sizes = [split.pixels.shape for split in plain[:3]]
    assert sizes == [(50_000, 784), (10_000, 784), (10_000, 784)]
    assert plain.train.pixels.max() == 255
    assert 0.1305 < plain.train.pixels.mean() / 255 < 0.1309  # 0.1307 is MNIST's mean
    assert np.bincount(plain.test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip


def test_records_that_were_cut_short_are_told(tmp_path):
    from array_record.python import array_record_module

    file = tmp_path / "mnist-test.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for i in range(300):
        writer.write(bytes([i % 256]) * 1000)
    writer.close()
    info = {"splits": [{"name": "test", "numBytes": "300000"}]}
    tfds_records._check_split(tmp_path, info, "test", 300)
    whole = file.read_bytes()
    for left in (len(whole) // 2, 100, 0):
        file.write_bytes(whole[:left])
        with pytest.raises(UsageError, match=r"is damaged \(.*prepare it again"):
            tfds_records._check_split(tmp_path, info, "test", 300)


@pytest.mark.parametrize("side", [14, 7, 4, 2])
def test_a_small_image_has_the_means_of_blocks(side):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 28 * 28), dtype=np.uint8)
    pixels[:2] = [[0], [255]]
    made = images.shrink(splits.Split(pixels, np.zeros(50, np.uint8)), (28, 28, 1), side).pixels
    blocks = pixels.reshape(50, side, 28 // side, side, 28 // side).astype(np.float64)
    np.testing.assert_array_equal(made[..., 0], np.rint(blocks.mean((2, 4))))
