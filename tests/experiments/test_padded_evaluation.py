"""Evaluation whose last batch holds one real example: every example counts once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from experiments.data import batches, splits
from experiments.runtime import parallel, step
from experiments.tasks import Batch
from experiments.tasks.sequence import SequenceClassifier
from normjax import recurrent
from tests._support.few import few
from tests.experiments.test_image_task import BN, make_split, make_task

SIZE, ROWS = 7, 3  # batches of 3, 3 and 1


def sequence_case():
    draw = np.random.RandomState(0)
    norm = recurrent.per_step(nj.batch_norm(), 3)
    task = SequenceClassifier(recurrent.rnn(4, norm_h=norm), classes=10)
    pixels = jnp.asarray(draw.randint(0, 256, (SIZE, 3)), jnp.float32)
    return task, splits.Split(pixels, jnp.asarray(draw.randint(0, 10, SIZE)))


def image_case():
    return make_task("mlp", depth=1, norm_dense=BN), make_split(SIZE)


@pytest.fixture(params=["image", "sequence"])
def case(request):
    """A task, its start with statistics that are not those of any batch, and seven examples."""
    task, split = {"image": image_case, "sequence": sequence_case}[request.param]()
    params, norm = task.init(jax.random.key(0))
    return task, params, jax.tree.map(lambda s: s + 0.1, norm), split


def whole_batches(split):
    """The batches without padding; the one example twice, whose statistics are the same."""
    for index in ([0, 1, 2], [3, 4, 5], [6, 6]):
        yield Batch(splits.take(split, np.array(index)), None, jax.random.key(0))


def test_the_last_of_the_batches_has_one_example():
    _, weights = batches.evaluation_batches(SIZE, ROWS)
    assert weights.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("stats", few(["running", "batch"], "batch"))
@pytest.mark.parametrize("devices", [None, 2])
def test_scores_are_the_means_over_all_examples(case, stats, devices, monkeypatch):
    task, params, norm, split = case
    score = jax.jit(lambda batch: task(params, norm, batch, stats=stats)[0])
    each = [score(batch) for batch in whole_batches(split)]
    shares = [1, 1, 0.5]
    want = {
        "loss": sum(s * float(scores.loss) for s, scores in zip(shares, each, strict=True)) / SIZE,
        "accuracy": sum(s * float(scores.correct) for s, scores in zip(shares, each, strict=True))
        / SIZE,
    }
    layout = None
    if devices:  # one of them has no real example of the last batch
        monkeypatch.setattr(parallel, "available", jax.devices)
        layout = parallel.DeviceLayout("jit", devices, "global")
        params, norm = layout.replicate((params, norm))
        split = layout.replicate(split)
    got = step.evaluate(params, norm, split, task=task, stats=stats, batch_size=ROWS, layout=layout)
    assert got == pytest.approx(want, rel=1e-5)


def test_population_statistics_count_every_example_once(case):
    task, params, norm, split = case
    pooled = step.population(params, norm, split, task=task, how="pooled", batch_size=ROWS)
    # The first norm's input does not depend on statistics: those of all examples at once.
    once = step.population(params, norm, split, task=task, how="pooled", batch_size=SIZE)
    first = jax.tree.leaves(pooled)[:2], jax.tree.leaves(once)[:2]
    if isinstance(task, SequenceClassifier):  # later steps are behind the batch's statistics
        first = [[leaf[:1] for leaf in leaves] for leaves in first]
    for a, b in zip(*first, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for leaf in jax.tree.leaves(pooled):
        assert np.isfinite(leaf).all()


def test_unbiased_statistics_leave_out_a_batch_of_one():
    """n / (n - 1) of a single example has no value; the other batches say what the variance is."""
    task, split = image_case()
    params, norm = task.init(jax.random.key(0))
    all_three = step.population(params, norm, split, task=task, how="unbiased", batch_size=ROWS)
    two = splits.Split(*(leaf[:6] for leaf in split))
    without = step.population(params, norm, two, task=task, how="unbiased", batch_size=ROWS)
    variances = [
        leaf
        for tree in (all_three, without)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if "var" in jax.tree_util.keystr(path)
    ]
    np.testing.assert_allclose(variances[0], variances[1], rtol=1e-5)
