"""Evaluation with running statistics after few updates, beside population statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import early
from normjax import recurrent
from normjax.state import _names
from tests._support.few import few


@pytest.mark.slow
@pytest.mark.standard_numerics
def test_running_statistics_of_digits_by_rows_serve_within_200_updates():
    """A BN-LSTM over 8 rows of 8 pixels, mean of two seeds.

    As the presets average, evaluation is within 3 points of population statistics at the default
    decay; with the start left out alone, at decay 0.9, and at the default far above plain averages.
    """
    each = [early.measure("rows", seed, [200])[200] for seed in (0, 1)]
    found = {name: (each[0][name] + each[1][name]) / 2 for name in each[0]}
    assert found["population"] > 85
    assert found["warmup 0.99"] > found["population"] - 3
    assert found["debiased 0.9"] > found["population"] - 3
    assert found["debiased 0.99"] > found["plain 0.99"] + 20


PRESETS = {
    "bn_lstm": recurrent.bn_lstm,
    "bn_gru": recurrent.bn_gru,
    "vertical_bn_lstm": recurrent.vertical_bn_lstm,
    "deep_speech_rnn": recurrent.deep_speech_rnn,
}


@pytest.mark.parametrize("name", few([*PRESETS], "bn_lstm", "deep_speech_rnn"))
def test_presets_leave_the_start_out(name):
    layer, plain = PRESETS[name](3, 4), PRESETS[name](3, 4, debias=False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 2)), jnp.float32)
    params, state = layer.init(jax.random.key(0), 2)
    (training, _), state = layer.apply(params, state, x, stats="batch")
    (evaluation, _), _ = layer.apply(params, state, x, stats="running")
    np.testing.assert_allclose(evaluation, training, rtol=1e-3, atol=1e-5)
    # The layout of the other kind, by names: read as data, or told.
    _, other = plain.init(jax.random.key(0), 2)
    assert set(_names.to_dict(other)["norm_x"]) == {"mean", "var"}
    got, _ = layer.apply(params, _names.to_dict(other), x, stats="running")
    want, _ = plain.apply(params, other, x, stats="running")
    np.testing.assert_array_equal(got[0], want[0])
    with pytest.raises(ValueError, match=r"\['weight'\] are unknown.* write debias=True"):
        plain.apply(params, _names.to_dict(state), x, stats="running")
