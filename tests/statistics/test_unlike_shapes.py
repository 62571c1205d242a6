"""Statistics, axes and decays that do not fit are refused before anything is reshaped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import recurrent
from tests.conftest import unchecked

X = jnp.ones((2, 2, 3))


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3)])
def test_a_variance_of_another_shape_is_refused(shape):
    m = nj.Running(jnp.zeros((2, 3)), jnp.arange(1.0, 7).reshape(shape))
    with pytest.raises(ValueError, match="do not fit x"):
        nj.normalize(X, m, 0, eps=0.0)
    norm = nj.batch_norm(axes=0)
    params, _ = norm.init(X.shape)
    with pytest.raises(ValueError, match="do not fit x"):
        unchecked(type(norm).apply)(norm, params, m, X, stats="running")


def test_statistics_of_other_channels_are_refused():
    norm = nj.switchable_norm()
    params, state = norm.init((2, 5, 4))
    with pytest.raises(ValueError, match="fit x"):
        norm.apply(params, state, jnp.ones((2, 5, 1)), stats="running")


@pytest.mark.parametrize("axes", [np.array([0, 1]), [0, 1], (0, 1), (np.int64(0), np.int64(1))])
def test_axes_in_any_form(axes):
    moments = unchecked(nj.moments)(X, axes)
    assert moments.mean.shape == (3,) and float(moments.count[0]) == 4


def test_a_decay_that_is_a_truth_value_is_refused():
    state = nj.Running(jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match="decay=True"):
        unchecked(nj.ema)(state, nj.moments(X, (0, 1)), decay=True)


def test_params_and_state_exchanged_in_a_lift():
    lift = recurrent.per_step(nj.batch_norm(), 5)
    params, state = lift.init((1, 3))
    with pytest.raises(TypeError, match="apply takes \\(params, state, x\\)"):
        lift.apply(state, params, jnp.ones((5, 4, 3)), stats="batch")


def _psums(function, *args):
    text = str(jax.make_jaxpr(function, axis_env=[("d", 2)])(*args))
    return text.count("psum")


def test_a_count_that_is_known_is_not_exchanged():
    """Without a mask few moments are one all-reduce, and many two: means, and their spread."""
    x, many = jnp.ones((4, 3)), jnp.ones((2, 2**17))
    assert _psums(lambda x: nj.moments(x, 0, axis_name="d"), x) == 1
    assert _psums(lambda x: nj.moments(x, 0, axis_name="d"), many) == 2
    assert _psums(lambda x: nj.mean_square(x, 0, axis_name="d"), x) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_moments_of_devices_in_one_exchange_are_those_of_all_rows(masked):
    """Means far from 0 and apart, one device without any value: beside float64."""
    rng = np.random.default_rng(0)
    x = 1e4 + rng.normal(size=(4, 6, 3)) + np.array([0, 50, -30, 0.1])[:, None, None]
    x = x.astype(np.float32)
    mask = np.ones((4, 6, 1), bool)
    if masked:
        mask[1], mask[2, :4] = False, False
    run = jax.vmap(lambda x, m: nj.moments(x, 0, mask=m, axis_name="d"), axis_name="d")
    got = run(jnp.asarray(x), jnp.asarray(mask))
    wide = x.reshape(24, 3).astype(np.float64)[mask.reshape(24)]
    for of_device in range(4):
        assert got.count[of_device].tolist() == [len(wide)] * 3
        np.testing.assert_allclose(got.mean[of_device], wide.mean(0), rtol=1.2e-7)
        # A device's mean is rounded by 5e-4 at most, and lies some 10 from that of all.
        np.testing.assert_allclose(got.var[of_device], wide.var(0), rtol=1e-4)
