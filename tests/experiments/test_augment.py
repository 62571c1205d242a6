"""Augmentation of images by name: what it does, and that a run that was stopped repeats it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from experiments.config import validate
from experiments.data import augment, splits
from experiments.runtime import run
from experiments.tasks import Batch, augmented, cross_entropy
from experiments.usage import UsageError
from tests._support import processes
from tests._support import tfds_sets as sets
from tests.experiments.test_named_sets import own_config

KEY = jax.random.key(0)


def make_batch(count=64, shape=(6, 5, 2)):
    draw = np.random.RandomState(0)
    pixels = draw.randint(1, 256, (count, *shape)).astype(np.uint8)
    return splits.Split(jnp.asarray(pixels), jnp.asarray(draw.randint(0, 4, count)))


def test_flip_mirrors_about_half_of_the_images():
    x = np.asarray(make_batch().pixels)
    y = np.asarray(augment.flip(KEY, x))
    same, mirrored = ((y == other).all((1, 2, 3)) for other in (x, x[:, :, ::-1]))
    assert (same | mirrored).all() and 20 < mirrored.sum() < 44 and y.dtype == np.uint8


def test_crop_moves_each_image_and_fills_with_black():
    x = np.asarray(make_batch().pixels)
    y = np.asarray(augment.crop(KEY, jnp.asarray(x), 2))
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = [(i, j) for i in range(5) for j in range(5)]
    hits = np.stack([(y == padded[:, i : i + 6, j : j + 5]).all((1, 2, 3)) for i, j in places])
    assert hits.any(0).all() and hits.any(1).sum() > 18  # of 25 places


def test_mixup_mixes_images_and_labels_by_one_share():
    batch = make_batch()
    mixed = augment.mixup(KEY, batch, 0.5, 4)
    labels = np.asarray(mixed.labels)
    np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
    x, one_hot = np.asarray(batch.pixels, np.float64), np.eye(4)[np.asarray(batch.labels)]
    # the share and the partners, from the draws of a second implementation
    key_share, key_order = jax.random.split(KEY)
    share = float(jax.random.beta(key_share, 0.5, 0.5))
    other = np.asarray(jax.random.permutation(key_order, len(x)))
    assert sorted(other) == list(range(len(x)))
    np.testing.assert_allclose(mixed.pixels, share * x + (1 - share) * x[other], rtol=1e-5)
    np.testing.assert_allclose(labels, share * one_hot + (1 - share) * one_hot[other], atol=1e-6)
    mixed = [augment.mixup(jax.random.key(i), batch, 0.5, 4).labels for i in range(4)]
    assert len({float(shares.max(1).min()) for shares in mixed}) == 4


def test_shared_labels_score_as_the_mean_of_two_losses():
    logits = jax.random.normal(KEY, (5, 4))
    one, two = jnp.array([0, 1, 2, 3, 0]), jnp.array([1, 1, 0, 3, 2])
    mixed = 0.7 * jax.nn.one_hot(one, 4) + 0.3 * jax.nn.one_hot(two, 4)
    weight = jnp.array([1.0, 1, 1, 1, 0])
    got, *each = (cross_entropy(logits, y, weight) for y in (mixed, one, two))
    np.testing.assert_allclose(got.loss, 0.7 * each[0].loss + 0.3 * each[1].loss, rtol=1e-5)
    assert got.correct == each[0].correct and got.count == 4


def test_names_are_done_in_their_order():
    assert augment.parse("") == ()
    assert augment.parse("flip, crop:3") == (("flip", 0.0), ("crop", 3.0))
    assert augment.parse("mixup,crop") == (("mixup", 0.2), ("crop", 4.0))
    batch = make_batch()
    steps = augment.parse("crop:1,flip")
    got = augment.apply(steps, KEY, batch, 4)
    keys = [jax.random.fold_in(KEY, i) for i in (0, 1)]
    wanted = augment.flip(keys[1], augment.crop(keys[0], batch.pixels, 1))
    np.testing.assert_array_equal(got.pixels, wanted)
    np.testing.assert_array_equal(got.labels, batch.labels)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("flop", "'flop' is unknown; known: flip, crop, mixup. Did you mean 'flip'"),
        ("crop:0", "'crop:0' must be flip alone, crop:N"),
        ("crop:1.5", "'crop:1.5' must be"),
        ("crop:x", "'crop:x' must be"),
        ("mixup:nan", "'mixup:nan' must be"),
        ("mixup:-1", "'mixup:-1' must be"),
        ("flip:2", "'flip:2' must be"),
        ("flip,flip", "names flip twice"),
    ],
)
def test_words_that_are_no_augmentation_are_told(words, message):
    with pytest.raises(UsageError) as error:
        augment.parse(words)
    assert message in str(error.value)


def test_pictures_alone_are_augmented(tmp_path):
    config = own_config(tmp_path, dataset="digits", **{"data.augment": "flip"})
    validate.check(config)
    config.data.layout = "rows"
    with pytest.raises(UsageError, match=r"write --config\.data\.layout=images"):
        validate.check(config)


def test_evaluation_sees_the_images_as_they_are(tmp_path):
    config = own_config(tmp_path, dataset="digits", **{"data.augment": "crop:2,mixup"})
    plain = validate.check(config)
    batch = make_batch(8, (8, 8, 1))
    three = splits.Dataset(batch, batch, batch, 16.0, 10)
    task = tasks.build(plain, three)
    assert isinstance(task, augmented.Augmented) and task == tasks.build(plain, three)
    bare = tasks.build({**plain, "data": {**plain["data"], "augment": ""}}, three)
    assert not isinstance(bare, augmented.Augmented)
    params, norm = task.init(KEY)

    def loss(of, train, seed):
        given = Batch(batch, key=jax.random.key(seed))
        return float(of(params, norm, given, stats="batch", train=train)[0].loss)

    assert loss(task, False, 0) == loss(bare, False, 0)
    assert len({loss(task, True, 0), loss(task, True, 1), loss(bare, True, 0)}) == 3
    assert loss(task, True, 1) == loss(task, True, 1)


@pytest.mark.slow
def test_a_stopped_run_draws_the_same_again(tmp_path):
    sets.write_set(tmp_path, {"train": sets.images(60), "test": sets.images(20, seed=1)})
    keys = {"variant": "bn_mlp", "data.augment": "flip,crop:1,mixup:0.4"}
    run.train(own_config(tmp_path, **keys), tmp_path / "whole")
    run.train(own_config(tmp_path, **keys, steps=6), tmp_path / "half")
    run.train(own_config(tmp_path, **keys), tmp_path / "half")
    processes.compare(tmp_path / "half", tmp_path / "whole")
    run.train(own_config(tmp_path, variant="bn_mlp"), tmp_path / "plain")
    assert processes.rows(tmp_path / "plain") != processes.rows(tmp_path / "whole")
