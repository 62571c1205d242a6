"""Top-5 accuracy, and which classes it is counted for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runtime import measures, step
from experiments.tasks import Scores, cross_entropy


def test_top_five_are_counted_as_a_sort_would():
    logits = jax.random.normal(jax.random.key(0), (60, 12))
    labels = jnp.arange(60) % 12
    weight = jnp.ones(60).at[50:].set(0)
    scores = cross_entropy(logits.at[50:].set(jnp.nan), labels, weight)
    order = np.argsort(-np.asarray(logits), axis=1)[:50, :5]
    wanted = (order == np.asarray(labels)[:50, None]).any(1).sum()
    assert scores.top5 == wanted and 5 < wanted < 45
    means = step._means(jax.device_get(scores))
    assert means[measures.TOP_FIVE] == pytest.approx(wanted / 50)


def test_few_classes_and_tokens_have_no_top_five():
    assert cross_entropy(jnp.zeros((4, 10)), jnp.zeros(4, int)).top5 is None
    assert cross_entropy(jnp.zeros((4, 3, 50)), jnp.zeros((4, 3), int)).top5 is None
    assert set(step._means(Scores(1.0, 1.0, 2.0))) == {"loss", "accuracy"}
